from kfp.dsl import Artifact, Input

from components.stage import ops_stage


@ops_stage
def keep_snapshot(drift: Input[Artifact], name: str, newest_end: str, config: dict, registry: dict):
    """Add the run's drift to the Evidently workspace, if there is one; never lose the run over it."""
    from pathlib import Path

    from distilrank import drift as stage
    from distilrank.config import Drift, Registry

    stage.keep(Drift(**config), Registry(**registry), drift=Path(drift.path), name=name, newest_end=newest_end)
