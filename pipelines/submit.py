"""A single run on a cluster: what is submitted, and how it goes on."""

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
from distilrank.core.errors import InputError, RunStopped
from distilrank.workflow import FAILED, STOPPED, SUCCEEDED, Cause, Failure, RunEnd, nodes
from pipelines import compiling
from pipelines.kubeflow import Kubeflow
from pipelines.packages import Package

POLL_SECONDS = 5.0
PROBLEMS_SECONDS = 30.0
"""Between two looks at what keeps pods from starting: a workflow of many shards is a megabyte."""
STARTING = ("PodInitializing", "ContainerCreating")
"""Messages of every pod for some seconds (argo-workflows 4.0.5, workflow/controller/operator.go, getPendingReason)."""
OUTAGE_SECONDS = 900.0
"""How long the API may be away while a run is waited for: an upgrade of Kubeflow takes minutes."""
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
QUIET = ("RUNTIME_STATE_UNSPECIFIED", "PENDING")
"""States of a task that tell nobody anything."""


def read_package(path: Path) -> Package:
    """A compiled pipeline that this version of distilrank can have written.

    Raises:
        InputError: it cannot be read, is no pipeline of ours, is of another version, or has an image whose tag moves.
    """
    try:
        documents = list(yaml.safe_load_all(path.read_bytes()))
    except FileNotFoundError:
        raise InputError(f"--pipeline {path}: no such file; `python -m pipelines compile` writes one") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"--pipeline {path}: not readable as YAML ({' '.join(str(error).split())[:200]})") from None
    try:
        specification = documents[0]
        name = specification["pipelineInfo"]["name"]
        inputs = set(specification["root"]["inputDefinitions"]["parameters"])
        version = specification["sdkVersion"]
        executors = specification["deploymentSpec"]["executors"].values()
        images = {one["container"]["image"] for one in executors if "container" in one}
    except (IndexError, KeyError, TypeError, AttributeError):
        raise InputError(f"--pipeline {path}: no compiled pipeline; `python -m pipelines compile` writes one") from None
    if name not in ("distill", "monitor"):
        raise InputError(f"--pipeline {path}: holds pipeline {name!r}, expected distill or monitor")
    again = "compile it again with this version"
    expected = set(compiling.pipeline(name).component_spec.inputs)
    if inputs != expected:
        more, less = (", ".join(sorted(one)) for one in (inputs - expected, expected - inputs))
        differences = [f"{text} {these}" for text, these in (("has", more), ("lacks", less)) if these]
        raise InputError(f"--pipeline {path}: of another version, it {' and '.join(differences)}; {again}")
    if version != f"kfp-{kfp.__version__}":
        raise InputError(f"--pipeline {path}: compiled by {version}, expected kfp-{kfp.__version__}; {again}")
    for image in sorted(images):
        try:
            TypeAdapter(Image).validate_python(image)
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise InputError(f"--pipeline {path}: image {image}: {why}") from None
    return Package.of(documents)


def inputs(package: Package) -> set[str]:
    """The names of its parameters."""
    return set(compiling.pipeline(package.pipeline).component_spec.inputs)


