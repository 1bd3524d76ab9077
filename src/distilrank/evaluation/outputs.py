"""Files that the evaluation writes besides metrics.json: per-query metrics, pair scores, TREC qrels and runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from distilrank.core import schemas
from distilrank.evaluation import metrics, trec
from distilrank.evaluation.judged import Judged, System


def write_per_query(path: Path, judged: Judged, by_query: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write the per-query metrics of each system on the ranked queries, in the schema PER_QUERY."""
    ranked = judged.ranked
    queries = {
        "query_id": judged.query_ids[ranked],
        "query": judged.per_query("query")[ranked],
        "stratum": judged.per_query("stratum")[ranked],
        "pairs": np.bincount(judged.query)[ranked].astype(np.int32),
    }
    tables = [pa.table({"system": [name] * len(ranked), **queries, **values}) for name, values in by_query.items()]
    schemas.write(pa.concat_tables(tables), path, schemas.PER_QUERY)


def write_pair_scores(path: Path, judged: Judged, systems: Mapping[str, System]) -> None:
    """Write each system's score and probability of every judged pair, in the schema PAIR_SCORES."""
    pairs = judged.table.select(["query_id", "product_id", "target"])
    tables = []
    for name, system in systems.items():
        probability = np.full(pairs.num_rows, np.nan) if system.probability is None else system.probability
        table = pairs.append_column("system", pa.array([name] * pairs.num_rows))
        table = table.append_column("score", pa.array(system.score, pa.float32()))
        tables.append(table.append_column("probability", pa.array(probability, pa.float32(), from_pandas=True)))
    schemas.write(pa.concat_tables(tables), path, schemas.PAIR_SCORES)


def write_trec(output: Path, judged: Judged, systems: Mapping[str, System]) -> None:
    """Write the ranked queries to `output/qrels.txt` and each system's ranking of them to `output/runs/SYSTEM.run`."""
    rows = judged.rows
    query_ids, product_ids = judged.query_ids[judged.query[rows]].tolist(), [judged.product_ids[row] for row in rows]
    trec.write_qrels(output / "qrels.txt", query_ids, product_ids, judged.grade[rows])
    for name, system in systems.items():
        ranks = metrics.ranks(judged.query[rows], system.score[rows], judged.tie[rows])
        trec.write_run(output / "runs" / f"{name}.run", name, query_ids, product_ids, ranks + 1, system.score[rows])
