from kfp.dsl import Dataset, Output

from components.stage import ops_stage


@ops_stage
def sample_newest(
    reference_start: str,
    newest_start: str,
    newest_end: str,
    data_digest: str,
    cache_since: str,
    config: dict,
    data: dict,
    traffic: Output[Dataset],
) -> int:
    """Sample the newest traffic from the log; return its rows. `cache_since` is there for the cache's key alone."""
    from pathlib import Path

    from distilrank.data import prepare as stage
    from distilrank.config import Config, Prepare
    from distilrank.data.window import LogWindow

    return stage.sample_newest(
        Prepare(**config),
        Config(data=data).data,
        LogWindow(reference_start, newest_start, newest_end, data_digest),
        traffic=Path(traffic.path),
    )
