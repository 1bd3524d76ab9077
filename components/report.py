from typing import List

from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components.stage import ops_stage


@ops_stage
def render_report(
    name: str,
    profile: Input[Artifact],
    judgements: Input[Dataset],
    teacher: Input[Model],
    labels: Input[List[Dataset]],
    student: Input[Model],
    evaluation: Input[Artifact],
    drift: Input[Artifact],
    verdict: Input[Artifact],
    config: dict,
    report: Output[Artifact],
    report_html: Output[HTML],
):
    """Put everything that people need to judge the run on one page."""
    from pathlib import Path

    from distilrank import report as stage
    from distilrank.core import artifacts
    from distilrank.config import Report
    from distilrank.core.run_folders import RunFolders

    folders = RunFolders(
        profile=Path(profile.path),
        judgements=Path(judgements.path),
        teacher=Path(teacher.path),
        labels=tuple(Path(shard.path) for shard in labels),
        student=Path(student.path),
        evaluation=Path(evaluation.path),
        drift=Path(drift.path),
        verdict=Path(verdict.path),
    )
    stage.render(Report(**config), folders, name=name, output=Path(report.path))
    artifacts.copy_files(Path(report.path), {"report.html": report_html.path})
