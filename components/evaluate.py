from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.stage import train_stage


@train_stage
def evaluate_student(
    judgements: Input[Dataset],
    traffic: Input[Dataset],
    teacher: Input[Model],
    student: Input[Model],
    champion: str,
    anchor: str,
    config: dict,
    compute: dict,
    registry: dict,
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
) -> float:
    """Measure student, teacher, champion, anchor and baselines on the same test rows; return the student's nDCG@10."""
    from pathlib import Path

    from distilrank.evaluation import evaluate as stage
    from distilrank.config import Compute, Evaluate, Registry

    result = stage.evaluate(
        Evaluate(**config),
        Compute(**compute),
        Registry(**registry),
        judgements=Path(judgements.path),
        traffic=Path(traffic.path),
        teacher=Path(teacher.path),
        student=Path(student.path),
        champion=champion,
        anchor=anchor,
        output=Path(evaluation.path),
    )
    metrics.log_metric("ndcg_at_10", result.ndcg_at_10)
    metrics.log_metric("lift_over_bm25", result.lift_over_bm25)
    Path(metrics.path).touch()  # KFP's local cache takes a missing file for a lost result
    return result.ndcg_at_10
