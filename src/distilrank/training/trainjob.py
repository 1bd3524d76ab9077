"""Training over several nodes: a TrainJob of Kubeflow Trainer is made, waited for, and removed at its end.

The pod that waits may be gone at any moment, without a word: Kubeflow's launcher ends half a second after SIGTERM and
takes its container along. So the TrainJob has a life of its own that is finite. Its nodes watch the heartbeat of that
pod, a file on the volume that they share, and end themselves when it has been silent for too long; its owner is the
workflow of the run, with which Kubernetes deletes it; and it has a deadline.

Written against `trainer.kubeflow.org/v1alpha1` of Kubeflow Trainer 2.2 and newer; docs/several-nodes.md tells what a
cluster needs for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from distilrank.config import Compute
from distilrank.core import artifacts, kubernetes_api, progress
from distilrank.core.errors import InputError, RunStopped

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, ApiException

Pod = dict[str, Any]  # as the API writes it

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
NODE = "node"  # the job and its container that train, in Kubeflow Trainer's runtimes for torch
MANAGER = "distilrank/train"  # a patch of the runtime must be signed with a domain-like prefix
SETTINGS = "distilrank/settings"
VOLUME = "distilrank"
PAGE = "docs/several-nodes.md"

POLL_SECONDS = 5.0
REMIND_SECONDS = 60.0
REQUEST_SECONDS = (5.0, 30.0)  # to connect, to answer
OUTAGE_SECONDS = 900.0  # a control plane that is upgraded is away for minutes, and the training goes on
CLEANUP_SECONDS = 20.0
BEAT_SECONDS = 60.0
SILENT_LOOKS = 3  # after an outage of the volume, the nodes may look at the heartbeat before the next beat
REMOVAL_SECONDS = 300.0
TRANSIENT = (429, 500, 502, 503, 504)
TAIL_LINES = 60  # torchrun's own summary takes some 30 and comes after the reason
TAIL_CHARACTERS = 8000


def job_name(stage: str, key: str) -> str:
    """The TrainJob's name for the task of `stage` with this content key: a retried task finds its own again.

    At most 30 characters: JobSet makes pod names of it with up to 33 more, and they may have 63.
    """
    name = f"distilrank-{stage}-{artifacts.digest_bytes(key.encode())[:10]}"
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 30, name
    return name


def check(compute: Compute) -> None:
    """Refuse, before any expensive work, a configuration that cannot train on several nodes.

    Raises:
        InputError: no claim, a `resume` that the nodes do not share, or GPUs that `device` does not fit.
    """
    if compute.nodes == 1:
        return
    job = compute.trainjob
    if not job.claim:
        raise InputError(
            f"compute.trainjob.claim is empty, expected a PersistentVolumeClaim that all pods can write: "
            f"compute.nodes is {compute.nodes} ({PAGE})"
        )
    resume = PurePosixPath(compute.checkpoint_dir)
    if not resume.is_relative_to(job.mount) or ".." in resume.parts:
        raise InputError(
            f"compute.checkpoint_dir is {compute.checkpoint_dir!r}, expected a folder below compute.trainjob.mount "
            f"({job.mount!r}), which is what all {compute.nodes} nodes see"
        )
    if compute.device != "auto" and (compute.device == "cuda") != bool(job.gpus):
        raise InputError(
            f"compute.trainjob.gpus is {job.gpus}, but compute.device is {compute.device!r}: expected "
            + ("0" if job.gpus else "at least 1")
        )


def manifest(name: str, command: list[str], compute: Compute, owner: dict[str, Any] | None = None) -> dict[str, Any]:
    """The TrainJob that runs `command` on every node, with `PET_*` in its environment as torchrun reads them.

    `owner` refers to the object with which it is to be deleted.
    """
    job = compute.trainjob
    resources = {"nvidia.com/gpu": str(job.gpus or ""), "cpu": job.cpu, "memory": job.memory}
    resources = {resource: amount for resource, amount in resources.items() if amount}
    labels = {"app.kubernetes.io/managed-by": "distilrank"}
    if job.queue:
        labels["kueue.x-k8s.io/queue-name"] = job.queue
    trainer: dict[str, Any] = {
        "command": command,
        "numNodes": compute.nodes,
        "numProcPerNode": compute.processes or max(job.gpus, 1),
    }
    if job.image:
        trainer["image"] = job.image
    if resources:
        # Both: some versions of the controller start a single process per node where requests are missing.
        trainer["resourcesPerNode"] = {"requests": resources, "limits": resources}
    pod = {
        # Namespaces of Kubeflow profiles inject Istio, whose proxy breaks torch's rendezvous and never ends.
        "metadata": {"labels": {"sidecar.istio.io/inject": "false"}},
        "spec": {
            "volumes": [{"name": VOLUME, "persistentVolumeClaim": {"claimName": job.claim}}],
            "containers": [{"name": NODE, "volumeMounts": [{"name": VOLUME, "mountPath": job.mount}]}],
        },
    }
    jobs = [{"name": NODE, "template": {"spec": {"template": pod}}}]
    spec = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": job.runtime},
        "trainer": trainer,
        "runtimePatches": [
            {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}}}
        ],
        # The cluster's own watch over it: nodes that hang cannot end themselves.
        "activeDeadlineSeconds": 60 * job.timeout_minutes,
    }
    metadata = {"name": name, "labels": labels, "annotations": {SETTINGS: artifacts.digest_json(spec)}}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": metadata | ({"ownerReferences": [owner]} if owner else {}),
        "spec": spec,
    }


def run(
    name: str,
    command: list[str],
    compute: Compute,
    stage: str,
    *,
    heartbeat: Path,
    client: ApiClient | None = None,
) -> None:
    """Run `command` on `compute.nodes` nodes and wait for its end; the TrainJob is gone when this returns or raises.

    A TrainJob of this name that still runs with the same settings is that of a killed attempt, and is waited for;
    any other one is removed first. SIGTERM ends the wait as SystemExit, where this process has the time.

    Args:
        name: from `job_name`.
        command: what every node runs, `torchrun -m ...`; its files lie below `compute.trainjob.mount`.
        stage: who says what happens.
        heartbeat: the file, below `compute.trainjob.mount`, by which the nodes know that they are waited for.
        client: how to reach the cluster; by default as this pod, or as the kubeconfig says.

    Raises:
        InputError: no cluster, no Kubeflow Trainer, a missing right or runtime, a TrainJob that the API refuses.
        RunStopped: the TrainJob failed (with the end of the failed node's log), took longer than
            `timeout_minutes`, was deleted by someone else, or the Kubernetes API stayed away.
    """
    check(compute)
    cluster = _connect(compute, stage, client)
    owner = cluster.workflow()
    job = manifest(name, command, compute, owner)
    with _beating(heartbeat):
        found = cluster.find(name)
        with _cleaned_up(lambda: cluster.clean_up(name)):
            unfit = _unfit(found, job) if found else ""
            if unfit:
                progress.log_event(stage, "note", f"removing an earlier TrainJob {name}: {unfit}")
                cluster.remove(name)
                found = None
            if found is None:
                cluster.create(job)
                size = f"{compute.nodes} nodes, {compute.trainjob.gpus or 'no'} GPUs each"
                progress.log_event(stage, "note", f"created TrainJob {cluster.namespace}/{name}: {size}")
            else:
                progress.log_event(stage, "note", f"TrainJob {cluster.namespace}/{name} of an earlier attempt goes on")
                cluster.own(found, owner)
            _wait(cluster, name, compute)


def _unfit(found: dict[str, Any], job: dict[str, Any]) -> str:
    """Why the TrainJob `found` cannot take the place of `job`; empty: it can."""
    metadata, ended = found["metadata"], _condition(found, "Failed") or _condition(found, "Complete")
    if "deletionTimestamp" in metadata:
        return "it is being deleted"
    if ended:
        return f"it has ended, {ended['type']}"
    same = metadata.get("annotations", {}).get(SETTINGS) == job["metadata"]["annotations"][SETTINGS]
    return "" if same else "it has other settings"


@contextlib.contextmanager
def _beating(heartbeat: Path) -> Iterator[None]:
    """Show the nodes that they are waited for, as long as the body runs."""
    ended = threading.Event()
    heartbeat.touch()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a volume that is away may come back
                heartbeat.touch()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(REQUEST_SECONDS[0])  # or it could write where the workspace is being removed


def end_when_orphaned(heartbeat: Path, minutes: float, stage: str) -> None:
    """End this process, with status 1 and one line of `stage`, once the heartbeat has been silent for so long.

    A thread looks, whatever the others do; what is lost is what has changed since the last checkpoint.
    """

    def look() -> None:
        looks = 0
        while looks < SILENT_LOOKS:
            sleep(BEAT_SECONDS)
            with contextlib.suppress(OSError):
                looks = looks + 1 if _silence(heartbeat) > 60 * minutes else 0
        progress.log_event(
            stage,
            "stopped",
            f"no pod has waited for this training for {minutes:g} minutes (compute.trainjob.orphan_minutes): the run "
            "was terminated, or its pod is gone; a later attempt goes on from the last checkpoint",
        )
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def _silence(heartbeat: Path) -> float:
    """Seconds since the last beat, by the clock of the volume: those of two nodes may differ."""
    clock = heartbeat.with_name(f"{heartbeat.name}.clock")
    clock.touch()
    return clock.stat().st_mtime - heartbeat.stat().st_mtime


@contextlib.contextmanager
def _cleaned_up(clean_up: Callable[[], None]) -> Iterator[None]:
    """Run `clean_up` once after the body, also where SIGTERM ends it, and let no second SIGTERM cut it short.

    Nothing rests on it: a pod that is killed does without.
    """

    def stop(signum: int, _: object) -> None:
        signal.signal(signum, signal.SIG_IGN)
        raise SystemExit(128 + signum)

    main = threading.current_thread() is threading.main_thread()  # no other may set a handler
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        try:
            yield
        finally:  # on its own, so that a signal before this line still comes to the clean-up
            if main:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
    finally:
        try:
            clean_up()
        finally:
            if main:
                signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _wait(cluster: _Cluster, name: str, compute: Compute) -> None:
    """Return when the TrainJob is complete; raise RunStopped where it will not be."""
    started = said_at = monotonic()
    seconds = 60 * compute.trainjob.timeout_minutes
    said = ""
    while True:
        job = cluster.find(name)
        if job is None or "deletionTimestamp" in job["metadata"]:
            raise RunStopped(f"TrainJob {name} was deleted while it was waited for, and not from here")
        pods = cluster.pods(name)
        cluster.note_failures(pods)
        if _condition(job, "Complete"):
            progress.log_event(cluster.stage, "note", f"TrainJob {name} is complete")
            return
        failed = _condition(job, "Failed")
        if failed:
            raise RunStopped(f"TrainJob {name} failed: {_words(failed)}{cluster.failure}")
        now, state = monotonic(), _state(job, pods, compute.nodes)
        if now - started >= seconds:
            last = (job.get("status", {}).get("conditions") or [None])[-1]
            raise RunStopped(
                f"TrainJob {name} has not ended after {compute.trainjob.timeout_minutes} minutes "
                f"(compute.trainjob.timeout_minutes); {state}; "
                + (f"last condition {last['type']}: {_words(last)}" if last else "it has no condition")
                + cluster.failure
            )
        if state != said or now - said_at >= REMIND_SECONDS:
            heard = cluster.last_words(pods) if state == said else ""
            progress.log_event(
                cluster.stage, "note", f"TrainJob {name}, {(now - started) / 60:.0f} min: {state}{heard}"
            )
            said, said_at = state, now
        sleep(min(POLL_SECONDS, seconds - (now - started)))


def _condition(job: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """The TrainJob's condition of this type, if it is true."""
    conditions = job.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind and one["status"] == "True"), None)


