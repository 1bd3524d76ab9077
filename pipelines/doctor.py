"""`doctor`: does a cluster have what runs need, and how do pods end there? Each condition is checked by itself.

What a request can tell takes seconds. The rest is what four small runs report, which take about a minute (`probe`).
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
"""How far clocks may be apart: a log window ends at a moment that one of them tells."""
POLL_SECONDS = 2.0
TERMINATION_SECONDS = 60.0
"""How long a terminated run may take to end."""
PROBE_TASKS = ("probe-pod", "probe-artifact", "probe-training")
TERMINATION_TASK = "probe-termination"
ENDINGS = {"exit": "exit status 1", "kill": "SIGKILL"}
"""What is seen of a pod by how it ends."""

Verdict = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One condition: whether it holds, what was seen, and what to do if it does not."""

    condition: str
    verdict: Verdict
    detail: str = ""
    remedy: str = ""
    is_trait: bool = False
    """Whether it only tells how the cluster behaves: no is as good an answer as yes."""
    is_tried_by_run: bool = False
    """Whether a row of `probe` answers it."""

    @property
    def is_wrong(self) -> bool:
        """Whether runs will suffer from it."""
        return self.verdict == "no" and not self.is_trait

    def lines(self) -> Iterator[str]:
        """As people read it."""
        yield f"{self.verdict:<8} {self.condition:<28} {self.detail}".rstrip()
        if self.verdict != "yes" and self.remedy:
            yield f"{'':<8} → {self.remedy}"


# What requests tell --------------------------------------------------------------------------------------------------


def check_version(kubeflow: Kubeflow) -> Finding:
    """Whether the server is new enough."""
    missing = missing_features(kubeflow.server_version)
    remedy = f"upgrade Kubeflow Pipelines to {MINIMUM_VERSION} or newer"
    if missing is None:
        return Finding("version", "unknown", "the server does not say", f"see that it is {MINIMUM_VERSION} or newer")
    detail = f"Kubeflow Pipelines {kubeflow.server_version}" + (f", without {', '.join(missing)}" if missing else "")
    return Finding("version", "no" if missing else "yes", detail, remedy)


def check_right(kubeflow: Kubeflow, resource: str) -> Finding:
    """Whether this account may list a resource; the rights to write are tried by --run."""
    condition = f"may list {resource}"
    try:
        kubeflow.check_right(resource)
    except (InputError, RuntimeError) as error:
        return Finding(
            condition, "no", str(error), "grant what Kubeflow's ClusterRole kubeflow-edit grants; see docs/security.md"
        )
    return Finding(condition, "yes")


def check_experiment(kubeflow: Kubeflow, experiment: str) -> Finding:
    """Whether the experiment is there or can be; creating it is left to the first run."""
    condition = "experiment"
    try:
        exists = kubeflow.has_experiment(experiment)
    except (InputError, RuntimeError) as error:
        return Finding(condition, "unknown", str(error), "grant the right to list experiments")
    return Finding(condition, "yes", f"{experiment}{'' if exists else ' will be created by the first run'}")


def check_compilation(config: Config) -> Finding:
    """Whether the configuration compiles for a cluster."""
    condition = "configuration compiles"
    try:
        for pipeline in ("distill", "monitor"):
            packages.compile_package(pipeline, config, scheduled=True)
    except InputError as error:
        return Finding(condition, "no", str(error), "change the configuration as the message says")
    return Finding(condition, "yes", "distill and monitor")


def check_registry_location(config: Config) -> Finding:
    """Whether all pods and the scoring service can share the registry."""
    uri = config.registry.uri
    verdict = _location(config, uri)
    remedy = "set registry.uri to a bucket (gs://BUCKET/PREFIX) or to a folder of one of cluster.volumes"
    return Finding(
        "registry is shared", "yes" if verdict == "shared" else "no", f"registry.uri {uri}: {verdict}", remedy
    )


