from kfp.dsl import Artifact, Output

from components.stage import train_stage


@train_stage
def rehearse_models(
    teacher_digest: str,
    student_digest: str,
    teacher: dict,
    student: dict,
    compute: dict,
    rehearsal: Output[Artifact],
) -> None:
    """Take a few pairs through training, labeling, saving and export, on narrow models of the same architectures."""
    from pathlib import Path

    from distilrank import rehearsal as stage
    from distilrank.config import Compute, Student, Teacher

    stage.run(
        Teacher(**teacher),
        Student(**student),
        Compute(**compute),
        teacher_digest=teacher_digest,
        student_digest=student_digest,
        output=Path(rehearsal.path),
    )
