"""The `monitor` pipeline: has traffic moved away from the champion? If so, and if wanted, `distill` runs."""

from kfp import dsl

from components.monitor import watch_champion
from components.sample import sample_newest
from components.score import score_newest
from components.watched import check_champion
from pipelines.distill import distill


@dsl.pipeline(name="monitor", description="Hold the newest traffic against the champion's, and retrain on an alarm.")
def monitor(
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
    report: dict,
    registry: dict,
    monitor: dict,
    schedule_time: str = "",
):
    """The parameters are those of `distill`, and the section `monitor`."""
    checked = check_champion(
        schedule_time=schedule_time,
        data=data,
        window=window,
        prepare=prepare,
        drift=drift,
        monitor=monitor,
        registry=registry,
    )
    checked.set_caching_options(False).set_display_name("preflight")
    champion, newest_end = checked.outputs["champion"], checked.outputs["newest_end"]

    sampled = sample_newest(
        reference_start=checked.outputs["reference_start"],
        newest_start=checked.outputs["newest_start"],
        newest_end=newest_end,
        data_digest=checked.outputs["data_digest"],
        config=prepare,
        data=data,
    ).set_display_name("sample")

    scored = score_newest(
        traffic=sampled.outputs["traffic"], champion=champion, config=monitor, compute=compute, registry=registry
    ).set_display_name("score")

    watched = watch_champion(
        traffic=sampled.outputs["traffic"],
        scores=scored.outputs["scores"],
        champion=champion,
        name=name,
        newest_end=newest_end,
        config=monitor,
        drift=drift,
        registry=registry,
    )
    watched.set_caching_options(False).set_display_name("monitor")  # it adds to a history

    with dsl.If(watched.outputs["Output"] == True):  # noqa: E712 - KFP reads the comparison
        distill(
            name=name,
            data=data,
            window=window,
            preflight=preflight,
            prepare=prepare,
            compute=compute,
            teacher=teacher,
            label=label,
            student=student,
            evaluate=evaluate,
            drift=drift,
            gate=gate,
            report=report,
            registry=registry,
            schedule_time=schedule_time,
        ).set_display_name("distill")