def _words(condition: dict[str, Any]) -> str:
    return ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))


def _state(job: dict[str, Any], pods: list[Pod] | None, nodes: int) -> str:
    """What the TrainJob is doing, in words; without `pods`, by its own status alone."""
    suspended = _condition(job, "Suspended")
    if suspended:
        return f"suspended, {_words(suspended)}"
    if pods is None:
        jobs = job.get("status", {}).get("jobsStatus", [])
        states = ("ready", "the nodes run"), ("active", "the nodes are being started")
        return next((words for key, words in states if any(one[key] for one in jobs)), "not started yet")
    if not pods:
        return "no pods yet"
    conditions = [condition for pod in pods for condition in pod["status"].get("conditions", [])]
    unscheduled = [one for one in conditions if one["type"] == "PodScheduled" and one["status"] == "False"]
    if unscheduled:
        return f"pending, {len(unscheduled)} of {len(pods)} pods are not scheduled: {_words(unscheduled[0])}"
    for pod, container in _containers(pods):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason", "ContainerCreating") not in ("ContainerCreating", "PodInitializing"):
            return f"pending, {pod['metadata']['name']} waits: {_words(waiting)}"
    phases = Counter(pod["status"]["phase"].lower() for pod in pods)
    return " and ".join(f"{count} {phase}" for phase, count in sorted(phases.items())) + f" of {nodes} nodes"


