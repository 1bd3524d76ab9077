from kfp.dsl import Artifact, Dataset, Input, Output

from components.stage import train_stage


@train_stage
def estimate_spend(
    judgements: Input[Dataset],
    candidates: Input[Dataset],
    teacher: dict,
    label: dict,
    compute: dict,
    spend: Output[Artifact],
):
    """Tell what teaching and labeling will take, from a short timed sample."""
    from pathlib import Path

    from distilrank.teacher import estimate as stage
    from distilrank.config import Compute, Label, Teacher

    stage.estimate(
        Teacher(**teacher),
        Label(**label),
        Compute(**compute),
        judgements=Path(judgements.path),
        candidates=Path(candidates.path),
        output=Path(spend.path),
    )
