"""The first two tasks of `distill` and `estimate`: preflight and prepare."""

from typing import Any

from components.preflight import check_inputs
from components.prepare import prepare_data
from pipelines import resources


def preflight_and_prepare(
    *, name: Any, schedule_time: Any, prepare: Any, data: Any, **sections: Any
) -> tuple[Any, Any]:
    """Add the tasks preflight and prepare to the pipeline under construction.

    Their inputs are the same in every pipeline, so one pipeline reuses from the cache what another has prepared.

    Args:
        name: the pipeline's parameter `name`.
        schedule_time: the pipeline's parameter `schedule_time`.
        prepare: the section `prepare`, as the pipeline's parameter.
        data: the section `data`, as the pipeline's parameter.
        sections: the other sections that preflight reads.

    Returns:
        The tasks preflight and prepare.
    """
    checked = check_inputs(
        name=resources.run_name(name),
        schedule_time=resources.scheduled_time(schedule_time),
        secrets=resources.secrets(),
        prepare=prepare,
        data=data,
        **sections,
    )
    resources.configure_task(checked, "preflight", cacheable=False)
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