def check_data_locations(config: Config) -> Finding:
    """Whether pods will look for the data where it is."""
    condition = "data locations"
    texts = {name: text for name, text in config.data.model_dump().items() if isinstance(text, str) and "/" in text}
    locations = {name: _location(config, text) for name, text in texts.items()}
    relative = [f"data.{name} {texts[name]}" for name, verdict in locations.items() if verdict == "relative"]
    if relative:
        remedy = "name buckets, or absolute paths on a volume of cluster.volumes"
        return Finding(condition, "no", f"relative: {', '.join(relative)}", remedy)
    private = [f"data.{name} {texts[name]}" for name, verdict in locations.items() if verdict != "shared"]
    if private:
        return Finding(condition, "unknown", f"on no volume: {', '.join(private)}", "--run tries", is_tried_by_run=True)
    return Finding(condition, "yes", ", ".join(texts.values()) or f"source {config.data.source} brings its own data")


def _location(config: Config, text: str) -> str:
    """Where a location is for pods: `shared`, `relative` or `on no volume`."""
    if "://" in text:
        return "shared"
    path = PurePosixPath(text)
    if not path.is_absolute():
        return "relative"
    volumes = (PurePosixPath(volume.path) for volume in config.cluster.volumes)
    return "shared" if any(path.is_relative_to(volume) for volume in volumes) else "on no volume"


def check_images(config: Config) -> Finding:
    """Whether the images name a registry; that their tags do not move is held by the configuration."""
    condition = "images"
    images = resources.image_names(config)
    detail = ", ".join(images.values())
    if all("." in image.split("/")[0] for image in images.values()):
        return Finding(condition, "unknown", detail, "--run tries whether they can be pulled", is_tried_by_run=True)
    remedy = "name images with the host of their registry; --run tries whether the nodes have them anyway"
    return Finding(condition, "unknown", f"{detail}: no host of a registry", remedy, is_tried_by_run=True)


def check_time_zone(kubeflow: Kubeflow, file: Path) -> Finding:
    """Whether the time zone of a schedule file is the cluster's: the last runs of its schedules show it."""
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
    remedy = "look at CRON_SCHEDULE_TIMEZONE of the Deployment ml-pipeline-scheduledworkflow, or ask again after a run"
    return Finding(condition, "unknown", f"{declared.timezone}; no schedule of {file} has run yet", remedy)


def examine(kubeflow: Kubeflow, config: Config, *, experiment: str, file: Path | None, run: bool) -> Iterator[Finding]:
    """What can be told without a run, in seconds; with `run` all but what the run answers."""
    mode = f"multi-user, namespace {kubeflow.namespace}" if kubeflow.namespace else "single-user"
    yield Finding("host answers", "yes", f"{kubeflow.host}, {mode}")
    yield check_version(kubeflow)
    for resource in ("experiments", "pipelines", "runs", "jobs"):
        yield check_right(kubeflow, resource)
    yield check_experiment(kubeflow, experiment)
    yield check_compilation(config)
    yield check_registry_location(config)
    locations = (check_data_locations(config), check_images(config))
    yield from (finding for finding in locations if not (run and finding.is_tried_by_run))
    if file:
        yield check_time_zone(kubeflow, file)


# What runs tell ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What one task of a probe has printed, and why it did not."""

    facts: dict[str, Any] | None
    """None: it printed none."""
    reason: str
    """The last message of its pod, empty: there is none."""
    has_pod: bool
    """Whether it came to a pod at all."""

    def finding(self, condition: str, key: str, remedy: str, detail: Callable[[Any], str] = str) -> Finding:
        """Whether the fact `key`, which is a failure in words, is empty."""
        if self.facts is None:
            return Finding(condition, "unknown", self.reason or "the pod reported nothing", remedy)
        failure = self.facts[key]
        return Finding(condition, "no" if failure else "yes", detail(failure) if failure else "", remedy)


def check_pods_start(report: Report, condition: str, image: str) -> Finding:
    """Whether a pod with the configuration's settings starts from an image and reports."""
    remedy = "push the image, or set cluster.images and cluster.pull_secrets; `kubectl describe pod` says more"
    if report.facts is None:
        verdict: Verdict = "no" if report.has_pod else "unknown"
        return Finding(condition, verdict, report.reason or f"a pod of {image} reported nothing", remedy)
    return Finding(condition, "yes", image)


