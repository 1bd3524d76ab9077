from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.stage import ops_stage


@ops_stage
def promote_student(
    resolved: Input[Artifact],
    profile: Input[Artifact],
    teacher: Input[Model],
    student: Input[Model],
    evaluation: Input[Artifact],
    drift: Input[Artifact],
    verdict: Input[Artifact],
    report: Input[Artifact],
    traffic: Input[Dataset],
    champion: str,
    anchor: str,
    name: str,
    data_digest: str,
    code_digest: str,
    images: dict,
    label: dict,
    config: dict,
    promotion: Output[Artifact],
) -> str:
    """Publish the student as an immutable version and move the champion alias to it; return the version."""
    from pathlib import Path

    from distilrank.promotion import promote as stage
    from distilrank.config import Registry
    from distilrank.core.run_folders import RunFolders

    folders = RunFolders(
        resolved=Path(resolved.path),
        profile=Path(profile.path),
        teacher=Path(teacher.path),
        student=Path(student.path),
        evaluation=Path(evaluation.path),
        drift=Path(drift.path),
        verdict=Path(verdict.path),
        report=Path(report.path),
        traffic=Path(traffic.path),
    )
    return stage.promote(
        Registry(**config),
        folders,
        label=label,
        champion=champion,
        anchor=anchor,
        lineage={"name": name, "data": data_digest, "code": code_digest, "images": images},
        output=Path(promotion.path),
    )