def _containers(pods: list[Pod]) -> Iterator[tuple[Pod, dict[str, Any]]]:
    """Every pod with the status of each of its containers."""
    return ((pod, container) for pod in pods for container in pod["status"].get("containerStatuses", []))


def _connect(compute: Compute, stage: str, client: ApiClient | None) -> _Cluster:
    """The cluster of `client`, of this pod, or of the kubeconfig; the last two by this order."""
    try:
        import kubernetes
    except ImportError:
        raise InputError(
            f"compute.nodes is {compute.nodes}, which needs the package kubernetes: pip install 'distilrank[train]'"
        ) from None
    namespace = "default"
    if client is None:
        try:
            client, namespace = kubernetes_api.connect()
        except kubernetes.config.ConfigException as error:
            raise InputError(f"compute.nodes is {compute.nodes}, but no Kubernetes cluster is known: {error}") from None
    home = kubernetes_api.own_namespace()
    return _Cluster(client, compute.trainjob.namespace or home or namespace, stage, home)


@dataclass(frozen=True)
class _Failure:
    """A node's process that ended badly: when, how, and the end of its log."""

    at: str
    pod: str
    reason: str
    log: str

    def __str__(self) -> str:
        log = f"; the end of its log:\n{self.log}" if self.log else "; its log cannot be read"
        return f"; first to fail was {self.pod} ({self.reason}){log}"


