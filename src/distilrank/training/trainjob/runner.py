"""Run a command as a TrainJob: create it or take an earlier one over, wait, report, delete."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from distilrank.config import Compute
from distilrank.core import progress
from distilrank.core.errors import RunStopped
from distilrank.training.trainjob import manifest
from distilrank.training.trainjob.cluster import Cluster, Pod, connect, container_statuses
from distilrank.training.trainjob.heartbeat import beating

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

POLL_SECONDS = 5.0
REMIND_SECONDS = 60.0


def run(
    name: str,
    command: list[str],
    compute: Compute,
    stage: str,
    *,
    heartbeat: Path,
    client: ApiClient | None = None,
) -> None:
    """Run `command` on `compute.nodes` nodes and wait for its end; the TrainJob is deleted on return or exception.

    A TrainJob of this name that still runs with the same settings was created by a killed attempt, and is waited for.
    Any other one is removed first. SIGTERM ends the wait as SystemExit, if this process has the time.

    Args:
        name: from `manifest.job_name`.
        command: what every node runs, `torchrun -m ...`; its files lie below `compute.trainjob.mount`.
        compute: number of nodes and the TrainJob's settings.
        stage: name that progress lines begin with.
        heartbeat: file below `compute.trainjob.mount` by which the nodes know that somebody waits for them.
        client: how to reach the cluster; None: as this pod, or as the kubeconfig says.

    Raises:
        InputError: no cluster, no Kubeflow Trainer, a missing right or runtime, a TrainJob that the API refuses.
        RunStopped: the TrainJob failed (with the end of the failed node's log), exceeded `timeout_minutes`, was
            deleted by someone else, or the Kubernetes API was unreachable.
    """
    manifest.check(compute)
    cluster = connect(compute, stage, client)
    owner = cluster.workflow()
    job = manifest.build(name, command, compute, owner)
    with beating(heartbeat):
        existing = cluster.get(name)
        with _cleaning_up(lambda: cluster.clean_up(name)):
            obstacle = _reason_to_remove(existing, job) if existing else ""
            if obstacle:
                progress.log_event(stage, "note", f"removing an earlier TrainJob {name}: {obstacle}")
                cluster.remove(name)
                existing = None
            if existing is None:
                cluster.create(job)
                size = f"{compute.nodes} nodes, {compute.trainjob.gpus or 'no'} GPUs each"
                progress.log_event(stage, "note", f"created TrainJob {cluster.namespace}/{name}: {size}")
            else:
                message = f"TrainJob {cluster.namespace}/{name} of an earlier attempt continues"
                progress.log_event(stage, "note", message)
                cluster.add_owner(existing, owner)
            _wait(cluster, name, compute)


def _reason_to_remove(existing: dict[str, Any], job: dict[str, Any]) -> str:
    """Why the TrainJob `existing` cannot be used in place of `job`; empty: it can."""
    metadata = existing["metadata"]
    ended = _true_condition(existing, "Failed") or _true_condition(existing, "Complete")
    if "deletionTimestamp" in metadata:
        return "it is being deleted"
    if ended:
        return f"it has ended, {ended['type']}"
    digest = metadata.get("annotations", {}).get(manifest.SETTINGS)
    return "" if digest == job["metadata"]["annotations"][manifest.SETTINGS] else "it has other settings"


@contextlib.contextmanager
def _cleaning_up(clean_up: Callable[[], None]) -> Iterator[None]:
    """Run `clean_up` once after the body, also if SIGTERM ends it, and let no second SIGTERM interrupt it.

    Nothing depends on it: a pod that is killed leaves the TrainJob to its heartbeat, its owner and its deadline.
    """

    def stop(signum: int, _: object) -> None:
        signal.signal(signum, signal.SIG_IGN)
        raise SystemExit(128 + signum)

    is_main_thread = threading.current_thread() is threading.main_thread()  # no other thread may set a handler
    previous = signal.signal(signal.SIGTERM, stop) if is_main_thread else None
    try:
        try:
            yield
        finally:  # a separate block, so that a signal before this line still leads to the clean-up
            if is_main_thread:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
    finally:
        try:
            clean_up()
        finally:
            if is_main_thread:
                signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


def _wait(cluster: Cluster, name: str, compute: Compute) -> None:
    """Return when the TrainJob is complete; raise RunStopped if it will not be."""
    started = reported_at = monotonic()
    timeout = 60 * compute.trainjob.timeout_minutes
    reported_state = ""
    while True:
        job = cluster.get(name)
        if job is None or "deletionTimestamp" in job["metadata"]:
            raise RunStopped(f"TrainJob {name} was deleted by someone else while this run waited for it")
        pods = cluster.pods(name)
        cluster.note_failures(pods)
        if _true_condition(job, "Complete"):
            progress.log_event(cluster.stage, "note", f"TrainJob {name} is complete")
            return
        failed = _true_condition(job, "Failed")
        if failed:
            raise RunStopped(f"TrainJob {name} failed: {_describe_condition(failed)}{cluster.failure}")
        now, state = monotonic(), _describe_state(job, pods, compute.nodes)
        if now - started >= timeout:
            last = (job.get("status", {}).get("conditions") or [None])[-1]
            raise RunStopped(
                f"TrainJob {name} has not ended after {compute.trainjob.timeout_minutes} minutes "
                f"(compute.trainjob.timeout_minutes); {state}; "
                + (f"last condition {last['type']}: {_describe_condition(last)}" if last else "it has no condition")
                + cluster.failure
            )
        if state != reported_state or now - reported_at >= REMIND_SECONDS:
            newest = cluster.newest_progress(pods) if state == reported_state else ""
            message = f"TrainJob {name}, {(now - started) / 60:.0f} min: {state}{newest}"
            progress.log_event(cluster.stage, "note", message)
            reported_state, reported_at = state, now
        sleep(min(POLL_SECONDS, timeout - (now - started)))


def _true_condition(job: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """The TrainJob's condition of this type, if its status is true."""
    conditions = job.get("status", {}).get("conditions", [])
    return next((item for item in conditions if item["type"] == kind and item["status"] == "True"), None)


def _describe_condition(condition: dict[str, Any]) -> str:
    return ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))


def _describe_state(job: dict[str, Any], pods: list[Pod] | None, nodes: int) -> str:
    """The state of the TrainJob for people; without `pods`, by its own status alone."""
    suspended = _true_condition(job, "Suspended")
    if suspended:
        return f"suspended, {_describe_condition(suspended)}"
    if pods is None:
        statuses = job.get("status", {}).get("jobsStatus", [])
        states = ("ready", "the nodes run"), ("active", "the nodes are being started")
        return next((text for key, text in states if any(status[key] for status in statuses)), "not started yet")
    if not pods:
        return "no pods yet"
    conditions = [condition for pod in pods for condition in pod["status"].get("conditions", [])]
    unscheduled = [item for item in conditions if item["type"] == "PodScheduled" and item["status"] == "False"]
    if unscheduled:
        reason = _describe_condition(unscheduled[0])
        return f"pending, {len(unscheduled)} of {len(pods)} pods are not scheduled: {reason}"
    for pod, container in container_statuses(pods):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason", "ContainerCreating") not in ("ContainerCreating", "PodInitializing"):
            return f"pending, {pod['metadata']['name']} waits: {_describe_condition(waiting)}"
    phases = Counter(pod["status"]["phase"].lower() for pod in pods)
    return " and ".join(f"{count} {phase}" for phase, count in sorted(phases.items())) + f" of {nodes} nodes"
