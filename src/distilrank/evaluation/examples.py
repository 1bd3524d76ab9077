"""Example queries: those on which a system gains and loses most against a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distilrank.evaluation import metrics
from distilrank.evaluation.judged import Judged, System
from distilrank.evaluation.significance import TIE

METRIC = "ndcg_at_10"
QUERIES, PRODUCTS = 5, 3


def extremes(
    judged: Judged,
    systems: Mapping[str, System],
    by_query: Mapping[str, Mapping[str, np.ndarray]],
    system: str,
    baseline: str,
) -> dict[str, Any]:
    """Find the ranked queries with the largest gain and the largest loss of nDCG@10, and what both systems rank first.

    Args:
        judged: the test rows.
        systems: scores by system name.
        by_query: per-query metrics of the ranked queries, by system.
        system: system that gains or loses; its first products are under the key `student`.
        baseline: system that it is compared with.

    Returns:
        `examples` of metrics.json: at most QUERIES gains and losses, the largest first, ties by query_id.
    """
    deltas = by_query[system][METRIC] - by_query[baseline][METRIC]
    largest, smallest = (np.argsort(keys, kind="stable")[:QUERIES] for keys in (-deltas, deltas))
    best, worst = largest[deltas[largest] > TIE], smallest[deltas[smallest] < -TIE]
    chosen = judged.ranked[np.concatenate([best, worst])]
    roles = {"student": system, "baseline": baseline}
    first_rows = {role: _first_rows(judged, systems[name].score, chosen) for role, name in roles.items()}
    query_texts = judged.per_query("query")

    def describe_rows(role: str, query: int) -> list[dict[str, Any]]:
        rows = first_rows[role][query]
        titles = judged.table.column("title").take(rows).to_pylist()
        scores = systems[roles[role]].score[rows]
        return [
            {"title": title or "", "target": round(float(judged.target[row]), 6), "score": float(score)}
            for title, row, score in zip(titles, rows, scores, strict=True)
        ]

    def describe_query(index: int) -> dict[str, Any]:
        query = int(judged.ranked[index])
        rows = {role: describe_rows(role, query) for role in roles}
        return {"query": query_texts[query], "delta": float(deltas[index]), **rows}

    return {
        "baseline": baseline,
        "metric": METRIC,
        "best": [describe_query(index) for index in best],
        "worst": [describe_query(index) for index in worst],
    }


def _first_rows(judged: Judged, score: np.ndarray, queries: np.ndarray) -> dict[int, np.ndarray]:
    """Return the indices of the first PRODUCTS rows of each of `queries`, by descending `score`."""
    rows = np.flatnonzero(np.isin(judged.query, queries))
    if not len(rows):
        return {}
    rank = metrics.ranks(judged.query[rows], score[rows], judged.tie[rows])
    order = np.lexsort((rank, judged.query[rows]))
    first = rows[order[rank[order] < PRODUCTS]]
    return {int(query): first[judged.query[first] == query] for query in queries}
