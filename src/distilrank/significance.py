"""How sure a difference between two systems is, given that queries, not pairs, are the independent draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

AT_ONCE = 2**22  # draws held in memory together


class Certainty(NamedTuple):
    """Interval and p-value of each of several differences, float64, shape (differences,)."""

    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray


def _blocks(resamples: int, queries: int) -> Iterator[int]:
    size = max(AT_ONCE // queries, 1)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def _multiplicities(rng: np.random.Generator, resamples: int, queries: int) -> Iterator[np.ndarray]:
    """How often each query is drawn in each resample with replacement, in blocks of shape (some resamples, queries)."""
    for rows in _blocks(resamples, queries):
        drawn = rng.integers(queries, size=(rows, queries)) + queries * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries)


def paired(deltas: np.ndarray, *, resamples: int, confidence: float, rng: np.random.Generator) -> Certainty:
    """Certainty of mean differences of per-query measures.

    The interval is the percentile bootstrap over queries. The p-value is that of the two-sided sign-flip randomisation
    test (were the systems exchangeable, each query's difference could as well have the other sign):
    (1 + randomisations with as large a difference) / (1 + randomisations).

    Args:
        deltas: measure of one system minus that of the other, shape (queries, differences), queries at least 1.
        resamples: resamples of the bootstrap, and of the randomisation.
        confidence: level of the interval.
        rng: source of the draws; all differences share them.
    """
    queries = len(deltas)
    means = np.concatenate([drawn @ deltas / queries for drawn in _multiplicities(rng, resamples, queries)])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    observed = np.abs(deltas.mean(axis=0))
    as_large = np.zeros(deltas.shape[1])
    for rows in _blocks(resamples, queries):
        signs = 2.0 * rng.integers(2, size=(rows, queries), dtype=np.int8) - 1
        as_large += (np.abs(signs @ deltas / queries) >= observed - 1e-12).sum(axis=0)
    return Certainty(low, high, (1 + as_large) / (1 + resamples))


def clustered(
    differences: Callable[[np.ndarray], np.ndarray],
    queries: int,
    *,
    resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> Certainty:
    """Certainty of differences of measures across queries (AUC, say), by a bootstrap that draws whole queries.

    The p-value is two-sided, read from the same bootstrap: twice the smaller share of resamples on one side of 0.
    Resamples in which a difference has no value (NaN: one class is absent) do not count for it; if none has, it is NaN.

    Args:
        differences: gives all differences, shape (differences,), for how often each query is drawn, shape (queries,).
        queries: their number.
        resamples: resamples of the bootstrap.
        confidence: level of the interval.
        rng: source of the draws.
    """
    drawn = np.stack([differences(row) for block in _multiplicities(rng, resamples, queries) for row in block])
    results = []
    for column in drawn.T:
        values = column[np.isfinite(column)]
        if not len(values):
            results.append((np.nan, np.nan, np.nan))
            continue
        low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
        beyond = min((values <= 0).sum(), (values >= 0).sum())
        results.append((low, high, min(2 * (1 + beyond) / (1 + len(values)), 1.0)))
    return Certainty(*np.array(results, np.float64).reshape(-1, 3).T)
