"""`doctor`: check whether a cluster meets each requirement of runs, and how pods end there.

`examine` checks what API requests show, in seconds. `probe` submits four small runs for the rest, in about a minute.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from distilrank import __version__, workflow
from distilrank.config import Config, Volume, parameters
from distilrank.core import artifacts, progress
from distilrank.core.errors import InputError
from pipelines import packages, resources, submit
from pipelines.kubeflow import MINIMUM_VERSION, Kubeflow, missing_features
from pipelines.recurring_runs import cron, spec

CLOCK_SECONDS = 60.0
"""Maximum difference of clocks; a log window ends at a time that one of them gives."""
POLL_SECONDS = 2.0
TERMINATION_SECONDS = 60.0
"""Time limit for a run to end after its termination."""
PROBE_TASKS = ("probe-pod", "probe-artifact", "probe-training")
TERMINATION_TASK = "probe-termination"
ENDINGS = {"exit": "exit status 1", "kill": "SIGKILL"}
"""Description of each way to end, by the parameter `how` of the pipeline `termination`."""

Verdict = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One row of the result: a condition, whether it holds, what was observed, and a remedy."""

    condition: str
    verdict: Verdict
    detail: str = ""
    remedy: str = ""
    is_trait: bool = False
    """Whether the row only describes the cluster, so that "no" is not a problem."""
    is_probed_by_run: bool = False
    """Whether a row of `probe` covers the condition."""

    @property
    def is_problem(self) -> bool:
        """Whether runs will fail because of it."""
        return self.verdict == "no" and not self.is_trait

    def lines(self) -> Iterator[str]:
        """Yield the lines to print."""
        yield f"{self.verdict:<8} {self.condition:<28} {self.detail}".rstrip()
        if self.verdict != "yes" and self.remedy:
            yield f"{'':<8} → {self.remedy}"


# From API requests ----------------------------------------------------------------------------------------------------


def check_version(kubeflow: Kubeflow) -> Finding:
    """Check that the server is new enough."""
    missing = missing_features(kubeflow.server_version)
    remedy = f"upgrade Kubeflow Pipelines to {MINIMUM_VERSION} or newer"
    if missing is None:
        return Finding("version", "unknown", "the server does not report it", f"expected {MINIMUM_VERSION} or newer")
    detail = f"Kubeflow Pipelines {kubeflow.server_version}" + (f", without {', '.join(missing)}" if missing else "")
    return Finding("version", "no" if missing else "yes", detail, remedy)


def check_permission(kubeflow: Kubeflow, resource: str) -> Finding:
    """Check that this account may list a resource; --run checks write permissions."""
    condition = f"may list {resource}"
    try:
        kubeflow.check_permission(resource)
    except (InputError, RuntimeError) as error:
        return Finding(
            condition,
            "no",
            str(error),
            "grant the permissions of the ClusterRole kubeflow-edit; see docs/security.md",
        )
    return Finding(condition, "yes")


def check_experiment(kubeflow: Kubeflow, experiment: str) -> Finding:
    """Check whether the experiment exists; if not, the first run creates it."""
    condition = "experiment"
    try:
        exists = kubeflow.has_experiment(experiment)
    except (InputError, RuntimeError) as error:
        return Finding(condition, "unknown", str(error), "grant permission to list experiments")
    return Finding(condition, "yes", f"{experiment}{'' if exists else ' does not exist; the first run creates it'}")


def check_compilation(config: Config) -> Finding:
    """Check that the configuration compiles for a cluster."""
    condition = "configuration compiles"
    try:
        for pipeline in ("distill", "monitor"):
            packages.compile_package(pipeline, config, scheduled=True)
    except InputError as error:
        return Finding(condition, "no", str(error), "change the configuration as the message says")
    return Finding(condition, "yes", "distill and monitor")


def check_registry_location(config: Config) -> Finding:
    """Check that all pods and the scoring service can share the registry."""
    uri = config.registry.uri
    verdict = _location(config, uri)
    remedy = "set registry.uri to a bucket (gs://BUCKET/PREFIX) or to a folder of one of cluster.volumes"
    return Finding(
        "registry is shared", "yes" if verdict == "shared" else "no", f"registry.uri {uri}: {verdict}", remedy
    )


def check_data_locations(config: Config) -> Finding:
    """Check that pods can read the data at its locations."""
    condition = "data locations"
    texts = {name: text for name, text in config.data.model_dump().items() if isinstance(text, str) and "/" in text}
    locations = {name: _location(config, text) for name, text in texts.items()}
    relative = [f"data.{name} {texts[name]}" for name, verdict in locations.items() if verdict == "relative"]
    if relative:
        remedy = "name buckets, or absolute paths on a volume of cluster.volumes"
        return Finding(condition, "no", f"relative: {', '.join(relative)}", remedy)
    private = [f"data.{name} {texts[name]}" for name, verdict in locations.items() if verdict != "shared"]
    if private:
        return Finding(
            condition, "unknown", f"on no volume: {', '.join(private)}", "--run checks", is_probed_by_run=True
        )
    return Finding(condition, "yes", ", ".join(texts.values()) or f"source {config.data.source} needs no files")