def check_same_code(report: Report) -> Finding:
    """Whether the image holds the version of distilrank that submits."""
    condition, remedy = "image has this version", "build and push the images of this version, and name them"
    if report.facts is None:
        return Finding(condition, "unknown", report.reason, remedy)
    same = report.facts["code"] == artifacts.code_digest()
    detail = f"{report.facts['version']} there, {__version__} here" + ("" if same else "; the code differs")
    return Finding(condition, "yes" if same else "no", detail, remedy)


def check_user(report: Report, expected: int | None) -> Finding:
    """Which user and groups pods have, and whether it is the configured user; root is refused by Kubernetes.

    Args:
        expected: `cluster.run_as_user`; None: whatever the image says.
    """
    condition, remedy = "user of pods", "see which policy of the namespace or of Kubeflow overrides cluster.run_as_user"
    if report.facts is None:
        return Finding(condition, "unknown", report.reason, remedy)
    user, groups = report.facts["user"], ", ".join(map(str, report.facts["groups"]))
    verdict: Verdict = "yes" if expected in (None, user) else "no"
    return Finding(condition, verdict, f"user {user}, groups {groups}", remedy)


def check_volume(report: Report, volume: Volume) -> Finding:
    """Whether the pods' user can create, flush, rename and delete a file of a volume."""
    condition = f"volume {volume.claim}"
    user = report.facts["user"] if report.facts else "the pods' user"
    remedy = f"let user {user} write the volume: an initial chown, or a storage class that heeds fsGroup"
    if report.facts is None:
        return Finding(condition, "unknown", report.reason, remedy)
    failure = report.facts["volumes"][volume.path]
    return Finding(condition, "no" if failure else "yes", f"{volume.path}: {failure or 'writable'}", remedy)


def check_secret(report: Report, name: str) -> Finding:
    """Whether pods have of a Secret what the configuration names."""
    condition = f"secret {name}"
    remedy = "create the Secret in the namespace of the runs, with the keys that cluster.secrets names"
    if report.facts is None:
        return Finding(condition, "unknown", report.reason, remedy)
    missing = report.facts["secrets"][name]
    return Finding(condition, "no" if missing else "yes", f"{missing} is missing" if missing else "", remedy)


def check_clock(report: Report, submitted: datetime) -> Finding:
    """Whether the pods' clock, the cluster's time of the run and this machine's clock agree.

    Args:
        submitted: when the run was submitted, by this machine's clock.
    """
    condition, remedy = "clocks agree", "synchronize the nodes' clocks (NTP), or this machine's"
    if report.facts is None:
        return Finding(condition, "unknown", report.reason, remedy)
    pod, scheduled = (datetime.fromisoformat(report.facts[key]) for key in ("now", "schedule_time"))
    tolerance = timedelta(seconds=CLOCK_SECONDS)
    agree = submitted - tolerance < scheduled < submitted + tolerance and scheduled - tolerance < pod
    agree = agree and pod < datetime.now(UTC) + tolerance
    detail = f"submitted {submitted:%H:%M:%S}, in Kubeflow {scheduled:%H:%M:%S}, in the pod {pod:%H:%M:%S} UTC"
    return Finding(condition, "yes" if agree else "no", detail, remedy)


def check_restart(manifest: dict[str, Any], end: str) -> Finding:
    """Whether Argo starts a pod again that ended in some way, if one retry is asked for.

    Args:
        manifest: the workflow of the run, once it has ended.
        end: how the pod ended, in words.
    """
    condition = f"retried: {end}"
    pods = workflow.attempts(manifest, TERMINATION_TASK)
    if not any(pod.has_failed for pod in pods):
        reason = workflow.message(manifest, TERMINATION_TASK)
        return Finding(condition, "unknown", reason or "no pod has ended", is_trait=True)
    remedy = "`python -m pipelines retry RUN` runs again what failed; `cluster.*.retries` covers deleted pods only"
    detail = f"{len(pods)} of 2 attempts"
    if len(pods) > 2:  # the pod, its task and the whole run are each tried again
        detail += ": retries multiply here"
        remedy = (
            "use Kubeflow's own retryPolicy OnError (workflow-controller-configmap), and `python -m pipelines retry`"
        )
        return Finding(condition, "no", detail, remedy)
    return Finding(condition, "yes" if len(pods) > 1 else "no", detail, remedy, is_trait=True)


