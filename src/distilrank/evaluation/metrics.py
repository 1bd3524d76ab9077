"""Metrics of relevance, per query and over all pairs, on flat arrays with one row per judged pair.

`query` is an integer from 0 to queries - 1, shared by the rows of a query, in any order. Scores are compared as 32-bit
floats, which is what `trec_eval` reads from a run file. Per-query metrics are float64, shape (queries,).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from distilrank.core.errors import InputError, RunStopped
from distilrank.evaluation import trec

PER_QUERY = ("ndcg_at_5", "ndcg_at_10", "mrr", "pair_accuracy")
PAIRS_PER_BLOCK = 2**21  # bounds the memory: a WANDS query has hundreds of products, hence 10^5 pairs


def grades(targets: Sequence[float] | np.ndarray) -> np.ndarray:
    """Convert soft targets in [0, 1] to whole hundredths, int64: the gains that integer qrels can hold.

    Halves are rounded up. Digits beyond the sixth are rounded away first, so that 0.665 gives 67 as a 32-bit float too.
    """
    return np.floor(np.round(np.asarray(targets, np.float64), 6) * 100 + 0.5 + 1e-6).astype(np.int64)


def rankable(query: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Whether each query has products of different gain, bool, shape (queries,). If not, every order is as good."""
    queries = int(query.max()) + 1
    low, high = np.full(queries, np.inf), np.full(queries, -np.inf)
    np.minimum.at(low, query, gain)
    np.maximum.at(high, query, gain)
    return high > low


def ranks(query: np.ndarray, score: np.ndarray, tie: np.ndarray | None = None) -> np.ndarray:
    """Rank each row within its query by descending score, int64 from 0.

    Args:
        query: shape (rows,).
        score: shape (rows,).
        tie: among equal scores, the row with the larger `tie` comes first (see `trec.tie_ranks`); None: the earlier
            row comes first.
    """
    keys = (-np.asarray(score, np.float32), query)
    order = np.lexsort(keys if tie is None else (-tie, *keys))
    starts = np.searchsorted(query[order], query[order])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - starts
    return rank


def _dcg(query: np.ndarray, gain: np.ndarray, rank: np.ndarray, k: int) -> np.ndarray:
    return np.bincount(query, np.where(rank < k, gain / np.log2(rank + 2), 0.0))


def ndcg(query: np.ndarray, gain: np.ndarray, score: np.ndarray, k: int, tie: np.ndarray | None = None) -> np.ndarray:
    """Compute normalized discounted cumulative gain at `k`, with linear gain and discount log2(1 + rank).

    Gains must not be negative. A query whose gains are all 0 has no value (NaN).

    Source: Järvelin and Kekäläinen, ACM TOIS 20, 2002.
    """
    return _ndcg(query, gain, ranks(query, score, tie), ranks(query, gain), k)


