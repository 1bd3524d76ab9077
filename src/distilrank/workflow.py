"""Reads from the Argo workflow of a Kubeflow run how its stages ended, and why.

Kubeflow's API has neither: a failed run and its tasks have no error, and a run's final status is UNKNOWN to its exit
handler unless the first stage failed. The workflow has the phase of every pod with a message. The message begins with
the container's exit status (argo-workflows 4.0.5, workflow/controller/operator.go, `inferFailedReason`) and ends with
the stage's termination message (`artifacts.TERMINATION_LOG`). The rest is read from the logs of the stages.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from distilrank.core import progress
from distilrank.core.errors import one_line

SUCCEEDED, FAILED, RUNNING, STOPPED, UNKNOWN = "SUCCEEDED", "FAILED", "RUNNING", "CANCELLED", "UNKNOWN"
"""States of a run. Kubeflow calls a terminated run FAILED too; its workflow tells the difference."""
ARGO_STATES = {"Succeeded": SUCCEEDED, "Failed": FAILED, "Error": FAILED, "Running": RUNNING, "Pending": RUNNING}
EXECUTOR = "executor"
"""KFP's name for the pod that runs a component (kubeflow/pipelines 2.17.0, argocompiler/container.go)."""
DRIVER = "-driver"
"""Suffix of KFP's name for the driver pod, which runs before each component."""
FNV_OFFSET, FNV_PRIME = 0x811C9DC5, 0x01000193
"""Constants of the 32-bit FNV-1a hash, which Argo puts into pod names."""
MAX_POD_PREFIX = 252 - 10
TAIL_LINES = 5
"""Last lines of a stage's log to show where the stage left no reason."""
TEXT_LENGTH = 500
"""Most characters of a reason."""

EXIT = re.compile(r"(?P<container>\w+): (?P<reason>\w*) ?\(exit code (?P<code>\d+)\)(?:: (?P<text>.*))?", re.DOTALL)
NOT_CREATED = re.compile(r"is invalid:|admission webhook|forbidden:|exceeded quota|must not|cannot create")
NOT_STARTED = re.compile(r"ErrImagePull|ImagePullBackOff|InvalidImageName|CreateContainer\w*Error|before \w+ container")
TIMED_OUT = re.compile(r"longer than the specified deadline|exceeded its deadline|step exceeded|DeadlineExceeded")
POD_LOST = re.compile(
    r"pod deleted|node shutdown|NodeLost|node was lost|[Pp]reempt|TaintManager|not ready"
    r"|^pod failed: |^can't find failed message for pod "  # `inferFailedReason`, where no container has terminated
)
EVICTED = re.compile(r"[Ee]vict|low on resource|ephemeral.local storage usage exceeds|exceeds the total limit")
STORAGE = re.compile(r"failed to (?:up|down)load (?:in|out)put artifact|failed to publish execution")
"""Output of KFP's launcher when the object store or the metadata store is unreachable (2.17.0, v2/component)."""
CHILD_KILLED = re.compile(r"failed to execute successfully: signal: killed")
"""Output of the launcher when the kernel killed the stage but not the launcher, for lack of memory."""
EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt|Exit)\b.*")


class Cause(StrEnum):
    """Why the pod of a stage failed."""

    BAD_INPUT = "bad input"
    STOPPED = "stopped"
    CRASHED = "failed"
    OUT_OF_MEMORY = "out of memory"
    EVICTED = "evicted"
    POD_LOST = "pod lost"
    KILLED = "killed"
    STORAGE_LOST = "storage unreachable"
    NOT_STARTED = "pod cannot start"
    TIMED_OUT = "timed out"
    OUTSIDE = "failed outside of the stage"


TRANSIENT = {Cause.EVICTED, Cause.POD_LOST, Cause.KILLED, Cause.STORAGE_LOST, Cause.OUTSIDE}
"""Causes that may not recur when the stage runs again with the same inputs."""
STAGES = {
    "check-inputs": "preflight",
    "check-champion": "preflight",
    "prepare-data": "prepare",
    "sample-newest": "sample",
    "score-newest": "score",
    "rehearse-models": "rehearse",
    "train-teacher": "teacher",
    "label-shard": "label",
    "distil-student": "student",
    "evaluate-student": "evaluate",
    "measure-drift": "drift",
    "push-drift-snapshot": "snapshot",
    "decide": "gate",
    "render-report": "report",
    "promote-student": "promote",
    "watch-champion": "monitor",
    "report-outcome": "notify",
}
"""Stages by KFP's task names, since a workflow has only these; a test compares them with the pipelines."""
DECIDING = ("gate", "promote", "monitor")
"""Stages that print a decision."""
EVENTS = {"bad input": Cause.BAD_INPUT, "stopped": Cause.STOPPED, "failed": Cause.CRASHED}
OWN_ERRORS = {"distilrank.core.errors.InputError": Cause.BAD_INPUT, "distilrank.core.errors.RunStopped": Cause.STOPPED}
"""Causes by exception names in tracebacks, for errors of a component before its stage logs anything."""


