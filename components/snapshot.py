from kfp.dsl import Artifact, Input

from components.stage import ops_stage


@ops_stage
def push_drift_snapshot(drift: Input[Artifact], name: str, newest_end: str, config: dict, registry: dict):
    """Add the run's drift to the Evidently workspace, if one is configured; a failure is only a warning."""
    from pathlib import Path

    from distilrank.drift import workspace as stage
    from distilrank.config import Drift, Registry

    stage.push_to_workspace(
        Drift(**config), Registry(**registry), drift=Path(drift.path), name=name, newest_end=newest_end
    )