def _ndcg(query: np.ndarray, gain: np.ndarray, rank: np.ndarray, ideal: np.ndarray, k: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return _dcg(query, gain, rank, k) / _dcg(query, gain, ideal, k)


def reciprocal_rank(
    query: np.ndarray, relevant: np.ndarray, score: np.ndarray, tie: np.ndarray | None = None
) -> np.ndarray:
    """Compute one over the rank of the first relevant row; 0 if a query has none. `relevant` is bool, shape (rows,)."""
    return _reciprocal_rank(query, relevant, ranks(query, score, tie))


def _reciprocal_rank(query: np.ndarray, relevant: np.ndarray, rank: np.ndarray) -> np.ndarray:
    reciprocal = np.zeros(int(query.max()) + 1)
    np.maximum.at(reciprocal, query, relevant / (rank + 1.0))
    return reciprocal


def _pair_blocks(query: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the indices of every two rows of the same query, once, in blocks; `query` must be sorted."""
    row = np.arange(len(query))
    later = np.searchsorted(query, query, side="right") - row - 1
    block = np.cumsum(later) // PAIRS_PER_BLOCK
    for rows in np.split(row, np.flatnonzero(np.diff(block)) + 1):
        count = later[rows]
        first = np.repeat(rows, count)
        yield first, first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)


def pair_accuracy(query: np.ndarray, gain: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Compute the share of a query's pairs of different gain that the scores order correctly; ties count one half.

    A query without such a pair has no value (NaN).
    """
    order = np.argsort(query, kind="stable")
    query, gain = query[order], gain[order]
    score = np.asarray(score, np.float32)[order].astype(np.float64)
    queries = int(query[-1]) + 1
    correct, total = np.zeros(queries), np.zeros(queries)
    for first, second in _pair_blocks(query):
        expected = np.sign(gain[first] - gain[second])
        agreement = expected * np.sign(score[first] - score[second])
        correct += np.bincount(query[first], np.where(expected != 0, (1 + agreement) / 2, 0.0), queries)
        total += np.bincount(query[first], expected != 0, queries)
    with np.errstate(invalid="ignore"):
        return correct / total


def kendall(query: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute Kendall's tau-b of two scores within each query, in [-1, 1].

    That is (concordant - discordant pairs) / sqrt(pairs that the first score separates * pairs that the second does). A
    query without such pairs has no value (NaN).

    Source: Kendall, Biometrika 33, 1945.
    """
    order = np.argsort(query, kind="stable")
    query = query[order]
    first, second = (np.asarray(score, np.float32)[order] for score in (first, second))
    queries = int(query[-1]) + 1
    difference, first_total, second_total = np.zeros(queries), np.zeros(queries), np.zeros(queries)
    for left, right in _pair_blocks(query):
        first_sign = (first[left] > first[right]).astype(np.int8) - (first[left] < first[right])
        second_sign = (second[left] > second[right]).astype(np.int8) - (second[left] < second[right])
        difference += np.bincount(query[left], first_sign * second_sign, queries)
        first_total += np.bincount(query[left], first_sign != 0, queries)
        second_total += np.bincount(query[left], second_sign != 0, queries)
    with np.errstate(invalid="ignore"):
        return difference / np.sqrt(first_total * second_total)


def per_query(
    query: np.ndarray, gain: np.ndarray, relevant: np.ndarray, score: np.ndarray, tie: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Compute the metrics named in PER_QUERY, each of shape (queries,).

    Args:
        query: shape (rows,), of `rankable` queries only.
        gain: shape (rows,), not negative.
        relevant: bool, shape (rows,), for the reciprocal rank.
        score: shape (rows,).
        tie: as in `ranks`.
    """
    rank, ideal = ranks(query, score, tie), ranks(query, gain)
    return {
        "ndcg_at_5": _ndcg(query, gain, rank, ideal, 5),
        "ndcg_at_10": _ndcg(query, gain, rank, ideal, 10),
        "mrr": _reciprocal_rank(query, relevant, rank),
        "pair_accuracy": pair_accuracy(query, gain, score),
    }


def mean_ndcg(
    query_ids: Sequence[str] | np.ndarray,
    product_ids: Sequence[str] | np.ndarray,
    targets: Sequence[float] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
    k: int = 10,
) -> float:
    """Compute the mean nDCG at `k` over the rankable queries, as the evaluation does (gains in hundredths, ties by id).

    Args:
        query_ids: query of each row, shape (rows,).
        product_ids: product of each row, shape (rows,).
        targets: soft targets in [0, 1], shape (rows,).
        scores: shape (rows,); higher is more relevant.
        k: number of first products that count.

    Raises:
        InputError: no query has products of different gain.
        RunStopped: a score is not a finite number.
    """
    broken = int(np.sum(~np.isfinite(scores)))
    if broken:
        raise RunStopped(f"{broken} of {len(scores)} scores are not finite, expected numbers; the model is broken")
    gain = grades(targets)
    _, query = np.unique(np.asarray(query_ids, dtype=str), return_inverse=True)
    is_rankable = rankable(query, gain) if len(gain) else np.zeros(0, bool)
    if not is_rankable.any():
        raise InputError(
            f"judged pairs: none of {len(is_rankable)} queries has products of different rating, expected at least one"
        )
    return float(ndcg(query, gain, np.asarray(scores), k, trec.tie_ranks(product_ids))[is_rankable].mean())


def judged_ndcg(judged: pa.Table, scores: np.ndarray) -> float:
    """Compute the mean nDCG@10 of `scores`, shape (rows,), on judged pairs with query_id, product_id and gain."""
    query_ids, product_ids, gains = (judged.column(name).to_numpy() for name in ("query_id", "product_id", "gain"))
    return mean_ndcg(query_ids, product_ids, gains, scores)


class ThresholdCurve:
    """Counts of relevant and other rows at or above each threshold of the score; rows of equal score pass together."""

    def __init__(self, relevant: np.ndarray, score: np.ndarray) -> None:
        score = np.asarray(score, np.float32)
        order = np.argsort(-score, kind="stable")
        last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
        self._hits = np.cumsum(relevant[order])[last]
        self._misses = last + 1 - self._hits

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Relevant and other rows at or above each threshold, from the highest threshold down."""
        return self._hits, self._misses


class BootstrapAuc:
    """ROC-AUC and PR-AUC on bootstrap resamples of whole queries.

    The rows are sorted once; a resample then costs two gathers and two running sums. Both metrics are sums over the
    relevant rows: of the other rows below each, and of the precision at its threshold.
    """

    def __init__(self, relevant: np.ndarray, score: np.ndarray, query: np.ndarray) -> None:
        score = np.asarray(score, np.float32)
        order = np.argsort(-score, kind="stable")
        is_relevant = relevant[order]
        end = np.flatnonzero(np.append(np.diff(score[order]) != 0, True)) + 1
        start = np.append(0, end[:-1])
        threshold = np.repeat(np.arange(len(end)), end - start)[is_relevant]
        hits = np.append(0, np.cumsum(is_relevant))
        self._relevant_query, self._other_query = query[order][is_relevant], query[order][~is_relevant]
        # For each relevant row: relevant rows down to its threshold, other rows above it, and other rows down to it.
        self._hits = hits[end][threshold]
        self._misses_above = (start - hits[start])[threshold]
        self._misses = (end - hits[end])[threshold]

    def compute(self, counts: np.ndarray) -> tuple[float, float]:
        """Compute ROC-AUC and average precision if query i is drawn `counts[i]` times; NaN if a class is absent."""
        counts = counts.astype(np.int32)
        weight = counts[self._relevant_query]
        hits = np.append(0, np.cumsum(weight, dtype=np.int64))
        misses = np.append(0, np.cumsum(counts[self._other_query], dtype=np.int64))
        if not hits[-1]:
            return float("nan"), float("nan")
        hits_passed, misses_passed = hits[self._hits], misses[self._misses]
        # Rows of queries that are drawn 0 times may come first: they have no weight.
        precision = weight * (hits_passed / np.maximum(hits_passed + misses_passed, 1))
        average_precision = float(np.sum(precision)) / hits[-1]
        if not misses[-1]:
            return float("nan"), average_precision
        # Twice the other rows below each relevant row, ties counting one half.
        doubled_below = 2 * misses[-1] - misses[self._misses_above] - misses_passed
        return float(np.sum(weight * doubled_below)) / (2.0 * hits[-1] * misses[-1]), average_precision


def roc_auc(hits: np.ndarray, misses: np.ndarray) -> float:
    """Compute the area under the ROC curve from `ThresholdCurve.counts`; NaN if one of the classes is absent."""
    if not hits[-1] or not misses[-1]:
        return float("nan")
    return float(np.trapezoid(np.append(0, hits), np.append(0, misses)) / (hits[-1] * misses[-1]))


def pr_auc(hits: np.ndarray, misses: np.ndarray) -> float:
    """Compute the average precision (no interpolation) from `ThresholdCurve.counts`; NaN if no row is relevant."""
    if not hits[-1]:
        return float("nan")
    passed = np.maximum(hits + misses, 1)  # avoids 0 / 0 where rows of weight 0 come first
    return float(np.sum(np.diff(hits, prepend=0) * hits / passed) / hits[-1])


def recall_at_precision(hits: np.ndarray, misses: np.ndarray, precision: float) -> float:
    """Compute the largest recall at thresholds of at least this precision.

    It is 0 if no threshold has this precision, and NaN if no row is relevant.
    """
    if not hits[-1]:
        return float("nan")
    # compared without a division, so that 19 of 20 counts as 0.95
    return float(np.max(hits, where=hits >= precision * (hits + misses) - 1e-9, initial=0) / hits[-1])


def reliability(probability: np.ndarray, target: np.ndarray, bins: int) -> list[dict[str, Any]]:
    """Compute a reliability diagram: count, mean probability and mean target of each non-empty bin.

    Args:
        probability: in [0, 1], shape (rows,).
        target: soft targets in [0, 1], shape (rows,).
        bins: number of equal-width bins of [0, 1]; each includes its lower end, the last one also 1.
    """
    bin_index = np.minimum((np.asarray(probability, np.float64) * bins).astype(np.int64), bins - 1)
    count = np.bincount(bin_index, minlength=bins)
    probabilities, targets = (np.bincount(bin_index, values, bins) for values in (probability, target))
    return [
        {
            "low": index / bins,
            "high": (index + 1) / bins,
            "count": int(count[index]),
            "mean_probability": float(probabilities[index] / count[index]),
            "mean_target": float(targets[index] / count[index]),
        }
        for index in np.flatnonzero(count).tolist()
    ]


def ece(diagram: list[dict[str, Any]]) -> float:
    """Compute the expected calibration error: the mean gap of a reliability diagram's bins, weighted by count.

    Source: Naeini et al., AAAI 2015.
    """
    gaps = [row["count"] * abs(row["mean_probability"] - row["mean_target"]) for row in diagram]
    return sum(gaps) / sum(row["count"] for row in diagram)


def brier(probability: np.ndarray, target: np.ndarray) -> float:
    """Compute the Brier score: the mean squared difference of probabilities and soft targets."""
    return float(np.mean((np.asarray(probability, np.float64) - np.asarray(target, np.float64)) ** 2))
