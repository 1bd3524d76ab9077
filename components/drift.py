from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components.stage import ops_stage


@ops_stage
def measure_drift(
    traffic: Input[Dataset],
    evaluation: Input[Artifact],
    student: Input[Model],
    champion: str,
    config: dict,
    registry: dict,
    drift: Output[Artifact],
    summary_html: Output[HTML],
    drift_html: Output[HTML],
    champion_html: Output[HTML],
    metrics: Output[Metrics],
) -> float:
    """Compare the training window with the newest traffic; return the share of columns that drifted."""
    from pathlib import Path

    from distilrank.drift import measure as stage
    from distilrank.core import artifacts
    from distilrank.config import Drift, Registry

    share = stage.measure_drift(
        Drift(**config),
        Registry(**registry),
        traffic=Path(traffic.path),
        evaluation=Path(evaluation.path),
        student=Path(student.path),
        champion=champion,
        output=Path(drift.path),
    )
    artifacts.copy_files(
        Path(drift.path),
        {"summary.html": summary_html.path, "drift.html": drift_html.path, "champion.html": champion_html.path},
    )
    metrics.log_metric("drift_share", share)
    Path(metrics.path).touch()  # KFP's local cache takes a missing file for a lost result
    return share
