"""The queries on which a system gained and lost most, for people to read."""

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
    """The ranked queries with the largest gain and the largest loss of nDCG@10, and what either system ranks first.

    Args:
        judged: the test rows.
        systems: their scores, by name.
        by_query: per-query measures of the ranked queries, by system.
        system: the one that gains or loses; its first products stand under `student`.
        baseline: what it is compared with.

    Returns:
        `examples` of metrics.json: at most QUERIES each, the best and the worst first, ties by query_id.
    """
    deltas = by_query[system][METRIC] - by_query[baseline][METRIC]
    order = np.argsort(deltas, kind="stable")
    worst = [at for at in order[:QUERIES] if deltas[at] < -TIE]
    best = [at for at in np.argsort(-deltas, kind="stable")[:QUERIES] if deltas[at] > TIE]
    shown = {
        role: _first_rows(judged, systems[name].score, judged.ranked[[*best, *worst]])
        for role, name in (("student", system), ("baseline", baseline))
    }
    queries = judged.per_query("query")

    def rows(role: str, name: str, query: int) -> list[dict[str, Any]]:
        places = shown[role][query]
        titles = judged.table.column("title").take(places).to_pylist()
        return [
            {"title": title or "", "target": round(float(judged.target[row]), 6), "score": float(score)}
            for title, row, score in zip(titles, places, systems[name].score[places], strict=True)
        ]

    def described(at: int) -> dict[str, Any]:
        query = int(judged.ranked[at])
        return {
            "query": queries[query],
            "delta": float(deltas[at]),
            "student": rows("student", system, query),
            "baseline": rows("baseline", baseline, query),
        }

    return {
        "baseline": baseline,
        "metric": METRIC,
        "best": [described(at) for at in best],
        "worst": [described(at) for at in worst],
    }


def _first_rows(judged: Judged, score: np.ndarray, queries: np.ndarray) -> dict[int, np.ndarray]:
    """Places of the first PRODUCTS rows of each of `queries`, in the system's order."""
    inside = np.flatnonzero(np.isin(judged.query, queries))
    if not len(inside):
        return {}
    rank = metrics.ranks(judged.query[inside], score[inside], judged.tie[inside])
    order = np.lexsort((rank, judged.query[inside]))
    order = order[rank[order] < PRODUCTS]
    return {int(query): inside[order[judged.query[inside[order]] == query]] for query in queries}
