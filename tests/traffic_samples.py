"""Small samples of traffic, champions and sealed folders for tests of drift."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distilrank import registry
from distilrank.config import Drift, Registry
from distilrank.core import artifacts, schemas
from distilrank.drift.measure import measure_drift

TYPES = ["drill", "saw", "hammer", "tap"]


def traffic(rows: int, seed: int, **changes: object) -> pa.Table:
    """Traffic of a small shop; `changes` replace whole columns."""
    rng = np.random.default_rng(seed)
    query = rng.integers(0, 60, rows)
    columns: dict[str, object] = {
        "query_id": [f"q{number}" for number in query],
        "query": [f"query {number}" for number in query],
        "product_id": [f"p{number}" for number in rng.integers(0, 500, rows)],
        "title": ["a title"] * rows,
        "product_type": rng.choice(TYPES, rows, p=[0.4, 0.3, 0.2, 0.1]).tolist(),
        "brand": [f"brand {rank}" for rank in rng.zipf(1.5, rows).clip(max=60)],
        "color": [None] * rows,
        "gender": [None] * rows,
        "description": [None] * rows,
        "query_words": rng.poisson(2, rows) + 1,
        "query_characters": rng.poisson(14, rows) + 3,
        "query_tokens": rng.poisson(3, rows) + 1,
        "unseen_words": np.zeros(rows),
        "script": ["latin"] * rows,
        "title_words": rng.poisson(9, rows) + 1,
        "bm25": rng.gamma(2, 3, rows),
        "position": rng.integers(1, 11, rows),
        "clicked": rng.random(rows) < 0.1,
    }
    return pa.table({**columns, **changes})


def with_texts(table: pa.Table, queries: list[str], seed: int) -> pa.Table:
    """Replace the texts of the rows by these queries, drawn at random."""
    indices = np.random.default_rng(seed).integers(0, len(queries), table.num_rows)
    texts = [queries[index] for index in indices]
    for name, values in {"query_id": texts, "query": texts, "title": [f"{text} large" for text in texts]}.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return table


def folders(
    root: Path,
    reference: pa.Table,
    current: pa.Table,
    scores: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Path]:
    """Write and seal the folders that `measure_drift` reads; its arguments."""
    rng = np.random.default_rng(5)
    scores = scores or (rng.beta(2, 3, reference.num_rows), rng.beta(2, 3, current.num_rows))
    for name, table, score in zip(("reference", "current"), (reference, current), scores, strict=True):
        schemas.write(table, root / "traffic" / f"{name}.parquet", schemas.TRAFFIC)
        path = root / "evaluation" / "traffic_scores" / f"{name}.parquet"
        schemas.write(pa.table({"score": score}), path, schemas.TRAFFIC_SCORES)
    artifacts.write_json(root / "student" / "config.json", {"model_type": "llama"})
    for name in ("traffic", "evaluation", "student"):
        artifacts.seal(root / name)
    return {name: root / name for name in ("traffic", "evaluation", "student")} | {"output": root / "drift"}


def run_stage(paths: dict[str, Path], config: Drift | None = None, champion: str = "", uri: str = "") -> dict:
    """Run the stage and return the content of drift.json."""
    config = config or Drift(embedding_rows=0)
    share = measure_drift(config, Registry(uri=uri or "registry"), champion=champion, **paths)
    result = json.loads((paths["output"] / "drift.json").read_text())
    assert share == result["candidate"]["share"]
    return result


def columns_by_name(part: dict) -> dict[str, dict]:
    """The columns of an entry of drift.json, by name."""
    return {column["name"]: column for column in part["columns"]}


def publish_champion(root: Path, reference: pa.Table, scores: np.ndarray) -> str:
    """Publish a champion with this reference in `root/registry`, and return its id."""
    version = root / "version"
    artifacts.write_json(version / "student" / "config.json", {"model_type": "llama"})
    champion = registry.version_id(artifacts.seal(version / "student"))
    (version / "traffic").mkdir()
    pq.write_table(reference, version / "traffic" / "reference.parquet")
    path = version / "traffic" / "reference_scores.parquet"
    schemas.write(pa.table({"score": scores}), path, schemas.TRAFFIC_SCORES)
    registry.open(str(root / "registry")).publish(version, champion)
    return champion


def write_champion_scores(paths: dict[str, Path], scores: np.ndarray) -> Path:
    """Write the champion's scores on the newest traffic, and return the file."""
    path = paths["evaluation"] / "traffic_scores" / "champion_current.parquet"
    schemas.write(pa.table({"score": scores}), path, schemas.TRAFFIC_SCORES)
    artifacts.seal(paths["evaluation"])
    return path