def _location(config: Config, text: str) -> str:
    """Classify a location from the view of pods: `shared`, `relative` or `on no volume`."""
    if "://" in text:
        return "shared"
    path = PurePosixPath(text)
    if not path.is_absolute():
        return "relative"
    volumes = (PurePosixPath(volume.path) for volume in config.cluster.volumes)
    return "shared" if any(path.is_relative_to(volume) for volume in volumes) else "on no volume"


def check_images(config: Config) -> Finding:
    """Check that image names have a registry host; the configuration refuses moving tags."""
    condition = "images"
    images = resources.image_names(config)
    detail = ", ".join(images.values())
    if all("." in image.split("/")[0] for image in images.values()):
        return Finding(condition, "unknown", detail, "--run checks whether they can be pulled", is_probed_by_run=True)
    remedy = "add the registry host to the image names; --run checks whether the nodes have the images anyway"
    return Finding(condition, "unknown", f"{detail}: no registry host", remedy, is_probed_by_run=True)


def check_time_zone(kubeflow: Kubeflow, file: Path) -> Finding:
    """Check the time zone of a schedule file against the cluster's, by the last runs of its schedules."""
    condition = "time zone of schedules"
    declared = spec.read(file)
    by_name = {schedule.name: schedule for schedule in declared.schedules}
    for recurring in kubeflow.recurring_runs():
        schedule = by_name.get(recurring.display_name)
        run = kubeflow.last_run_of(recurring.recurring_run_id, recurring.experiment_id) if schedule else None
        if schedule and run and run.scheduled_at:
            moment = run.scheduled_at.astimezone(declared.zone)
            before = cron.ticks(schedule.cron, moment - timedelta(seconds=1))
            is_tick = any(tick == moment for tick in itertools.islice(before, 1))
            remedy = f"set timezone in {file} to CRON_SCHEDULE_TIMEZONE of ml-pipeline-scheduledworkflow"
            detail = f"{schedule.name} last ran at {moment:%H:%M:%S} in {declared.timezone}, cron {schedule.cron}"
            return Finding(condition, "yes" if is_tick else "no", detail, remedy)
    remedy = "see CRON_SCHEDULE_TIMEZONE of the Deployment ml-pipeline-scheduledworkflow, or repeat after a run"
    return Finding(condition, "unknown", f"{declared.timezone}; no schedule of {file} has run yet", remedy)


def examine(kubeflow: Kubeflow, config: Config, *, experiment: str, file: Path | None, run: bool) -> Iterator[Finding]:
    """Yield the findings from API requests, without those that `probe` covers if `run` is set."""
    mode = f"multi-user, namespace {kubeflow.namespace}" if kubeflow.namespace else "single-user"
    yield Finding("host responds", "yes", f"{kubeflow.host}, {mode}")
    yield check_version(kubeflow)
    for resource in ("experiments", "pipelines", "runs", "jobs"):
        yield check_permission(kubeflow, resource)
    yield check_experiment(kubeflow, experiment)
    yield check_compilation(config)
    yield check_registry_location(config)
    locations = (check_data_locations(config), check_images(config))
    yield from (finding for finding in locations if not (run and finding.is_probed_by_run))
    if file:
        yield check_time_zone(kubeflow, file)


# From probe runs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """Facts that a task of a probe has logged, or the reason why there are none."""

    facts: dict[str, Any] | None
    """None if the task logged none."""
    reason: str
    """The last message of the task's pod; may be empty."""
    has_pod: bool
    """Whether the task had a pod."""

    def finding(self, condition: str, key: str, remedy: str, detail: Callable[[Any], str] = str) -> Finding:
        """Make a finding from the fact `key`, which describes a failure, or is empty if there was none."""
        if self.facts is None:
            return Finding(condition, "unknown", self.reason or "the pod reported nothing", remedy)
        failure = self.facts[key]
        return Finding(condition, "no" if failure else "yes", detail(failure) if failure else "", remedy)


def check_pods_start(report: Report, condition: str, image: str) -> Finding:
    """Check that a pod with the configuration's settings starts from an image."""
    remedy = "push the image, or set cluster.images and cluster.pull_secrets; `kubectl describe pod` has details"
    if report.facts is None:
        verdict: Verdict = "no" if report.has_pod else "unknown"
        return Finding(condition, verdict, report.reason or f"a pod of {image} reported nothing", remedy)
    return Finding(condition, "yes", image)