@dataclass(frozen=True)
class Node:
    """A pod of the workflow, which is one attempt at a task."""

    id: str
    task: str
    """KFP's name of the task, such as `check-inputs`."""
    pod: str
    phase: str
    """Pending, Running, Succeeded, Failed or Error; empty where the pod does not exist yet."""
    message: str
    is_driver: bool = False

    @property
    def stage(self) -> str:
        """Stage of the task; KFP's task name if it is not one of our stages."""
        return STAGES.get(self.task, self.task)

    @property
    def has_failed(self) -> bool:
        """Whether the pod failed."""
        return self.phase in ("Failed", "Error")


@dataclass(frozen=True)
class Failure:
    """Why one stage failed."""

    stage: str
    cause: Cause
    reason: str
    """Reason in one line; may be empty."""
    log_tail: tuple[str, ...] = ()
    """Last lines of the log, where the stage left no reason."""

    def __str__(self) -> str:
        reason = self.reason or (self.log_tail[-1] if self.log_tail else "")
        return ": ".join(filter(None, (self.stage, self.cause, reason))) if self.stage else reason

    @property
    def hint(self) -> str:
        """What to do about the failure; empty where the reason says it."""
        return {
            Cause.OUT_OF_MEMORY: f"raise cluster.stages.{self.stage}.memory if it happens again",
            Cause.EVICTED: "the node was short of memory or disk; `kubectl describe node` says which",
            Cause.TIMED_OUT: f"raise cluster.stages.{self.stage}.timeout_minutes; checkpoints are resumed",
        }.get(self.cause, "")


@dataclass(frozen=True)
class RunEnd:
    """How a run ended, or its present state."""

    state: str
    """SUCCEEDED, FAILED, CANCELLED, RUNNING or UNKNOWN."""
    failures: tuple[Failure, ...] = ()
    decisions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Decisions by stage: the verdict of `gate` (`outcome`, `failed`, `candidate`, `champion`), the new champion of
    `promote` (`version`), and the alarm of `monitor` (`alarm`, `failed`). Stages that did not run are missing."""

    @property
    def error(self) -> str:
        """All failures in one line."""
        return "; ".join(dict.fromkeys(map(str, self.failures)))  # shards often fail alike

    @property
    def outcome(self) -> str:
        """Decision of the gate: promoted, cold_start, overridden, refused or unchanged; empty if it did not decide."""
        return self.decisions.get("gate", {}).get("outcome", "")

    @property
    def version(self) -> str:
        """Version that the run promoted; empty if there is none."""
        return self.decisions.get("promote", {}).get("version", "")

    @property
    def may_pass(self) -> bool:
        """Whether a retry of the failed stages may succeed with the same inputs."""
        causes = {failure.cause for failure in self.failures}
        return self.state == FAILED and bool(causes) and causes <= TRANSIENT | {Cause.OUT_OF_MEMORY}

    @property
    def is_out_of_memory(self) -> bool:
        """Whether a pod was killed for exceeding its memory limit."""
        return any(failure.cause == Cause.OUT_OF_MEMORY for failure in self.failures)

    @property
    def summary(self) -> str:
        """Summary of the run in one line."""
        if self.state == STOPPED:
            return "stopped by a person"
        if self.state == FAILED:
            return f"failed: {self.error or 'Kubeflow names no stage'}"
        if self.state != SUCCEEDED:
            return "running" if self.state == RUNNING else "ended, and nothing says how"
        return ", ".join(filter(None, (self._alarm, self._decision))) or "succeeded"

    @property
    def _alarm(self) -> str:
        monitor = self.decisions.get("monitor")
        if monitor is None:
            return ""
        return f"alarm ({', '.join(monitor['failed'])})" if monitor["alarm"] else "no alarm"

    @property
    def _decision(self) -> str:
        gate = self.decisions.get("gate", {})
        if self.outcome == "refused":
            return f"the student was refused ({', '.join(gate.get('failed', ()))})"
        if self.outcome == "unchanged":
            return f"unchanged: the student is the champion {gate.get('candidate', '')} itself".rstrip()
        if "gate" in self.decisions and not self.outcome:
            return "the student was not promoted, and the run's report says why"
        how = {"cold_start": "promoted as the first champion:", "overridden": "promoted by an override:"}
        return f"{how.get(self.outcome, 'promoted')} {self.version}".strip() if self.outcome or self.version else ""


def from_manifest(text: str) -> dict[str, Any]:
    """Parse an Argo Workflow from JSON, as `unpacked`.

    Raises:
        ValueError: the text is not a JSON object, or is nested deeper than Python reads.
    """
    try:
        manifest = json.loads(text)
    except RecursionError:
        raise ValueError("an Argo Workflow is a JSON object, not nested thousands of levels deep") from None
    if not isinstance(manifest, dict):
        raise ValueError("an Argo Workflow is a JSON object")
    return unpacked(manifest)


def unpacked(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the workflow with its nodes decompressed; Argo compresses large numbers of them."""
    status = manifest.setdefault("status", {})
    if status.get("compressedNodes") and not status.get("nodes"):
        status["nodes"] = json.loads(gzip.decompress(base64.b64decode(status["compressedNodes"])))
    return manifest


