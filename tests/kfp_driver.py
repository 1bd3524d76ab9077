"""What each task of a compiled pipeline gets, as Kubeflow's driver resolves it.

Follows kubeflow/pipelines 2.17.0, backend/src/v2/driver/resolve.go (resolveInputParameter) and
backend/src/v2/compiler/argocompiler (the driver's arguments). A placeholder is replaced only where it is the whole of
a task's constant input: within a longer text, in a parameter of the run, or unknown, it stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ONE_OFF = {
    "{{$.pipeline_job_name}}": "weekly",  # the run's display name
    "{{$.pipeline_job_resource_name}}": "distilrank-distill-x7p2k",
    "{{$.pipeline_job_uuid}}": "4e7a1f6e-58a3-4f0b-9d0c-1d1f2c3b4a59",
    "{{$.pipeline_job_create_time_utc}}": "2026-11-30T20:09:12Z",
    "{{$.pipeline_job_schedule_time_utc}}": "2026-11-30T20:09:12Z",  # that of its start
}
"""By placeholder, what the driver of a one-off run has."""
RECURRING = ONE_OFF | {
    # argocompiler/container.go passes the job's display name, which a recurring run with a pinned version lacks
    "{{$.pipeline_job_name}}": "",
    "{{$.pipeline_job_resource_name}}": "rec-1-3254976706",
    "{{$.pipeline_job_schedule_time_utc}}": "2026-11-30T20:10:00Z",  # the tick
}
"""The same for a run that a recurring run with a pinned version started."""


@dataclass(frozen=True)
class Output:
    """An input that only a run knows: the output of a task, or the item of a loop."""

    task: str
    key: str


def parameters(
    spec: Mapping[str, Any], placeholders: Mapping[str, str], values: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """The input parameters of every task that has a container, by task; nested pipelines are entered.

    Args:
        spec: the pipeline's specification, the first document of its YAML file.
        placeholders: ONE_OFF or RECURRING.
        given: the run's own parameters; the others have the defaults of the specification.
    """
    definitions = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    inputs = {name: definition.get("defaultValue") for name, definition in definitions.items()} | dict(values or {})
    return dict(_tasks(spec, spec["root"], inputs, placeholders))


def _tasks(
    spec: Mapping[str, Any], component: Mapping[str, Any], inputs: Mapping[str, Any], placeholders: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, task in component["dag"]["tasks"].items():
        wired = task.get("inputs", {}).get("parameters", {})
        values = {key: _resolve(value, inputs, placeholders) for key, value in wired.items()}
        if "parameterIterator" in task:
            item = task["parameterIterator"]["itemInput"]
            values[item] = Output(name, item)
        inner = spec["components"][task["componentRef"]["name"]]
        if "dag" in inner:
            yield from _tasks(spec, inner, values, placeholders)
        else:
            yield name, values


def _resolve(wired: Mapping[str, Any], inputs: Mapping[str, Any], placeholders: Mapping[str, str]) -> Any:
    if "componentInputParameter" in wired:
        return inputs.get(wired["componentInputParameter"])
    if "taskOutputParameter" in wired:
        output = wired["taskOutputParameter"]
        return Output(output["producerTask"], output["outputParameterKey"])
    if "runtimeValue" in wired:
        constant = wired["runtimeValue"]["constant"]
        return placeholders.get(constant, constant) if isinstance(constant, str) else constant
    return None  # the final status of a task