def check_same_code(report: Report) -> Finding:
    """Check that the image has the same code as this installation."""
    condition, remedy = "image has this version", "build and push the images of this version, and set cluster.images"
    if report.facts is None:
        return Finding(condition, "unknown", report.reason, remedy)
    is_same = report.facts["code"] == artifacts.code_digest()
    detail = f"{report.facts['version']} in the image, {__version__} here" + ("" if is_same else "; the code differs")
    return Finding(condition, "yes" if is_same else "no", detail, remedy)


def check_user(report: Report, expected: int | None) -> Finding:
    """Check that pods run as the configured user, and show their groups; Kubernetes refuses root.

    Args:
        report: report of the task probe-pod.
        expected: `cluster.run_as_user`; None: the user of the image.
    """
    condition, remedy = (
        "user of pods",
        "find the policy (namespace or Kubeflow) that overrides cluster.run_as_user",
    )
    if report.facts is None:
        return Finding(condition, "unknown", report.reason, remedy)
    user, groups = report.facts["user"], ", ".join(map(str, report.facts["groups"]))
    verdict: Verdict = "yes" if expected in (None, user) else "no"
    return Finding(condition, verdict, f"user {user}, groups {groups}", remedy)


def check_volume(report: Report, volume: Volume) -> Finding:
    """Check that the pods' user can create, flush, rename and delete a file on a volume."""
    condition = f"volume {volume.claim}"
    user = report.facts["user"] if report.facts else "the pods' user"
    remedy = f"give user {user} write access: by chown, or by a storage class that supports fsGroup"
    if report.facts is None:
        return Finding(condition, "unknown", report.reason, remedy)
    failure = report.facts["volumes"][volume.path]
    return Finding(condition, "no" if failure else "yes", f"{volume.path}: {failure or 'writable'}", remedy)


def check_secret(report: Report, name: str) -> Finding:
    """Check that pods have the keys of a Secret that the configuration names."""
    condition = f"secret {name}"
    remedy = "create the Secret in the namespace of the runs, with the keys that cluster.secrets names"
    if report.facts is None:
        return Finding(condition, "unknown", report.reason, remedy)
    missing = report.facts["secrets"][name]
    return Finding(condition, "no" if missing else "yes", f"{missing} is missing" if missing else "", remedy)


def check_clock(report: Report, submitted: datetime) -> Finding:
    """Check that the clocks of pods, of Kubeflow and of this machine agree.

    Args:
        report: report of the task probe-pod.
        submitted: time of the submission by this machine's clock.
    """
    condition, remedy = "clocks agree", "synchronize the nodes' clocks (NTP), or this machine's"
    if report.facts is None:
        return Finding(condition, "unknown", report.reason, remedy)
    pod, scheduled = (datetime.fromisoformat(report.facts[key]) for key in ("now", "schedule_time"))
    tolerance = timedelta(seconds=CLOCK_SECONDS)
    is_equal = submitted - tolerance < scheduled < submitted + tolerance and scheduled - tolerance < pod
    is_equal = is_equal and pod < datetime.now(UTC) + tolerance
    detail = f"submitted {submitted:%H:%M:%S}, in Kubeflow {scheduled:%H:%M:%S}, in the pod {pod:%H:%M:%S} UTC"
    return Finding(condition, "yes" if is_equal else "no", detail, remedy)


def check_restart(manifest: dict[str, Any], end: str) -> Finding:
    """Check whether Argo restarts a pod after a given kind of termination, with one retry configured.

    Args:
        manifest: workflow of the run after its end.
        end: description of the termination.
    """
    condition = f"retried: {end}"
    pods = workflow.attempts(manifest, TERMINATION_TASK)
    if not any(pod.has_failed for pod in pods):
        reason = workflow.message(manifest, TERMINATION_TASK)
        return Finding(condition, "unknown", reason or "no pod has ended", is_trait=True)
    remedy = "`python -m pipelines retry RUN` reruns failed stages; `cluster.*.retries` covers deleted pods only"
    detail = f"{len(pods)} of 2 attempts"
    if len(pods) > 2:  # pod, task and run are each retried
        detail += ": retries multiply here"
        remedy = (
            "restore Kubeflow's retryPolicy OnError (workflow-controller-configmap); use `python -m pipelines retry`"
        )
        return Finding(condition, "no", detail, remedy)
    return Finding(condition, "yes" if len(pods) > 1 else "no", detail, remedy, is_trait=True)


