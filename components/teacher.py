from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.stage import train_stage


@train_stage
def train_teacher(
    judgements: Input[Dataset],
    model_digest: str,
    config: dict,
    compute: dict,
    teacher: Output[Model],
    metrics: Output[Metrics],
) -> float:
    """Fine-tune the LLM on the judgements; return its dev nDCG@10."""
    from pathlib import Path

    from distilrank.teacher import train as stage
    from distilrank.config import Compute, Teacher

    result = stage.train(
        Teacher(**config),
        Compute(**compute),
        judgements=Path(judgements.path),
        model_digest=model_digest,
        output=Path(teacher.path),
    )
    metrics.log_metric("dev_ndcg_at_10", result.dev_ndcg_at_10)
    metrics.log_metric("lift_over_bm25", result.lift_over_bm25)
    Path(metrics.path).touch()  # KFP's local cache takes a missing file for a lost result
    return result.dev_ndcg_at_10
