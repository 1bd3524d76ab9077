"""The `distill` pipeline: train a teacher, label, train a student, and promote it if it passes the gate."""

from kfp import dsl

from components.drift import measure_drift
from components.evaluate import evaluate_student
from components.gate import decide
from components.label import label_shard
from components.promote import promote_student
from components.rehearse import rehearse_models
from components.report import render_report
from components.snapshot import push_drift_snapshot
from components.student import distil_student
from components.teacher import train_teacher
from pipelines.preflight_and_prepare import preflight_and_prepare
from pipelines.resources import configure_task, exit_handler, images, run_name


@dsl.pipeline(
    name="distill",
    description="Distil an LLM's sense of relevance into a ranker, and promote it if it passes the gate.",
)
def distill(
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
    schedule_time: str = "",
):
    """Each parameter is a section of the configuration. A stage gets only the sections that it reads.

    `schedule_time` (ISO 8601) is the value of `window.end: schedule`; empty: the time at which preflight runs.
    """
    with exit_handler(name, registry):
        checked, prepared = preflight_and_prepare(
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
        champion, anchor = checked.outputs["champion"], checked.outputs["anchor"]
        newest_end = checked.outputs["newest_end"]

        rehearsed = rehearse_models(
            teacher_digest=checked.outputs["teacher_digest"],
            student_digest=checked.outputs["student_digest"],
            teacher=teacher,
            student=student,
            compute=compute,
        )
        configure_task(rehearsed, "rehearse")

        judgements = prepared.outputs["judgements"]
        candidates = prepared.outputs["candidates"]
        traffic = prepared.outputs["traffic"]

        taught = train_teacher(
            judgements=judgements,
            model_digest=checked.outputs["teacher_digest"],
            config=teacher,
            compute=compute,
        ).after(rehearsed)
        configure_task(taught, "teacher")

        with dsl.ParallelFor(items=prepared.outputs["Output"]) as shard:
            labeled = label_shard(
                shard=shard, candidates=candidates, teacher=taught.outputs["teacher"], config=label, compute=compute
            )
            configure_task(labeled, "label")

        distilled = distil_student(
            judgements=judgements,
            candidates=candidates,
            labels=dsl.Collected(labeled.outputs["labels"]),
            teacher=taught.outputs["teacher"],
            model_digest=checked.outputs["student_digest"],
            config=student,
            compute=compute,
        )
        configure_task(distilled, "student")

        evaluated = evaluate_student(
            judgements=judgements,
            traffic=traffic,
            teacher=taught.outputs["teacher"],
            student=distilled.outputs["student"],
            champion=champion,
            anchor=anchor,
            config=evaluate,
            compute=compute,
            registry=registry,
        )
        configure_task(evaluated, "evaluate")

        drifted = measure_drift(
            traffic=traffic,
            evaluation=evaluated.outputs["evaluation"],
            student=distilled.outputs["student"],
            champion=champion,
            config=drift,
            registry=registry,
        )
        configure_task(drifted, "drift")
        pushed = push_drift_snapshot(
            drift=drifted.outputs["drift"], name=run_name(name), newest_end=newest_end, config=drift, registry=registry
        )
        configure_task(pushed, "snapshot", cacheable=False)

        decided = decide(
            evaluation=evaluated.outputs["evaluation"],
            drift=drifted.outputs["drift"],
            student=distilled.outputs["student"],
            judgements=judgements,
            champion=champion,
            anchor=anchor,
            newest_end=newest_end,
            config=gate,
            registry=registry,
        )
        configure_task(decided, "gate", cacheable=False)  # it counts the evaluations on a test set

        reported = render_report(
            name=run_name(name),
            profile=prepared.outputs["profile"],
            judgements=judgements,
            teacher=taught.outputs["teacher"],
            labels=dsl.Collected(labeled.outputs["labels"]),
            student=distilled.outputs["student"],
            evaluation=evaluated.outputs["evaluation"],
            drift=drifted.outputs["drift"],
            verdict=decided.outputs["verdict"],
            config=report,
        )
        configure_task(reported, "report", cacheable=False)  # it shows the name of the run

        with dsl.If(decided.outputs["Output"] == True):  # noqa: E712 - KFP reads the comparison
            promoted = promote_student(
                resolved=checked.outputs["resolved"],
                profile=prepared.outputs["profile"],
                teacher=taught.outputs["teacher"],
                student=distilled.outputs["student"],
                evaluation=evaluated.outputs["evaluation"],
                drift=drifted.outputs["drift"],
                verdict=decided.outputs["verdict"],
                report=reported.outputs["report"],
                traffic=traffic,
                champion=champion,
                anchor=anchor,
                name=run_name(name),
                data_digest=checked.outputs["data_digest"],
                code_digest=checked.outputs["code_digest"],
                images=images(),
                label=label,
                config=registry,
            )
            configure_task(promoted, "promote", cacheable=False)
