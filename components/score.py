from kfp.dsl import Artifact, Dataset, Input, Output

from components.stage import train_stage


@train_stage
def score_newest(
    traffic: Input[Dataset],
    champion: str,
    config: dict,
    compute: dict,
    registry: dict,
    scores: Output[Artifact],
):
    """Score the newest traffic with the champion and, if it is configured, with its teacher."""
    from pathlib import Path

    from distilrank.drift import champion_scores as stage
    from distilrank.config import Compute, Monitor, Registry

    stage.score_newest(
        Monitor(**config),
        Compute(**compute),
        Registry(**registry),
        traffic=Path(traffic.path),
        champion=champion,
        output=Path(scores.path),
    )
