from kfp.dsl import Dataset, Input, Model, Output

from components.stage import train_stage


@train_stage
def label_shard(
    shard: str,
    candidates: Input[Dataset],
    teacher: Input[Model],
    config: dict,
    compute: dict,
    labels: Output[Dataset],
) -> int:
    """Score every candidate of one shard with the teacher; return how many there are."""
    from pathlib import Path

    from distilrank.teacher import labeling as stage
    from distilrank.config import Compute, Label

    return stage.label(
        Label(**config),
        Compute(**compute),
        shard=shard,
        candidates=Path(candidates.path),
        teacher=Path(teacher.path),
        output=Path(labels.path),
    )