def nodes(manifest: Mapping[str, Any]) -> list[Node]:
    """Return the pods that run components or their drivers: the last attempt of each task, in order of time."""
    statuses = _statuses(manifest)
    superseded = _superseded(statuses)
    return [node for node in _pods(manifest) if not _is_within(statuses[node.id]["name"], superseded)]


def attempts(manifest: Mapping[str, Any], task: str) -> list[Node]:
    """Return all pods that have run a task's component, in order of time."""
    return [node for node in _pods(manifest) if node.task == task and not node.is_driver]


def message(manifest: Mapping[str, Any], task: str) -> str:
    """Return the last message of a task's pods, including its drivers; empty if there is none."""
    messages = [node.message for node in _pods(manifest) if node.task == task and node.message]
    return messages[-1] if messages else ""


def _statuses(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    return (manifest.get("status") or {}).get("nodes") or {}


def _pods(manifest: Mapping[str, Any]) -> list[Node]:
    workflow = (manifest.get("metadata") or {}).get("name", "")
    pods = sorted(
        (status for status in _statuses(manifest).values() if status.get("type") == "Pod"),
        key=lambda status: (status.get("startedAt") or "9", status.get("finishedAt") or "9", status.get("id", "")),
    )
    return [node for status in pods if (node := _node(status, workflow))]


def _superseded(statuses: Mapping[str, Any]) -> set[str]:
    """Return the names of attempts, of pods and of whole DAGs, that were followed by another attempt.

    With Kubeflow's manifests, DAGs are retried too: a DAG whose pod still has the phase Error after its retries has the
    phase Error itself (argo-workflows 4.0.5, workflow/controller/dag.go, assessDAGPhase). The other children of a Retry
    node are hooks, such as the exit handler.
    """
    names: set[str] = set()
    for status in statuses.values():
        if status.get("type") == "Retry":
            children = [statuses.get(id, {}).get("name", "") for id in status.get("children") or []]
            names.update([name for name in children if name.startswith(f"{status.get('name', '')}(")][:-1])
    return names


def _is_within(name: str, attempts: set[str]) -> bool:
    """Whether a node is one of the attempts or belongs to one."""
    parts = name.split(".")
    return any(".".join(parts[: length + 1]) in attempts for length in range(len(parts)))


def _node(status: Mapping[str, Any], workflow: str) -> Node | None:
    # WORKFLOW.root.check-inputs.executor(0), with (0) behind each part where Argo's default retries are set
    path = [re.sub(r"\(.*\)$", "", part) for part in str(status.get("name", "")).split(".")]
    is_driver = path[-1].endswith(DRIVER)
    if len(path) < 2 or not (is_driver or path[-1] == EXECUTOR):
        return None
    return Node(
        id=status.get("id", ""),
        task=path[-1].removesuffix(DRIVER) if is_driver else path[-2],
        pod=pod_name(workflow, status.get("templateName", ""), status.get("name", "")),
        phase=status.get("phase", ""),
        message=one_line(status.get("message") or "", None),
        is_driver=is_driver,
    )


def pod_name(workflow: str, template: str, node: str) -> str:
    """Return the name of a node's pod (argo-workflows 4.0.5, workflow/util/pod_name.go, version 2)."""
    digest = FNV_OFFSET
    for byte in node.encode():
        digest = (digest ^ byte) * FNV_PRIME & 0xFFFFFFFF
    prefix = f"{workflow}-{template}" if template else workflow
    return f"{prefix[:MAX_POD_PREFIX]}-{digest}"


def is_terminated(manifest: Mapping[str, Any]) -> bool:
    """Whether a person stopped the run; only then does Kubeflow set the workflow's deadline to 0."""
    spec = manifest.get("spec") or {}
    return spec.get("activeDeadlineSeconds") == 0 or spec.get("shutdown") in ("Stop", "Terminate")


def read(manifest: Mapping[str, Any], log: Callable[[Node], str], *, has_ended: bool = False) -> RunEnd:
    """Return how a run ended, or its present state.

    Args:
        manifest: workflow of the run.
        log: returns the log of a node's pod; empty if it cannot be read.
        has_ended: whether all stages have ended although the workflow's exit handler is still running.
    """
    pods = nodes(manifest)
    failures = tuple(failure(node, log) for node in pods if node.has_failed)
    state = ARGO_STATES.get((manifest.get("status") or {}).get("phase", ""), UNKNOWN)
    if has_ended:
        state = FAILED if failures else SUCCEEDED
    if is_terminated(manifest) and (has_ended or state != SUCCEEDED):  # a run may be stopped between two pods
        return RunEnd(STOPPED)
    return RunEnd(state, failures, {} if state == RUNNING else _decisions(pods, log))


def failure(node: Node, log: Callable[[Node], str]) -> Failure:
    """Return why a pod failed, from its node's message or, where that does not say, from its log."""
    stage = node.stage
    if node.is_driver:
        return Failure(stage, Cause.OUTSIDE, _short(node.message), _tail(log(node)))
    exit_status = EXIT.match(node.message)
    if exit_status is None:
        return Failure(stage, _cause_without_exit(node.message), _short(node.message))
    if exit_status["reason"] == "OOMKilled":
        return Failure(stage, Cause.OUT_OF_MEMORY, _short(node.message))
    if exit_status["container"] != "main":
        return Failure(stage, Cause.OUTSIDE, _short(node.message))
    event = progress.parse(exit_status["text"] or "")
    text = "" if event else log(node)
    event = event or _last_failure(text)
    if event:
        return Failure(event.stage.partition("-")[0], EVENTS[event.event], _short(event.text))
    if uploads := STORAGE.findall(text):
        return Failure(stage, Cause.STORAGE_LOST, _short(uploads[-1]), _tail(text))
    if killed := CHILD_KILLED.search(text):
        return Failure(stage, Cause.OUT_OF_MEMORY, killed[0], _tail(text))
    if exit_status["code"] in ("137", "143"):
        return Failure(stage, Cause.KILLED, _short(node.message), _tail(text))
    exception = _last_exception(text)
    name, _, words = exception.partition(": ")
    if name in OWN_ERRORS:
        return Failure(stage, OWN_ERRORS[name], words)
    return Failure(stage, Cause.CRASHED, exception or _short(node.message), _tail(text))


def _cause_without_exit(message: str) -> Cause:
    """Return the cause of a failure whose container has no exit status."""
    patterns = {
        TIMED_OUT: Cause.TIMED_OUT,
        EVICTED: Cause.EVICTED,
        POD_LOST: Cause.POD_LOST,
        NOT_STARTED: Cause.NOT_STARTED,
        NOT_CREATED: Cause.NOT_STARTED,
    }
    return next((cause for pattern, cause in patterns.items() if pattern.search(message)), Cause.OUTSIDE)


def _last_failure(text: str) -> progress.Event | None:
    events = [event for event in map(progress.parse, text.splitlines()) if event and event.event in EVENTS]
    return events[-1] if events else None


def _last_exception(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if EXCEPTION.match(line)]
    return _short(lines[-1]) if lines else ""


def _tail(text: str) -> tuple[str, ...]:
    return tuple(line[:TEXT_LENGTH] for line in text.splitlines() if line.strip())[-TAIL_LINES:]


def _short(text: str) -> str:
    return one_line(text, TEXT_LENGTH)


def _decisions(pods: list[Node], log: Callable[[Node], str]) -> dict[str, Any]:
    """Return the decisions of the deciding stages, from their logs."""
    decisions: dict[str, Any] = {}
    for node in pods:
        if node.stage in DECIDING and node.phase == "Succeeded" and not node.is_driver:
            for event in filter(None, map(progress.parse, log(node).splitlines())):
                if event.event == "outcome":
                    with contextlib.suppress(ValueError, RecursionError):  # a truncated line
                        decisions[event.stage] = json.loads(event.text)
    return decisions
