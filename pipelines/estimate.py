"""The `estimate` pipeline: what `distill` would spend on teaching and labeling, before it is spent."""

from kfp import dsl

from components.estimate import estimate_spend
from pipelines.preflight_and_prepare import preflight_and_prepare
from pipelines.resources import configure_task


@dsl.pipeline(name="estimate", description="Tell rows, tokens, device hours and cost of a distill run.")
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
    """The first stages are those of `distill`, which takes them over from the cache."""
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
    configure_task(estimated, "estimate", effect=True)  # it is about this machine, now
