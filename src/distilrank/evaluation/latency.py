"""Latency of scoring, measured in turn on the same requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from distilrank.evaluation.judged import Judged

MAX_PRODUCTS = 32  # largest number of products in a timed request


def measure_latency(
    scorers: Mapping[str, Callable[[pa.Table], Any]], judged: Judged, pairs: int
) -> dict[str, dict[str, float]]:
    """Time systems on requests with the products of one query. Each system is equally often the first to score one.

    Args:
        scorers: by system, the function that scores the rows of a request.
        judged: where the requests come from.
        pairs: number of pairs that the requests should contain together; all queries are used if they have fewer.

    Returns:
        By system: pairs_per_second; p50_ms, p95_ms and p99_ms of a request; and pairs_per_request (mean).
    """
    requests = _make_requests(judged, pairs)
    for score in scorers.values():
        for request in requests:  # the first pass of a new shape is slower, so warm up with all of them
            score(request)
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    names = list(scorers)
    for number, request in enumerate(requests):
        first = number % len(names)  # the first system finds colder caches
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            scorers[name](request)
            seconds[name].append(time.perf_counter() - started)
    total = sum(request.num_rows for request in requests)
    return {
        name: {
            "pairs_per_second": total / max(sum(times), 1e-9),
            "p50_ms": float(np.quantile(times, 0.5)) * 1e3,
            "p95_ms": float(np.quantile(times, 0.95)) * 1e3,
            "p99_ms": float(np.quantile(times, 0.99)) * 1e3,
            "pairs_per_request": total / len(requests),
        }
        for name, times in seconds.items()
    }


def _make_requests(judged: Judged, pairs: int) -> list[pa.Table]:
    """Take the rows of one query after another, up to MAX_PRODUCTS each, until there are `pairs` rows."""
    order = np.argsort(judged.query, kind="stable")
    rows_by_query = np.split(order, np.flatnonzero(np.diff(judged.query[order])) + 1)
    requests: list[pa.Table] = []
    for rows in rows_by_query:
        if sum(request.num_rows for request in requests) >= pairs:
            break
        requests.append(judged.table.take(pa.array(rows[:MAX_PRODUCTS])))
    return requests
