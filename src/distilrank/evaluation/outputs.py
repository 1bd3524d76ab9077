"""The files in which the evaluation leaves its rows: tables, qrels and runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from distilrank.core import schemas
from distilrank.evaluation import metrics, trec
from distilrank.evaluation.judged import Judged, System


def write_per_query(path: Path, judged: Judged, by_query: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write each system's measures of the ranked queries, as records.PER_QUERY."""
    ranked = judged.ranked
    described = {
        "query_id": judged.query_ids[ranked],
        "query": judged.per_query("query")[ranked],
        "stratum": judged.per_query("stratum")[ranked],
        "pairs": np.bincount(judged.query)[ranked].astype(np.int32),
    }
    parts = [pa.table({"system": [name] * len(ranked), **described, **values}) for name, values in by_query.items()]
    schemas.write(pa.concat_tables(parts), path, schemas.PER_QUERY)


def write_pair_scores(path: Path, judged: Judged, systems: Mapping[str, System]) -> None:
    same = judged.table.select(["query_id", "product_id", "target"])
    parts = []
    for name, system in systems.items():
        none = np.full(same.num_rows, np.nan) if system.probability is None else system.probability
        part = same.append_column("system", pa.array([name] * same.num_rows))
        part = part.append_column("score", pa.array(system.score, pa.float32()))
        parts.append(part.append_column("probability", pa.array(none, pa.float32(), from_pandas=True)))
    schemas.write(pa.concat_tables(parts), path, schemas.PAIR_SCORES)


def write_trec(output: Path, judged: Judged, systems: Mapping[str, System]) -> None:
    """Write the ranked queries to `output/qrels.txt`, and each system's order of them to `output/runs/SYSTEM.run`."""
    rows = judged.rows
    query_ids, product_ids = judged.query_ids[judged.query[rows]].tolist(), [judged.product_ids[row] for row in rows]
    trec.write_qrels(output / "qrels.txt", query_ids, product_ids, judged.grade[rows])
    for name, system in systems.items():
        ranks = metrics.ranks(judged.query[rows], system.score[rows], judged.tie[rows])
        trec.write_run(output / "runs" / f"{name}.run", name, query_ids, product_ids, ranks + 1, system.score[rows])
