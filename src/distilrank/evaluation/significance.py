"""How sure a difference between two systems is, given that queries, not pairs, are the independent draws.

Resamples are drawn in groups of `GROUP`, each from a generator of its own, on all cores: the figures depend neither on
how many cores there are nor on how much is held in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri
from threadpoolctl import threadpool_limits

from distilrank.core import hardware

GROUP = 50  # resamples that share a generator
AT_ONCE = 2**18  # draws held by a thread: what a core's own cache holds
TIE = 1e-12  # differences closer to 0 are those of sums in another order

Interval = Literal["percentile", "bca"]


class IntervalEstimate(NamedTuple):
    """Interval and p-value of each of several differences, float64, shape (differences,)."""

    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray


def paired_interval(
    deltas: np.ndarray,
    *,
    resamples: int,
    confidence: float,
    rng: np.random.Generator,
    interval: Interval = "percentile",
) -> IntervalEstimate:
    """Certainty of mean differences of per-query measures.

    The interval is the bootstrap's over queries, of percentiles or bias-corrected and accelerated (Efron, JASA 82,
    1987). The p-value is that of the two-sided sign-flip randomization test (were the systems exchangeable, each
    query's difference could as well have the other sign): (1 + randomizations with as large a difference) /
    (1 + randomizations).

    Args:
        deltas: measure of one system minus that of the other, shape (queries, differences), queries at least 1.
        resamples: resamples of the bootstrap, and of the randomization.
        confidence: level of the interval.
        rng: source of the draws; all differences share them.
        interval: `percentile` or `bca`.
    """
    deltas = np.ascontiguousarray(deltas, np.float64)
    queries = len(deltas)
    means = np.concatenate(
        _grouped(
            rng,
            resamples,
            lambda own, count: [drawn @ deltas / queries for drawn in _multiplicities(own, count, queries)],
        )
    )
    observed = np.abs(deltas.mean(axis=0))
    sums = deltas.sum(axis=0)
    as_large = np.sum(
        _grouped(
            rng,
            resamples,
            lambda own, count: [
                (np.abs(2 * (kept @ deltas) - sums) / queries >= observed - TIE).sum(axis=0)
                for kept in _halves(own, count, queries)
            ],
        ),
        axis=0,
    )
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    low, high = _bca(means, deltas, tails) if interval == "bca" else np.quantile(means, tails, axis=0)
    return IntervalEstimate(low, high, (1 + as_large) / (1 + resamples))


def cluster_interval(
    differences: Callable[[np.ndarray], np.ndarray],
    queries: int,
    *,
    resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> IntervalEstimate:
    """Certainty of differences of measures across queries (AUC, say), by a bootstrap that draws whole queries.

    The interval is that of percentiles. The p-value is two-sided, read from the same bootstrap: twice the smaller share
    of resamples on one side of 0. Resamples in which a difference has no value (NaN: one class is absent) do not count
    for it; if none has, it is NaN.

    Args:
        differences: gives all differences, shape (differences,), for how often each query is drawn, float64, shape
            (queries,); called from several threads.
        queries: their number.
        resamples: resamples of the bootstrap.
        confidence: level of the interval.
        rng: source of the draws.
    """
    drawn = np.stack(
        _grouped(
            rng,
            resamples,
            lambda own, count: [differences(row) for block in _multiplicities(own, count, queries) for row in block],
        )
    )
    results = []
    for column in drawn.T:
        values = column[np.isfinite(column)]
        if not len(values):
            results.append((np.nan, np.nan, np.nan))
            continue
        low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
        beyond = min((values <= 0).sum(), (values >= 0).sum())
        results.append((low, high, min(2 * (1 + beyond) / (1 + len(values)), 1.0)))
    return IntervalEstimate(*np.array(results, np.float64).reshape(-1, 3).T)


def outcomes(deltas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries won, tied and lost, int64, each of shape (differences,); `deltas` as for `paired`."""
    won, lost = (deltas > TIE).sum(axis=0), (deltas < -TIE).sum(axis=0)
    return won, len(deltas) - won - lost, lost


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values adjusted for their number by Holm's step-down method, float64, shape (family,).

    To reject where they are below alpha keeps the chance of any false rejection in the family below alpha, whatever
    the dependence of the tests (Holm, Scandinavian Journal of Statistics 6, 1979).
    """
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


# Draws ------------------------------------------------------------------------------------------------------------


def _grouped(
    rng: np.random.Generator, resamples: int, draw: Callable[[np.random.Generator, int], list[np.ndarray]]
) -> list[np.ndarray]:
    """What `draw` makes of a generator and a number of resamples, for all of them, in order."""
    counts = [min(GROUP, resamples - start) for start in range(0, resamples, GROUP)]
    # Threads of the library for linear algebra would wait for the cores that these ones have.
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(hardware.cores()) as pool:
        return [one for part in pool.map(draw, rng.spawn(len(counts)), counts) for one in part]


def _blocks(resamples: int, queries: int) -> Iterator[int]:
    size = max(AT_ONCE // queries, 1)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def _multiplicities(rng: np.random.Generator, resamples: int, queries: int) -> Iterator[np.ndarray]:
    """How often each query is drawn with replacement, float64, in blocks of shape (some resamples, queries)."""
    for rows in _blocks(resamples, queries):
        counts = np.empty((rows, queries))
        for row in counts:
            row[:] = np.bincount(rng.integers(queries, size=queries, dtype=np.int32), minlength=queries)
        yield counts


def _halves(rng: np.random.Generator, resamples: int, queries: int) -> Iterator[np.ndarray]:
    """Which queries keep their sign, 0.0 or 1.0 with even chances, in blocks of shape (some resamples, queries)."""
    words = -(-queries // 32)
    for rows in _blocks(resamples, queries):
        bits = rng.integers(2**32, size=(rows, words), dtype=np.uint32).view(np.uint8)
        yield np.unpackbits(bits, axis=1, count=queries).astype(np.float64)


def _bca(means: np.ndarray, deltas: np.ndarray, tails: tuple[float, float]) -> np.ndarray:
    """Ends of the bias-corrected and accelerated interval of a mean, shape (2, differences).

    Efron, JASA 82, 1987; the bias counts resamples at the observed mean one half, as scipy.stats.bootstrap does. The
    jackknife of a mean leaves (d - mean) / (n - 1), so the acceleration is that of the deltas' own skewness.
    """
    observed = deltas.mean(axis=0)
    below = ((means < observed).sum(axis=0) + (means <= observed).sum(axis=0)) / 2
    # A mean outside of all resamples would be infinitely biased: half a resample is as far as they can tell.
    bias = ndtri(np.clip(below, 0.5, len(means) - 0.5) / len(means))
    centred = deltas - observed
    scale = 6 * (centred**2).sum(axis=0) ** 1.5
    acceleration = np.divide((centred**3).sum(axis=0), scale, out=np.zeros_like(scale), where=scale > 0)
    shifted = bias + ndtri(np.array(tails))[:, None]
    levels = ndtr(bias + shifted / np.maximum(1 - acceleration * shifted, np.finfo(float).tiny))
    return np.stack([np.quantile(means[:, at], levels[:, at]) for at in range(means.shape[1])], axis=1)