def check_grace(log: str) -> Finding:
    """How long a terminated pod lives on after SIGTERM."""
    condition = "time after SIGTERM"
    remedy = "rest on nothing that a stage does when it is ended: compute.checkpoint_seconds alone counts"
    events = [event.text.split() for event in map(progress.parse, log.splitlines()) if event]
    moments = {name: [float(text[1]) for text in events if text[:1] == [name]] for name in ("SIGTERM", "alive")}
    if not moments["alive"]:
        return Finding(condition, "unknown", "no log of the terminated pod", remedy, is_trait=True)
    if not moments["SIGTERM"]:
        return Finding(condition, "no", "the stage was gone before it heard of it", remedy, is_trait=True)
    seconds = moments["alive"][-1] - moments["SIGTERM"][0]
    return Finding(condition, "yes" if seconds > 10 else "no", f"{max(seconds, 0):.1f} s", remedy, is_trait=True)


def probe(kubeflow: Kubeflow, config: Config, *, experiment: str, timeout_minutes: float) -> Iterator[Finding]:
    """Submit the runs, wait for them, and say what they report.

    Raises:
        InputError, RuntimeError: as `Kubeflow` raises them.
    """
    token, submitted = uuid.uuid4().hex, datetime.now(UTC)
    given: dict[str, Any] = {"token": token, "volumes": [volume.path for volume in config.cluster.volumes]}
    given |= {key: parameters(config)[key] for key in ("data", "registry")}
    given_by_run = {"probe": given}
    for how in (*ENDINGS, "wait"):
        given_by_run[how] = {"how": how, "seconds": 60 * timeout_minutes}
    deadline = time.monotonic() + 60 * timeout_minutes
    with contextlib.ExitStack() as stack:
        runs = {
            name: stack.enter_context(_run(kubeflow, config, name, experiment, values))
            for name, values in given_by_run.items()
        }
        waiting_log = functools.partial(kubeflow.task_log, runs["wait"], TERMINATION_TASK)
        for name in ("probe", *ENDINGS):
            _wait(kubeflow, runs[name], lambda: False, deadline)
        _wait(kubeflow, runs["wait"], lambda: "alive" in waiting_log(), deadline)
        manifest = kubeflow.workflow(runs["probe"])  # termination replaces what they say
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
    yield pod.finding("data readable", "data", "see that pods have rights and a path to the data")
    yield pod.finding("registry usable", "registry", "see that pods have rights to registry.uri, and a path to it")
    yield artifact.finding("object store", "store", "see to the object store of Kubeflow, or to cluster.pipeline_root")
    yield check_clock(pod, submitted)
    for how, end in ENDINGS.items():
        yield check_restart(kubeflow.workflow(runs[how]), end)
    yield check_grace(waiting_log())


@contextlib.contextmanager
def _run(kubeflow: Kubeflow, config: Config, name: str, experiment: str, given: dict[str, Any]) -> Iterator[str]:
    """A run of `probe` or of `termination`, which is terminated at the end if it still runs."""
    package = packages.compile_package("probe" if name == "probe" else "termination", config, scheduled=False)
    run_name = f"doctor-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_id = submit.submit(kubeflow, package, config, name=run_name, experiment=experiment, parameters=given)
    try:
        yield run_id
    finally:
        run = kubeflow.run(run_id)
        if run and run.state not in submit.ENDED:
            with contextlib.suppress(InputError):  # it may have ended meanwhile
                kubeflow.terminate(run_id)


def _wait(kubeflow: Kubeflow, run_id: str, is_enough: Callable[[], bool], deadline: float) -> None:
    """Wait until a run has ended, has done enough or has had its time."""
    while time.monotonic() < deadline:
        run = kubeflow.run(run_id)
        if run is None or run.state in submit.ENDED or is_enough():
            return
        time.sleep(POLL_SECONDS)


def _report(kubeflow: Kubeflow, run_id: str, manifest: dict[str, Any], task: str) -> Report:
    """What a task has printed, read from its pod's log."""
    events = map(progress.parse, kubeflow.task_log(run_id, task).splitlines())
    facts = next((json.loads(event.text) for event in events if event and event.event == "outcome"), None)
    return Report(facts, workflow.message(manifest, task), bool(workflow.attempts(manifest, task)))
