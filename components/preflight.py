from typing import NamedTuple

from kfp.dsl import Artifact, Output

from components.stage import ops_stage


@ops_stage
def check_inputs(
    name: str,
    schedule_time: str,
    secrets: dict,
    data: dict,
    window: dict,
    preflight: dict,
    prepare: dict,
    compute: dict,
    teacher: dict,
    student: dict,
    evaluate: dict,
    drift: dict,
    gate: dict,
    registry: dict,
    resolved: Output[Artifact],
) -> NamedTuple(  # type: ignore[valid-type]
    "Resolved",
    [
        ("data_digest", str),
        ("code_digest", str),
        ("teacher_digest", str),
        ("student_digest", str),
        ("reference_start", str),
        ("newest_start", str),
        ("newest_end", str),
        ("champion", str),
        ("anchor", str),
        ("cache_since", str),
    ],
):
    """Resolve the log window, digest all external inputs, and fail early if one is missing or invalid."""
    from pathlib import Path

    from distilrank import config, preflight as stage

    sections = dict(data=data, window=window, preflight=preflight, compute=compute, teacher=teacher, student=student)
    sections |= dict(prepare=prepare, evaluate=evaluate, drift=drift, gate=gate, registry=registry)
    checked = config.parse(sections, "pipeline parameters")
    return stage.check(checked, name=name, schedule_time=schedule_time, secrets=secrets, output=Path(resolved.path))