class _Forbidden(InputError):
    """The service account lacks a right."""


class _Cluster:
    """What is asked of the Kubernetes API: outages are waited out, refusals become errors that name what is missing."""

    def __init__(self, client: ApiClient, namespace: str, stage: str, home: str) -> None:
        """
        Args:
            client: how to reach it.
            namespace: that of the TrainJob.
            stage: who says what happens.
            home: the namespace of this pod; empty: this is none.
        """
        from kubernetes.client import CoreV1Api, CustomObjectsApi

        self.namespace, self.stage, self.home = namespace, stage, home
        self._custom, self._core = CustomObjectsApi(client), CoreV1Api(client)
        self._at = (GROUP, VERSION, namespace, PLURAL)
        self._logs: dict[tuple[str, str], str] = {}
        self._first: _Failure | None = None
        self._forbidden: set[str] = set()
        self._told: set[str] = set()

    def find(self, name: str) -> dict[str, Any] | None:
        """The TrainJob of this name, or None."""
        return self._ask("get", PLURAL, self._custom.get_namespaced_custom_object, *self._at, name, expected=404)

    def create(self, job: dict[str, Any]) -> None:
        """Create the TrainJob; one of the same name can only be this one, made by a request whose answer got lost."""
        # Strict: a server with another version of the API would drop what it does not know, the volume say.
        self._ask(
            "create",
            PLURAL,
            self._custom.create_namespaced_custom_object,
            *self._at,
            job,
            expected=409,
            field_validation="Strict",
        )

    def workflow(self) -> dict[str, Any] | None:
        """A reference to the Argo Workflow that this pod is of, with which Kubernetes is to delete the TrainJob.

        The pod itself would be the wrong owner: its next attempt takes the TrainJob over. None outside of a run, and
        where it cannot be known, which is told.
        """
        pod = os.environ.get(artifacts.POD_NAME, "")  # a host name is cut to 63 characters
        if not (self.home and pod):
            return None
        why = f"the run is in namespace {self.home}"
        if self.namespace == self.home:
            selector = f"metadata.name={pod}"  # so that the right to list pods, which is needed in any case, will do
            answer = self._try("list", "pods", self._core.list_namespaced_pod, self.home, field_selector=selector)
            if answer is None:
                return None  # which has been told
            for item in json.loads(answer)["items"]:
                for owner in item["metadata"].get("ownerReferences", []):
                    if owner["kind"] == "Workflow":
                        return {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
            why = f"pod {pod} belongs to no workflow"
        progress.log_event(self.stage, "note", f"the TrainJob will not be deleted with the run's workflow: {why}")
        return None

    def own(self, job: dict[str, Any], owner: dict[str, Any] | None) -> None:
        """Add an owner to a TrainJob of an earlier attempt, which another run may have made whose workflow will go."""
        name, owners = job["metadata"]["name"], job["metadata"].get("ownerReferences", [])
        if owner is None or owner["uid"] in [one["uid"] for one in owners]:
            return
        change = {"metadata": {"ownerReferences": [*owners, owner]}}  # a merge patch replaces lists
        patch = self._custom.patch_namespaced_custom_object
        try:
            self._ask("patch", PLURAL, patch, *self._at, name, change, patience=CLEANUP_SECONDS)
        except (InputError, RunStopped) as error:
            progress.log_event(self.stage, "note", f"TrainJob {name} may be deleted with an earlier run: {error}")

    def remove(self, name: str) -> None:
        """Delete the TrainJob and return when it is gone, and its pods with it: they write where others will.

        Raises:
            RunStopped: it is not gone after REMOVAL_SECONDS.
        """
        self._delete(name, OUTAGE_SECONDS)
        until = monotonic() + REMOVAL_SECONDS
        while self.find(name) is not None:
            if monotonic() > until:
                raise RunStopped(f"TrainJob {name} was deleted, but is not gone after {REMOVAL_SECONDS:.0f} s")
            sleep(POLL_SECONDS)

    def clean_up(self, name: str) -> None:
        """Have the TrainJob deleted; a failure to do so is told, and hides nothing that is being raised."""
        try:
            if self._delete(name, CLEANUP_SECONDS):
                progress.log_event(self.stage, "note", f"TrainJob {name} is deleted")
        except (InputError, RunStopped) as error:
            command = f"kubectl -n {self.namespace} delete trainjob {name}"
            progress.log_event(self.stage, "note", f"TrainJob {name} may be left behind ({error}); try: {command}")

    def _delete(self, name: str, patience: float) -> Any:
        return self._ask(
            "delete",
            PLURAL,
            self._custom.delete_namespaced_custom_object,
            *self._at,
            name,
            expected=404,
            patience=patience,
            propagation_policy="Foreground",  # it stays until its pods are gone, so that its absence means theirs
        )

    def pods(self, name: str) -> list[Pod] | None:
        """The TrainJob's pods by name; None where they cannot be listed."""
        selector = f"jobset.sigs.k8s.io/jobset-name={name}"
        found = self._try("list", "pods", self._core.list_namespaced_pod, self.namespace, label_selector=selector)
        return sorted(json.loads(found)["items"], key=lambda pod: pod["metadata"]["name"]) if found else None

    def note_failures(self, pods: list[Pod] | None) -> None:
        """Keep the end of the log of nodes that failed: it is gone once the node is restarted or its pod removed."""
        failed = []
        for pod, container in _containers(pods or []):
            now = container.get("state", {}).get("terminated")
            ended = now or container.get("lastState", {}).get("terminated")
            if container["name"] != NODE or not ended or ended["exitCode"] == 0:
                continue
            key = pod["metadata"]["name"], ended.get("finishedAt", "unknown")
            told = f"exit code {ended['exitCode']}", ended.get("reason"), pod["status"].get("message")
            reason = ", ".join(filter(None, told))
            if key not in self._logs:
                restarts = container["restartCount"]
                progress.log_event(self.stage, "note", f"{key[0]} failed: {reason}; restarts: {restarts}")
            if not self._logs.get(key):
                self._logs[key] = self._log(pod, TAIL_LINES, previous=not now)
            failed.append(_Failure(key[1], key[0], reason, self._logs[key]))
        if failed:
            self._first = min(failed, key=lambda failure: failure.at)

    @property
    def failure(self) -> str:
        """The first node to fail, of those that failed last; the others mostly fail because it did."""
        return str(self._first or "")

    def last_words(self, pods: list[Pod] | None) -> str:
        """The newest progress of the first running pod, as far as it can be read."""
        for pod in pods or []:
            if pod["status"]["phase"] == "Running":
                event = progress.parse(self._log(pod, 1))
                return f" | {event.text}" if event else ""
        return ""

    def _log(self, pod: Pod, lines: int, *, previous: bool = False) -> str:
        read, name = self._core.read_namespaced_pod_log, pod["metadata"]["name"]
        wanted = {"container": NODE, "tail_lines": lines, "previous": previous}
        log = self._try("get", "pods/log", read, name, self.namespace, **wanted)
        return (log or b"").decode("utf-8", "replace").strip()[-TAIL_CHARACTERS:]

    def _try(self, verb: str, resource: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> bytes | None:
        """The bytes that `call` answers, or None where it fails, which is no reason to stop; a refusal is told once."""

        def read(*arguments: Any, **options: Any) -> bytes:
            # Not as the client's objects: it refuses what lacks a field, and takes a log's line of JSON for an object.
            return call(*arguments, _preload_content=False, **options).data

        if resource in self._forbidden:
            return None
        try:
            return self._ask(verb, resource, read, *arguments, patience=0.0, **options)
        except RunStopped:
            return None
        except InputError as error:
            if isinstance(error, _Forbidden):
                self._forbidden.add(resource)
            if str(error) not in self._told:
                self._told.add(str(error))
                progress.log_event(self.stage, "note", f"going on without {resource}: {error}")
            return None

    def _ask(
        self,
        verb: str,
        resource: str,
        call: Callable[..., Any],
        *arguments: Any,
        expected: int = 0,
        patience: float | None = None,
        **options: Any,
    ) -> Any:
        """What `call` answers, or None where the answer is the status `expected`.

        Raises:
            InputError: the API refuses.
            RunStopped: it has been out of order for `patience` seconds.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        until = monotonic() + (OUTAGE_SECONDS if patience is None else patience)
        pause = 1.0
        while True:
            try:
                return call(*arguments, _request_timeout=REQUEST_SECONDS, **options)
            except ApiException as error:
                said = _said(error)
                if error.status not in TRANSIENT:
                    if error.status == expected and said:
                        return None
                    raise self._refusal(verb, resource, error, said) from error
                problem = f"{error.status}: {said or error.reason}"
            except HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            if monotonic() + pause > until:
                raise RunStopped(f"cannot {verb} {resource}: the Kubernetes API is out of order, {problem}")
            if pause == 1.0:
                progress.log_event(self.stage, "note", f"cannot {verb} {resource}, trying again: {problem}")
            sleep(pause)
            pause = min(2 * pause, 30.0)

    def _refusal(self, verb: str, resource: str, error: ApiException, said: str) -> InputError:
        if error.status == 404 and not said:
            kind = f"{PLURAL}.{GROUP}/{VERSION}"
            return InputError(f"Kubeflow Trainer is not installed: the cluster knows no {kind} ({PAGE})")
        if error.status == 403 and "denied the request" not in said:  # which is what admission webhooks say
            return _Forbidden(
                f"this pod's service account lacks the right to {verb} {resource} in namespace {self.namespace} "
                f"({PAGE} has the Role): {said}"
            )
        if error.status == 400 and "unknown field" in said:
            return InputError(f"Kubeflow Trainer is too old, expected 2.2 or newer: {said}")
        return InputError(
            f"the cluster refuses to {verb} {resource} in namespace {self.namespace}: "
            f"{error.status}: {said or error.reason}"
        )


def _said(error: ApiException) -> str:
    """The message of an API server's refusal; empty where something else answered, or the server knows no such path."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return ""
