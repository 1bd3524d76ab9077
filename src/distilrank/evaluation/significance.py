"""Confidence intervals and p-values of differences between two systems. Queries, not pairs, are the independent draws.

Resamples are drawn in groups of `GROUP` on all cores, each group from a separate generator. The results therefore
depend neither on the number of cores nor on the size of the blocks in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri
from threadpoolctl import threadpool_limits

from distilrank.core import hardware

GROUP = 50  # resamples that share a generator
BLOCK_DRAWS = 2**18  # draws that a thread holds at a time, which fit into the cache of a core
TIE = 1e-12  # differences closer to 0 are rounding errors of sums in another order

IntervalMethod = Literal["percentile", "bca"]


class IntervalEstimate(NamedTuple):
    """Confidence interval and p-value of each of several differences, float64, shape (differences,)."""

    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray


def tail_levels(confidence: float) -> tuple[float, float]:
    """Return the quantile levels of the ends of a percentile interval: 0.025 and 0.975 for 0.95."""
    return (1 - confidence) / 2, (1 + confidence) / 2


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], queries: int, *, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Compute a statistic on bootstrap resamples of whole queries (each query's rows are drawn together).

    Args:
        statistic: maps draw counts, float64, shape (n, queries), to n values, shape (n, ...). Row i says how often
            resample i draws each query. Called from several threads.
        queries: number of queries.
        resamples: number of resamples.
        rng: source of the draws.

    Returns:
        The statistic of each resample, shape (resamples, ...). More resamples continue the same sequence.
    """
    blocks = _draw_in_groups(
        rng,
        resamples,
        lambda group_rng, count: [statistic(counts) for counts in _query_counts(group_rng, count, queries)],
    )
    return np.concatenate(blocks)


def paired_interval(
    deltas: np.ndarray,
    *,
    resamples: int,
    confidence: float,
    rng: np.random.Generator,
    interval: IntervalMethod = "percentile",
) -> IntervalEstimate:
    """Estimate confidence intervals and p-values of mean differences of per-query metrics.

    The interval comes from a bootstrap over queries, by percentiles or bias-corrected and accelerated. The p-value is
    that of the two-sided sign-flip randomization test: if the systems were exchangeable, each query's difference could
    equally well have the opposite sign. It is (1 + randomizations with a difference at least as large) /
    (1 + randomizations).

    Args:
        deltas: metric of one system minus that of the other, shape (queries, differences), at least 1 query.
        resamples: number of bootstrap resamples and of randomizations.
        confidence: level of the interval, in (0, 1).
        rng: source of the draws; all differences share them.
        interval: `percentile` or `bca`.

    Source: Efron, JASA 82, 1987 (bca).
    """
    deltas = np.ascontiguousarray(deltas, np.float64)
    queries = len(deltas)
    means = cluster_bootstrap(lambda counts: counts @ deltas / queries, queries, resamples=resamples, rng=rng)
    observed = np.abs(deltas.mean(axis=0))
    sums = deltas.sum(axis=0)

    def count_as_large(group_rng: np.random.Generator, count: int) -> list[np.ndarray]:
        return [
            (np.abs(2 * (is_kept @ deltas) - sums) / queries >= observed - TIE).sum(axis=0)
            for is_kept in _sign_flips(group_rng, count, queries)
        ]

    as_large = np.sum(_draw_in_groups(rng, resamples, count_as_large), axis=0)
    levels = tail_levels(confidence)
    low, high = _bca_ends(means, deltas, levels) if interval == "bca" else np.quantile(means, levels, axis=0)
    return IntervalEstimate(low, high, (1 + as_large) / (1 + resamples))


