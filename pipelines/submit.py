"""Submit a single run to a cluster, and follow it to its end."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api as api
import yaml
from pydantic import TypeAdapter, ValidationError

from distilrank.config import Config, Image
from distilrank.core.errors import InputError, RunStopped, one_line
from distilrank.workflow import FAILED, STOPPED, SUCCEEDED, Cause, Failure, RunEnd, nodes
from pipelines import compiling
from pipelines.kubeflow import Kubeflow
from pipelines.packages import Package

POLL_SECONDS = 5.0
PROBLEMS_SECONDS = 30.0
"""Interval of checks for pods that do not start; a workflow of many shards is a megabyte."""
STARTUP_MESSAGES = ("PodInitializing", "ContainerCreating")
"""Messages of every pod for some seconds (argo-workflows 4.0.5, workflow/controller/operator.go, getPendingReason)."""
OUTAGE_SECONDS = 900.0
"""How long the API may be unreachable while waiting for a run; an upgrade of Kubeflow takes minutes."""
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
QUIET = ("RUNTIME_STATE_UNSPECIFIED", "PENDING")
"""States of a task that are not reported."""


def read_package(path: Path) -> Package:
    """Read a compiled pipeline, and check that this version of distilrank wrote it.

    Raises:
        InputError: the file is unreadable, is not one of our pipelines, was compiled by another version, or has an
            image with a moving tag.
    """
    try:
        documents = list(yaml.safe_load_all(path.read_bytes()))
    except FileNotFoundError:
        raise InputError(f"--pipeline {path}: no such file; `python -m pipelines compile` writes one") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"--pipeline {path}: not readable as YAML ({one_line(error)})") from None
    try:
        specification = documents[0]
        name = specification["pipelineInfo"]["name"]
        inputs = set(specification["root"]["inputDefinitions"]["parameters"])
        version = specification["sdkVersion"]
        executors = specification["deploymentSpec"]["executors"].values()
        images = {executor["container"]["image"] for executor in executors if "container" in executor}
    except (IndexError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"--pipeline {path}: not a compiled pipeline; `python -m pipelines compile` writes one"
        ) from None
    if name not in ("distill", "monitor"):
        raise InputError(f"--pipeline {path}: contains the pipeline {name!r}, expected distill or monitor")
    again = "compile it again with this version"
    expected = set(compiling.pipeline(name).component_spec.inputs)
    if inputs != expected:
        extra, missing = (", ".join(sorted(names)) for names in (inputs - expected, expected - inputs))
        differences = [f"{verb} {names}" for verb, names in (("has", extra), ("lacks", missing)) if names]
        raise InputError(f"--pipeline {path}: compiled by another version, it {' and '.join(differences)}; {again}")
    if version != f"kfp-{kfp.__version__}":
        raise InputError(f"--pipeline {path}: compiled by {version}, expected kfp-{kfp.__version__}; {again}")
    for image in sorted(images):
        try:
            TypeAdapter(Image).validate_python(image)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise InputError(f"--pipeline {path}: image {image}: {reason}") from None
    return Package.of(documents)


def inputs(package: Package) -> set[str]:
    """Return the names of the pipeline's parameters."""
    return set(compiling.pipeline(package.pipeline).component_spec.inputs)


