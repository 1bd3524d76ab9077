"""The `estimate` pipeline: predict what `distill` will spend on training the teacher and on labeling."""

from kfp import dsl

from components.estimate import estimate_spend
from pipelines.preflight_and_prepare import preflight_and_prepare
from pipelines.resources import configure_task


@dsl.pipeline(name="estimate", description="Predict rows, tokens, device hours and cost of a distill run.")
def estimate(
    name: str,
    data: dict,
    window: dict,
    preflight: dict,
    prepare: dict,
    compute: dict,
    teacher: dict,
    label: dict,
    student: dict,
    evaluate: dict,
    drift: dict,
    gate: dict,
    registry: dict,
    schedule_time: str = "",
):
    """Preflight and prepare are those of `distill`, which reuses the prepared data from the cache."""
    _, prepared = preflight_and_prepare(
        name=name,
        schedule_time=schedule_time,
        data=data,
        window=window,
        preflight=preflight,
        prepare=prepare,
        compute=compute,
        teacher=teacher,
        student=student,
        evaluate=evaluate,
        drift=drift,
        gate=gate,
        registry=registry,
    )
    estimated = estimate_spend(
        judgements=prepared.outputs["judgements"],
        candidates=prepared.outputs["candidates"],
        teacher=teacher,
        label=label,
        compute=compute,
    )
    configure_task(estimated, "estimate", cacheable=False)  # the timing is valid for this machine and moment only
