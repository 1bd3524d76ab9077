"""How long systems take to score requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from distilrank.evaluation.judged import Judged

REQUEST_PRODUCTS = 32  # most products that one timed request scores


def measure_latency(
    scores: Mapping[str, Callable[[pa.Table], Any]], judged: Judged, pairs: int
) -> dict[str, dict[str, float]]:
    """Time systems on requests of one query's products each, in turn on the same request, each first as often.

    Args:
        scores: what scores the rows of a request, by system.
        judged: where the requests come from.
        pairs: as many requests as it takes for this many pairs, or all there are.

    Returns:
        By system: pairs_per_second, p50_ms, p95_ms and p99_ms of a request, and pairs_per_request (mean).
    """
    order = np.argsort(judged.query, kind="stable")
    lists = np.split(order, np.flatnonzero(np.diff(judged.query[order])) + 1)
    requests: list[pa.Table] = []
    for rows in lists:
        if sum(request.num_rows for request in requests) >= pairs:
            break
        requests.append(judged.table.take(pa.array(rows[:REQUEST_PRODUCTS])))
    seconds: dict[str, list[float]] = {name: [] for name in scores}
    for score in scores.values():
        for request in requests:  # a new shape costs its first pass extra, so warm up with all of them
            score(request)
    names = list(scores)
    for number, request in enumerate(requests):
        first = number % len(names)  # whoever comes first finds colder caches
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            scores[name](request)
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
