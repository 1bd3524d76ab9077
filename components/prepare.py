from typing import List

from kfp.dsl import HTML, Artifact, Dataset, Output

from components.stage import ops_stage


@ops_stage
def prepare_data(
    reference_start: str,
    newest_start: str,
    newest_end: str,
    data_digest: str,
    cache_since: str,
    config: dict,
    data: dict,
    judgements: Output[Dataset],
    candidates: Output[Dataset],
    traffic: Output[Dataset],
    profile: Output[Artifact],
    profile_html: Output[HTML],
) -> List[str]:
    """Split judgements by query, mine candidates from the logs, shard and profile them; return the names of the shards.

    `cache_since` is only part of the cache key: results of an earlier cache period are not reused.
    """
    from pathlib import Path

    from distilrank.data import prepare as stage
    from distilrank.core import artifacts
    from distilrank.config import Config, Prepare
    from distilrank.data.window import LogWindow

    shards = stage.prepare(
        Prepare(**config),
        Config(data=data).data,
        LogWindow(reference_start, newest_start, newest_end, data_digest),
        judgements=Path(judgements.path),
        candidates=Path(candidates.path),
        traffic=Path(traffic.path),
        profile=Path(profile.path),
    )
    artifacts.copy_files(Path(profile.path), {"profile.html": profile_html.path})
    return shards