def uncached(package: Package) -> Package:
    """The same pipeline, which takes nothing over from earlier runs."""
    documents = package.documents()
    specification = documents[0]
    for component in (specification["root"], *specification["components"].values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            task["cachingOptions"] = {}
    return Package.of(documents)


def submit(
    kubeflow: Kubeflow, package: Package, config: Config, *, name: str, experiment: str, parameters: dict[str, Any]
) -> str:
    """Start a run and return its id.

    Args:
        kubeflow: where.
        package: what runs; uploaded if the cluster does not have it.
        config: whose `cluster` says as whom it runs, and where its artifacts go.
        name: the run's.
        experiment: created if there is none.
        parameters: the pipeline's, where they differ from what was compiled in.
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
    """Stage by name of a task: by its own in the pipeline and by the one that people see."""
    specification = package.documents()[0]
    found: dict[str, str] = {}
    for component in (specification["root"], *specification["components"].values()):
        for key, task in component.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in specification["components"][task["componentRef"]["name"]]:
                found |= {key: task["taskInfo"]["name"], task["taskInfo"]["name"]: task["taskInfo"]["name"]}
    return found


def follow(
    kubeflow: Kubeflow,
    run_id: str,
    stages: dict[str, str],
    *,
    timeout_minutes: float,
    retries: int = 0,
    failed_at: datetime | None = None,
    say: Callable[[str], None],
) -> RunEnd:
    """Wait for the end of a run.

    Args:
        kubeflow: where.
        run_id: which.
        stages: as `stages` gives them; other tasks are Kubeflow's own.
        timeout_minutes: how long at most; 0: as long as it takes.
        retries: how often to run again what failed, where the next attempt may succeed.
        failed_at: when the run had failed before it was retried: Kubeflow may report that end once more.
        say: gets a line whenever a stage's state changes, whenever one waits for something, and for each retry.

    Raises:
        RunStopped: it did not end in time, and goes on; or somebody has deleted it.
    """
    deadline = time.monotonic() + timeout_minutes * 60 if timeout_minutes else None
    states: dict[str, str] = {}
    problems = _Problems(kubeflow, run_id)
    was_out_of_memory = False
    while True:
        left = math.inf if deadline is None else deadline - time.monotonic()
        run = kubeflow.run(run_id, outage_seconds=min(OUTAGE_SECONDS, left))
        if run is None:
            raise RunStopped(f"the run is gone, for somebody has deleted it: {kubeflow.run_url(run_id)}")
        # The persistence agent of 2.17.0 may still report the workflow as it was before the retry.
        is_stale = run.state == "FAILED" and failed_at is not None and run.finished_at == failed_at
        for line in () if is_stale else _changes(run, stages, states):
            say(line)
        if run.state in ENDED and not is_stale:
            end = _end(kubeflow, run, stages)
            if not retries or not end.may_pass or (end.is_out_of_memory and was_out_of_memory):
                return end
            retries -= 1
            was_out_of_memory = was_out_of_memory or end.is_out_of_memory
            say(f"{end.summary}; what failed is retried, {retries} more retries are left")
            states.clear()
            failed_at = run.finished_at
            kubeflow.retry(run_id)
        elif not is_stale:
            for line in problems.new():
                say(line)
        if deadline is not None and time.monotonic() + POLL_SECONDS > deadline:
            raise RunStopped(f"waited for {timeout_minutes:g} minutes; the run goes on: {kubeflow.run_url(run_id)}")
        time.sleep(POLL_SECONDS)


@dataclass
class _Problems:
    """What keeps pods from starting or was tried again: a run that waits for a pod says RUNNING of its stage."""

    kubeflow: Kubeflow
    run_id: str
    _reported: set[tuple[str, str]] = field(default_factory=set)
    _next: float = field(default_factory=lambda: time.monotonic() + PROBLEMS_SECONDS)

    def new(self) -> Iterator[str]:
        """A line for each problem that was not reported yet; the workflow is read every PROBLEMS_SECONDS only."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PROBLEMS_SECONDS
        for node in nodes(self.kubeflow.workflow(self.run_id)):
            if node.phase in ("Succeeded", "Skipped") or node.message in ("", *STARTING):
                continue
            if (node.id, node.message) in self._reported:
                continue
            self._reported.add((node.id, node.message))
            verb = "an attempt failed" if node.has_failed else "waits"
            yield f"{node.stage:<12} {verb}: {node.message[:300]}"


def _tasks(run: api.V2beta1Run, stages: dict[str, str]) -> Iterator[tuple[str, api.V2beta1PipelineTaskDetail]]:
    details = run.run_details.task_details if run.run_details else None
    return ((stages[one.display_name], one) for one in details or [] if one.display_name in stages)


def _changes(run: api.V2beta1Run, stages: dict[str, str], states: dict[str, str]) -> Iterator[str]:
    """What is new since the last poll; `states` is brought up to date."""
    for stage, task in _tasks(run, stages):
        if task.state and task.state not in QUIET and states.get(task.task_id) != task.state:
            states[task.task_id] = task.state
            yield f"{stage:<12} {task.state.lower()}"


def _end(kubeflow: Kubeflow, run: api.V2beta1Run, stages: dict[str, str]) -> RunEnd:
    """How a run ended: from its workflow and logs, and where the server gives neither, from its tasks."""
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
