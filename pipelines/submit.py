"""A single run on a cluster: what is submitted, and how it goes on."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api as api
import yaml
from pydantic import TypeAdapter, ValidationError

from distilrank.config import Config, Image
from distilrank.errors import InputError, RunStopped
from pipelines import compiling
from pipelines.kubeflow import Kubeflow, Package

POLL_SECONDS = 5.0
OUTAGE_SECONDS = 900.0
"""How long the API may be away while a run is waited for: an upgrade of Kubeflow takes minutes."""
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
QUIET = ("RUNTIME_STATE_UNSPECIFIED", "PENDING")
"""States of a task that tell nobody anything."""
PROMOTION = "promote"


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    state: str
    """SUCCEEDED, FAILED, CANCELED or SKIPPED."""
    promoted: bool | None
    """Whether the stage `promote` ran to its end; None: the API tells of no task."""
    failures: tuple[str, ...]
    """A line for each task that failed."""


def read_package(path: Path) -> Package:
    """A compiled pipeline that this version of distilrank can have written.

    Raises:
        InputError: it cannot be read, is no pipeline of ours, is of another version, or has an image whose tag moves.
    """
    try:
        documents = list(yaml.safe_load_all(path.read_bytes()))
    except FileNotFoundError:
        raise InputError(f"--pipeline {path}: no such file; `python -m pipelines compile` writes one") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
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
    kubeflow: Kubeflow, run_id: str, stages: dict[str, str], *, timeout_minutes: float, say: Callable[[str], None]
) -> Outcome:
    """Wait for the end of a run.

    Args:
        kubeflow: where.
        run_id: which.
        stages: as `stages` gives them; other tasks are Kubeflow's own.
        timeout_minutes: how long at most; 0: as long as it takes.
        say: gets a line whenever a stage's state changes.

    Raises:
        RunStopped: it did not end in time, and goes on; or somebody has deleted it.
    """
    deadline = time.monotonic() + timeout_minutes * 60 if timeout_minutes else None
    seen: dict[str, str] = {}
    while True:
        left = math.inf if deadline is None else deadline - time.monotonic()
        run = kubeflow.run(run_id, outage_seconds=min(OUTAGE_SECONDS, left))
        if run is None:
            raise RunStopped(f"the run is gone, for somebody has deleted it: {kubeflow.run_url(run_id)}")
        for line in _changes(run, stages, seen):
            say(line)
        if run.state in ENDED:
            return _outcome(run, stages)
        if deadline is not None and time.monotonic() + POLL_SECONDS > deadline:
            raise RunStopped(f"waited for {timeout_minutes:g} minutes; the run goes on: {kubeflow.run_url(run_id)}")
        time.sleep(POLL_SECONDS)


def _tasks(run: api.V2beta1Run, stages: dict[str, str]) -> Iterator[tuple[str, api.V2beta1PipelineTaskDetail]]:
    details = run.run_details.task_details if run.run_details else None
    return ((stages[one.display_name], one) for one in details or [] if one.display_name in stages)


def _changes(run: api.V2beta1Run, stages: dict[str, str], seen: dict[str, str]) -> Iterator[str]:
    """What is new since the last look; `seen` is brought up to date."""
    for stage, task in _tasks(run, stages):
        if task.state and task.state not in QUIET and seen.get(task.task_id) != task.state:
            seen[task.task_id] = task.state
            yield f"{stage:<12} {task.state.lower()}"


def _outcome(run: api.V2beta1Run, stages: dict[str, str]) -> Outcome:
    tasks = list(_tasks(run, stages))
    failures = [
        f"{stage}: {_first_line(task.error.message) if task.error else ''}".rstrip(": ")
        for stage, task in tasks
        if task.state == "FAILED"
    ]
    if run.state == "FAILED" and not failures:
        failures = [_first_line(run.error.message) if run.error else "Kubeflow names no stage"]
    promoted = any(stage == PROMOTION and task.state == "SUCCEEDED" for stage, task in tasks) if tasks else None
    return Outcome(run.state, promoted, tuple(dict.fromkeys(failures)))


def _first_line(text: str | None) -> str:
    return " ".join((text or "").split())[:300]
