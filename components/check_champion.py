from typing import NamedTuple

from kfp.dsl import Artifact, Output

from components.stage import ops_stage


@ops_stage
def check_champion(
    name: str,
    schedule_time: str,
    secrets: dict,
    data: dict,
    window: dict,
    preflight: dict,
    prepare: dict,
    drift: dict,
    monitor: dict,
    registry: dict,
    resolved: Output[Artifact],
) -> NamedTuple(  # type: ignore[valid-type]
    "MonitorInputs",
    [
        ("data_digest", str),
        ("reference_start", str),
        ("newest_start", str),
        ("newest_end", str),
        ("champion", str),
        ("cache_since", str),
    ],
):
    """Resolve the champion and the window of the newest traffic, and fail early if either is missing."""
    from pathlib import Path

    from distilrank import config, preflight as stage

    sections = dict(data=data, window=window, preflight=preflight, prepare=prepare)
    sections |= dict(drift=drift, monitor=monitor, registry=registry)
    checked = config.parse(sections, "pipeline parameters", partial=True)
    return stage.check_monitor(
        checked, name=name, schedule_time=schedule_time, secrets=secrets, output=Path(resolved.path)
    )
