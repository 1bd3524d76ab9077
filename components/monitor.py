from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from components.stage import ops_stage


@ops_stage
def watch_champion(
    traffic: Input[Dataset],
    scores: Input[Artifact],
    champion: str,
    name: str,
    newest_end: str,
    config: dict,
    drift: dict,
    registry: dict,
    watched: Output[Artifact],
    summary_html: Output[HTML],
    drift_html: Output[HTML],
) -> bool:
    """Compare the newest traffic with the champion's; return whether an alarm is to start `distill`."""
    from pathlib import Path

    from distilrank.drift import monitor as stage
    from distilrank.core import artifacts
    from distilrank.config import Drift, Monitor, Registry

    alarm = stage.monitor_champion(
        Monitor(**config),
        Drift(**drift),
        Registry(**registry),
        traffic=Path(traffic.path),
        scores=Path(scores.path),
        champion=champion,
        name=name,
        newest_end=newest_end,
        output=Path(watched.path),
    )
    artifacts.copy_files(Path(watched.path), {"summary.html": summary_html.path, "drift.html": drift_html.path})
    return alarm