def uncached(package: Package) -> Package:
    """Return the same pipeline with caching disabled for all tasks."""
    documents = package.documents()
    specification = documents[0]
    for component in (specification["root"], *specification["components"].values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            task["cachingOptions"] = {}
    return Package.of(documents)


def submit(
    kubeflow: Kubeflow, package: Package, config: Config, *, name: str, experiment: str, parameters: dict[str, Any]
) -> str:
    """Start a run and return its ID.

    Args:
        kubeflow: connection to the cluster.
        package: the pipeline; uploaded if the cluster does not have it.
        config: its section `cluster` has the service account and the location of artifacts.
        name: name of the run.
        experiment: name of the experiment; created if it does not exist.
        parameters: parameters of the pipeline that differ from the compiled defaults.
    """
    version = kubeflow.version(package)
    return kubeflow.create_run(
        api.V2beta1Run(
            experiment_id=kubeflow.experiment(experiment),
            display_name=name,
            description=f"distilrank: submission={uuid.uuid4().hex}",
            pipeline_version_reference=version.reference(),
            runtime_config=api.V2beta1RuntimeConfig(
                pipeline_root=config.cluster.pipeline_root or None, parameters=parameters
            ),
            service_account=config.cluster.service_account or None,
        )
    )


def stages(package: Package) -> dict[str, str]:
    """Return the stage of each task, by the task's name in the pipeline and by its display name."""
    specification = package.documents()[0]
    stage_by_task: dict[str, str] = {}
    for component in (specification["root"], *specification["components"].values()):
        for key, task in component.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in specification["components"][task["componentRef"]["name"]]:
                stage = task["taskInfo"]["name"]
                stage_by_task |= {key: stage, stage: stage}
    return stage_by_task


def follow(
    kubeflow: Kubeflow,
    run_id: str,
    stages: dict[str, str],
    *,
    timeout_minutes: float,
    retries: int = 0,
    failed_at: datetime | None = None,
    report: Callable[[str], None],
) -> RunEnd:
    """Wait for the end of a run.

    Args:
        kubeflow: connection to the cluster.
        run_id: ID of the run.
        stages: stage by task, see `stages`; other tasks are internal to Kubeflow.
        timeout_minutes: maximum waiting time; 0: no limit.
        retries: maximum number of retries after transient failures.
        failed_at: time of the failure before a retry; Kubeflow may report that failure once more.
        report: called with a line for each change of a stage's state, each obstacle of a pod, and each retry.

    Raises:
        RunStopped: the run did not end in time and continues, or it was deleted.
    """
    deadline = time.monotonic() + timeout_minutes * 60 if timeout_minutes else None
    states: dict[str, str] = {}
    problems = _PodProblems(kubeflow, run_id)
    was_out_of_memory = False
    while True:
        seconds_left = math.inf if deadline is None else deadline - time.monotonic()
        run = kubeflow.run(run_id, outage_seconds=min(OUTAGE_SECONDS, seconds_left))
        if run is None:
            raise RunStopped(f"the run was deleted: {kubeflow.run_url(run_id)}")
        # The persistence agent of 2.17.0 may still report the state of the workflow before the retry.
        is_stale = run.state == "FAILED" and failed_at is not None and run.finished_at == failed_at
        for line in () if is_stale else _changes(run, stages, states):
            report(line)
        if run.state in ENDED and not is_stale:
            end = _end(kubeflow, run, stages)
            if not retries or not end.may_pass or (end.is_out_of_memory and was_out_of_memory):
                return end
            retries -= 1
            was_out_of_memory = was_out_of_memory or end.is_out_of_memory
            report(f"{end.summary}; the failed stages are retried, retries left: {retries}")
            states.clear()
            failed_at = run.finished_at
            kubeflow.retry(run_id)
        elif not is_stale:
            for line in problems.new():
                report(line)
        if deadline is not None and time.monotonic() + POLL_SECONDS > deadline:
            raise RunStopped(f"waited for {timeout_minutes:g} minutes; the run continues: {kubeflow.run_url(run_id)}")
        time.sleep(POLL_SECONDS)


@dataclass
class _PodProblems:
    """Reports what keeps pods from starting and failed attempts, which the states of tasks (RUNNING) do not show."""

    kubeflow: Kubeflow
    run_id: str
    _reported: set[tuple[str, str]] = field(default_factory=set)
    _next: float = field(default_factory=lambda: time.monotonic() + PROBLEMS_SECONDS)

    def new(self) -> Iterator[str]:
        """Yield a line for each new problem; the workflow is read at most every PROBLEMS_SECONDS."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PROBLEMS_SECONDS
        for node in nodes(self.kubeflow.workflow(self.run_id)):
            if node.phase in ("Succeeded", "Skipped") or node.message in ("", *STARTUP_MESSAGES):
                continue
            if (node.id, node.message) in self._reported:
                continue
            self._reported.add((node.id, node.message))
            verb = "an attempt failed" if node.has_failed else "waits"
            yield f"{node.stage:<12} {verb}: {node.message[:300]}"


def _tasks(run: api.V2beta1Run, stages: dict[str, str]) -> Iterator[tuple[str, api.V2beta1PipelineTaskDetail]]:
    details = run.run_details.task_details if run.run_details else None
    return ((stages[task.display_name], task) for task in details or [] if task.display_name in stages)


def _changes(run: api.V2beta1Run, stages: dict[str, str], states: dict[str, str]) -> Iterator[str]:
    """Yield a line for each change since the last poll, and update `states`."""
    for stage, task in _tasks(run, stages):
        if task.state and task.state not in QUIET and states.get(task.task_id) != task.state:
            states[task.task_id] = task.state
            yield f"{stage:<12} {task.state.lower()}"


def _end(kubeflow: Kubeflow, run: api.V2beta1Run, stages: dict[str, str]) -> RunEnd:
    """Determine how a run ended from its workflow and logs, or if the server has neither, from its tasks."""
    end = kubeflow.end(run.run_id)
    state = {"CANCELED": STOPPED, "SKIPPED": SUCCEEDED}.get(run.state, run.state)
    if end.state == STOPPED or (end.failures and state == FAILED):
        return end
    tasks = list(_tasks(run, stages))
    if state != SUCCEEDED:
        failures = tuple(Failure(stage, Cause.CRASHED, "") for stage, task in tasks if task.state == "FAILED")
        return RunEnd(state, failures)
    decisions = dict(end.decisions)
    if "gate" not in decisions:
        succeeded = {stage for stage, task in tasks if task.state == "SUCCEEDED"}
        if "promote" in succeeded:
            decisions["gate"] = {"outcome": "promoted"}
        elif "gate" in succeeded:
            decisions["gate"] = {}
    return RunEnd(state, (), decisions)
