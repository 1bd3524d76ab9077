"""How pipelines begin: what is outside is checked, and data is prepared from it."""

from typing import Any

from components.preflight import check_inputs
from components.prepare import prepare_data


def start(*, prepare: Any, data: Any, **sections: Any) -> tuple[Any, Any]:
    """Wire preflight and prepare; pipelines that begin alike take each other's prepared data from the cache.

    Args:
        prepare: that section, as the pipeline's parameter.
        data: likewise.
        sections: `schedule_time` and the other sections that preflight reads.

    Returns:
        The two tasks.
    """
    checked = check_inputs(prepare=prepare, data=data, **sections)
    checked.set_caching_options(False).set_display_name("preflight")
    prepared = prepare_data(
        reference_start=checked.outputs["reference_start"],
        newest_start=checked.outputs["newest_start"],
        newest_end=checked.outputs["newest_end"],
        data_digest=checked.outputs["data_digest"],
        config=prepare,
        data=data,
    ).set_display_name("prepare")
    return checked, prepared
