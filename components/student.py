from typing import List

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.stage import train_stage


@train_stage
def distil_student(
    judgements: Input[Dataset],
    candidates: Input[Dataset],
    labels: Input[List[Dataset]],
    teacher: Input[Model],
    model_digest: str,
    config: dict,
    compute: dict,
    student: Output[Model],
    metrics: Output[Metrics],
) -> float:
    """Train the student on the teacher's margins; return its dev nDCG@10."""
    from pathlib import Path

    from distilrank.student import train as stage
    from distilrank.config import Compute, Student

    result = stage.train(
        Student(**config),
        Compute(**compute),
        judgements=Path(judgements.path),
        candidates=Path(candidates.path),
        labeled=[Path(shard.path) for shard in labels],
        teacher=Path(teacher.path),
        model_digest=model_digest,
        output=Path(student.path),
    )
    metrics.log_metric("dev_ndcg_at_10", result.dev_ndcg_at_10)
    Path(metrics.path).touch()  # KFP's local cache takes a missing file for a lost result
    return result.dev_ndcg_at_10
