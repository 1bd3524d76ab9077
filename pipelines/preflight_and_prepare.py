"""How pipelines begin: what is outside is checked, and data is prepared from it."""

from typing import Any

from components.preflight import check_inputs
from components.prepare import prepare_data
from pipelines import resources


def preflight_and_prepare(
    *, name: Any, schedule_time: Any, prepare: Any, data: Any, **sections: Any
) -> tuple[Any, Any]:
    """Wire preflight and prepare; pipelines that begin alike take each other's prepared data from the cache.

    Args:
        name: the pipeline's parameter of that name.
        schedule_time: likewise.
        prepare: that section, as the pipeline's parameter.
        data: likewise.
        sections: the other sections that preflight reads.

    Returns:
        The two tasks.
    """
    checked = check_inputs(
        name=resources.run_name(name),
        schedule_time=resources.scheduled_time(schedule_time),
        secrets=resources.secrets(),
        prepare=prepare,
        data=data,
        **sections,
    )
    resources.configure_task(checked, "preflight", effect=True)
    prepared = prepare_data(
        reference_start=checked.outputs["reference_start"],
        newest_start=checked.outputs["newest_start"],
        newest_end=checked.outputs["newest_end"],
        data_digest=checked.outputs["data_digest"],
        cache_since=checked.outputs["cache_since"],
        config=prepare,
        data=data,
    )
    resources.configure_task(prepared, "prepare")
    return checked, prepared