def check_grace(log: str) -> Finding:
    """Measure how long a terminated pod keeps running after SIGTERM."""
    condition = "time after SIGTERM"
    remedy = "do not rely on cleanup at termination; only checkpoints (compute.checkpoint_seconds) are saved"
    events = [event.text.split() for event in map(progress.parse, log.splitlines()) if event]
    moments = {name: [float(text[1]) for text in events if text[:1] == [name]] for name in ("SIGTERM", "alive")}
    if not moments["alive"]:
        return Finding(condition, "unknown", "no log of the terminated pod", remedy, is_trait=True)
    if not moments["SIGTERM"]:
        return Finding(condition, "no", "the stage was killed before it received SIGTERM", remedy, is_trait=True)
    seconds = moments["alive"][-1] - moments["SIGTERM"][0]
    return Finding(condition, "yes" if seconds > 10 else "no", f"{max(seconds, 0):.1f} s", remedy, is_trait=True)


def probe(kubeflow: Kubeflow, config: Config, *, experiment: str, timeout_minutes: float) -> Iterator[Finding]:
    """Submit the probe runs, wait for them, and yield findings from their reports.

    Args:
        kubeflow: connection to the cluster.
        config: configuration whose pod settings are probed.
        experiment: experiment of the runs.
        timeout_minutes: time limit of the runs.

    Raises:
        InputError, RuntimeError: as `Kubeflow` raises them.
    """
    token, submitted = uuid.uuid4().hex, datetime.now(UTC)
    values: dict[str, Any] = {"token": token, "volumes": [volume.path for volume in config.cluster.volumes]}
    values |= {key: parameters(config)[key] for key in ("data", "registry")}
    parameters_by_run = {"probe": values}
    for how in (*ENDINGS, "wait"):
        parameters_by_run[how] = {"how": how, "seconds": 60 * timeout_minutes}
    deadline = time.monotonic() + 60 * timeout_minutes
    with contextlib.ExitStack() as stack:
        runs = {
            name: stack.enter_context(_run(kubeflow, config, name, experiment, values))
            for name, values in parameters_by_run.items()
        }
        waiting_log = functools.partial(kubeflow.task_log, runs["wait"], TERMINATION_TASK)
        for name in ("probe", *ENDINGS):
            _wait(kubeflow, runs[name], lambda: False, deadline)
        _wait(kubeflow, runs["wait"], lambda: "alive" in waiting_log(), deadline)
        manifest = kubeflow.workflow(runs["probe"])  # read before the termination, which replaces messages
    _wait(kubeflow, runs["wait"], lambda: False, time.monotonic() + TERMINATION_SECONDS)
    yield Finding("may submit runs", "yes", kubeflow.run_url(runs["probe"]))
    pod, artifact, training = (_report(kubeflow, runs["probe"], manifest, task) for task in PROBE_TASKS)
    images = resources.image_names(config)
    yield check_pods_start(pod, "image ops", images["ops"])
    yield check_pods_start(training, "image train", images["train"])
    yield check_same_code(pod)
    yield check_user(pod, config.cluster.run_as_user)
    for volume in config.cluster.volumes:
        yield check_volume(pod, volume)
    for secret in config.cluster.secrets:
        yield check_secret(pod, secret.name)
    yield pod.finding("data readable", "data", "give pods permission and network access to the data")
    yield pod.finding("registry usable", "registry", "give pods permission and network access to registry.uri")
    yield artifact.finding("object store", "store", "check Kubeflow's object store and cluster.pipeline_root")
    yield check_clock(pod, submitted)
    for how, end in ENDINGS.items():
        yield check_restart(kubeflow.workflow(runs[how]), end)
    yield check_grace(waiting_log())


@contextlib.contextmanager
def _run(kubeflow: Kubeflow, config: Config, name: str, experiment: str, values: dict[str, Any]) -> Iterator[str]:
    """Submit a run of `probe` or `termination`, yield its ID, and terminate it in the end if it is still active."""
    package = packages.compile_package("probe" if name == "probe" else "termination", config, scheduled=False)
    run_name = f"doctor-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_id = submit.submit(kubeflow, package, config, name=run_name, experiment=experiment, parameters=values)
    try:
        yield run_id
    finally:
        run = kubeflow.run(run_id)
        if run and run.state not in submit.ENDED:
            with contextlib.suppress(InputError):  # it may have ended in the meantime
                kubeflow.terminate(run_id)


def _wait(kubeflow: Kubeflow, run_id: str, is_ready: Callable[[], bool], deadline: float) -> None:
    """Wait until a run has ended, `is_ready` holds, or the deadline has passed."""
    while time.monotonic() < deadline:
        run = kubeflow.run(run_id)
        if run is None or run.state in submit.ENDED or is_ready():
            return
        time.sleep(POLL_SECONDS)


def _report(kubeflow: Kubeflow, run_id: str, manifest: dict[str, Any], task: str) -> Report:
    """Read the report of a task from its pod's log."""
    events = map(progress.parse, kubeflow.task_log(run_id, task).splitlines())
    facts = next((json.loads(event.text) for event in events if event and event.event == "outcome"), None)
    return Report(facts, workflow.message(manifest, task), bool(workflow.attempts(manifest, task)))
