"""The `monitor` pipeline: compare the newest traffic with the champion's, and optionally run `distill` on an alarm."""

from kfp import dsl

from components.check_champion import check_champion
from components.monitor import watch_champion
from components.sample import sample_newest
from components.score import score_newest
from pipelines.distill import distill
from pipelines.resources import configure_task, exit_handler, nested_pipeline, run_name, scheduled_time, secrets


@dsl.pipeline(name="monitor", description="Compare the newest traffic with the champion's, and retrain on an alarm.")
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
    """The parameters are those of `distill` and the section `monitor`."""
    with exit_handler(name, registry):
        checked = check_champion(
            name=run_name(name),
            schedule_time=scheduled_time(schedule_time),
            secrets=secrets(),
            data=data,
            window=window,
            preflight=preflight,
            prepare=prepare,
            drift=drift,
            monitor=monitor,
            registry=registry,
        )
        configure_task(checked, "preflight", cacheable=False)
        champion, newest_end = checked.outputs["champion"], checked.outputs["newest_end"]

        sampled = sample_newest(
            reference_start=checked.outputs["reference_start"],
            newest_start=checked.outputs["newest_start"],
            newest_end=newest_end,
            data_digest=checked.outputs["data_digest"],
            cache_since=checked.outputs["cache_since"],
            config=prepare,
            data=data,
        )
        configure_task(sampled, "sample")

        scored = score_newest(
            traffic=sampled.outputs["traffic"], champion=champion, config=monitor, compute=compute, registry=registry
        )
        configure_task(scored, "score")

        watched = watch_champion(
            traffic=sampled.outputs["traffic"],
            scores=scored.outputs["scores"],
            champion=champion,
            name=run_name(name),
            newest_end=newest_end,
            config=monitor,
            drift=drift,
            registry=registry,
        )
        configure_task(watched, "monitor", cacheable=False)  # it appends to a history

        with dsl.If(watched.outputs["Output"] == True):  # noqa: E712 - KFP reads the comparison
            nested_pipeline(distill)(
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