def cluster_interval(
    differences: Callable[[np.ndarray], np.ndarray],
    queries: int,
    *,
    resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> IntervalEstimate:
    """Estimate confidence intervals and p-values of differences of metrics that are not means over queries (ROC-AUC).

    The interval is the percentile interval of a cluster bootstrap over whole queries. The two-sided p-value comes from
    the same bootstrap: twice the smaller share of resamples on one side of 0. A resample in which a difference has no
    value (NaN, because one class is absent) does not count for that difference; if none has a value, the results are
    NaN.

    Args:
        differences: maps how often each query is drawn, float64, shape (queries,), to all differences, shape
            (differences,). Called from several threads.
        queries: number of queries.
        resamples: number of bootstrap resamples.
        confidence: level of the interval, in (0, 1).
        rng: source of the draws.
    """
    drawn = cluster_bootstrap(
        lambda counts: np.stack([differences(row) for row in counts]), queries, resamples=resamples, rng=rng
    )
    estimates = []
    for column in drawn.T:
        values = column[np.isfinite(column)]
        if not len(values):
            estimates.append((np.nan, np.nan, np.nan))
            continue
        low, high = np.quantile(values, tail_levels(confidence))
        smaller_side = min((values <= 0).sum(), (values >= 0).sum())
        estimates.append((low, high, min(2 * (1 + smaller_side) / (1 + len(values)), 1.0)))
    return IntervalEstimate(*np.array(estimates, np.float64).reshape(-1, 3).T)


def comparison_rows(
    keys: Sequence[tuple[str, str, str]], deltas: np.ndarray, intervals: IntervalEstimate
) -> list[dict[str, Any]]:
    """Format comparisons for metrics.json, one row for each key.

    Args:
        keys: system, baseline and metric of each comparison.
        deltas: observed difference of each comparison, shape (keys,).
        intervals: confidence interval and p-value of each comparison.
    """
    return [
        {
            "system": system,
            "baseline": baseline,
            "metric": metric,
            "delta": float(delta),
            "ci_low": float(low),
            "ci_high": float(high),
            "p_value": float(p_value),
        }
        for (system, baseline, metric), delta, low, high, p_value in zip(keys, deltas, *intervals, strict=True)
    ]


def win_tie_loss(deltas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the queries won, tied and lost, int64, each of shape (differences,); `deltas` as in `paired_interval`."""
    wins, losses = (deltas > TIE).sum(axis=0), (deltas < -TIE).sum(axis=0)
    return wins, len(deltas) - wins - losses, losses


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust the p-values of a family of tests by Holm's step-down method, float64, shape (family,).

    Rejecting where an adjusted value is below alpha keeps the probability of any false rejection in the family below
    alpha, however the tests depend on each other.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


# Draws ------------------------------------------------------------------------------------------------------------


def _draw_in_groups(
    rng: np.random.Generator, resamples: int, draw: Callable[[np.random.Generator, int], list[np.ndarray]]
) -> list[np.ndarray]:
    """Call `draw` with a generator and a number of resamples for each group, and join the results in order."""
    counts = [min(GROUP, resamples - start) for start in range(0, resamples, GROUP)]
    # BLAS threads would compete with these threads for the cores.
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(hardware.cores()) as pool:
        return [block for blocks in pool.map(draw, rng.spawn(len(counts)), counts) for block in blocks]


def _block_sizes(resamples: int, queries: int) -> Iterator[int]:
    size = max(BLOCK_DRAWS // queries, 1)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def _query_counts(rng: np.random.Generator, resamples: int, queries: int) -> Iterator[np.ndarray]:
    """Draw queries with replacement; yield each one's count, float64, in blocks of shape (n, queries)."""
    for size in _block_sizes(resamples, queries):
        counts = np.empty((size, queries))
        for row in counts:
            row[:] = np.bincount(rng.integers(queries, size=queries, dtype=np.int32), minlength=queries)
        yield counts


def _sign_flips(rng: np.random.Generator, resamples: int, queries: int) -> Iterator[np.ndarray]:
    """Draw which queries keep their sign, 1.0 or 0.0 with even odds, in blocks of shape (n, queries)."""
    words = -(-queries // 32)
    for size in _block_sizes(resamples, queries):
        bits = rng.integers(2**32, size=(size, words), dtype=np.uint32).view(np.uint8)
        yield np.unpackbits(bits, axis=1, count=queries).astype(np.float64)


def _bca_ends(means: np.ndarray, deltas: np.ndarray, levels: tuple[float, float]) -> np.ndarray:
    """Compute the ends of the bias-corrected and accelerated interval of a mean, shape (2, differences).

    The bias counts a resample that equals the observed mean as one half, as scipy.stats.bootstrap does. The jackknife
    of a mean leaves (d - mean) / (n - 1), so the acceleration is the skewness of the deltas themselves.
    """
    observed = deltas.mean(axis=0)
    below = ((means < observed).sum(axis=0) + (means <= observed).sum(axis=0)) / 2
    # A mean outside all resamples would have infinite bias: half a resample is the smallest share that counts.
    bias = ndtri(np.clip(below, 0.5, len(means) - 0.5) / len(means))
    centered = deltas - observed
    scale = 6 * (centered**2).sum(axis=0) ** 1.5
    acceleration = np.divide((centered**3).sum(axis=0), scale, out=np.zeros_like(scale), where=scale > 0)
    shifted = bias + ndtri(np.array(levels))[:, None]
    adjusted_levels = ndtr(bias + shifted / np.maximum(1 - acceleration * shifted, np.finfo(float).tiny))
    return np.stack(
        [np.quantile(means[:, column], adjusted_levels[:, column]) for column in range(means.shape[1])], axis=1
    )
