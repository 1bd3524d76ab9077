"""Measures of relevance, within queries and across them, over flat arrays: one row a judged pair.

`query` is an integer from 0 to queries - 1 that rows of one query share, in any order. Scores are compared as 32-bit
floats, which is what `trec_eval` reads from a run file. Results of per-query measures are float64, shape (queries,).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from distilrank.core.errors import InputError, RunStopped
from distilrank.evaluation import trec

PER_QUERY = ("ndcg_at_5", "ndcg_at_10", "mrr", "pair_accuracy")
PAIRS_AT_ONCE = 2**21  # a WANDS query has hundreds of products, hence 10^5 pairs: bound the memory


def grades(targets: Sequence[float] | np.ndarray) -> np.ndarray:
    """Soft targets in [0, 1] as whole hundredths, int64: the gains that integer qrels can carry.

    Halves go up, and the sixth decimal is rounded away first, so that .665 is 67 as a 32-bit float too.
    """
    return np.floor(np.round(np.asarray(targets, np.float64), 6) * 100 + 0.5 + 1e-6).astype(np.int64)


def rankable(query: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Whether a query has products of different gain, bool, shape (queries,): all orders of the others are as good."""
    queries = int(query.max()) + 1
    low, high = np.full(queries, np.inf), np.full(queries, -np.inf)
    np.minimum.at(low, query, gain)
    np.maximum.at(high, query, gain)
    return high > low


def ranks(query: np.ndarray, score: np.ndarray, tie: np.ndarray | None = None) -> np.ndarray:
    """Rank of each row within its query, int64 from 0, by descending score.

    Args:
        query: shape (rows,).
        score: shape (rows,).
        tie: of equal scores the row with the larger `tie` comes first (see `trec.tie_ranks`); None: the earlier row.
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
    """Normalized discounted cumulative gain at `k`: linear gain, discount log2(1 + rank) (Järvelin, Kekäläinen 2002).

    Gains must not be negative; a query without any gain has no value (NaN).
    """
    return _ndcg(query, gain, ranks(query, score, tie), ranks(query, gain), k)


def _ndcg(query: np.ndarray, gain: np.ndarray, rank: np.ndarray, ideal: np.ndarray, k: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return _dcg(query, gain, rank, k) / _dcg(query, gain, ideal, k)


def reciprocal_rank(
    query: np.ndarray, relevant: np.ndarray, score: np.ndarray, tie: np.ndarray | None = None
) -> np.ndarray:
    """One over the rank of the first relevant row (`relevant` is bool, shape (rows,)); 0 where no row is relevant."""
    return _reciprocal_rank(query, relevant, ranks(query, score, tie))


def _reciprocal_rank(query: np.ndarray, relevant: np.ndarray, rank: np.ndarray) -> np.ndarray:
    best = np.zeros(int(query.max()) + 1)
    np.maximum.at(best, query, relevant / (rank + 1.0))
    return best


def _pairs(query: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every two rows of one query, once; `query` must be sorted."""
    row = np.arange(len(query))
    later = np.searchsorted(query, query, side="right") - row - 1
    block = np.cumsum(later) // PAIRS_AT_ONCE
    for rows in np.split(row, np.flatnonzero(np.diff(block)) + 1):
        count = later[rows]
        first = np.repeat(rows, count)
        yield first, first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)


def pair_accuracy(query: np.ndarray, gain: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Share of a query's pairs of different gain that the scores order alike; equal scores count one half.

    A query without such a pair has no value (NaN).
    """
    order = np.argsort(query, kind="stable")
    query, gain = query[order], gain[order]
    score = np.asarray(score, np.float32)[order].astype(np.float64)
    queries = int(query[-1]) + 1
    right, total = np.zeros(queries), np.zeros(queries)
    for first, second in _pairs(query):
        wanted = np.sign(gain[first] - gain[second])
        agreement = wanted * np.sign(score[first] - score[second])
        right += np.bincount(query[first], np.where(wanted != 0, (1 + agreement) / 2, 0.0), queries)
        total += np.bincount(query[first], wanted != 0, queries)
    with np.errstate(invalid="ignore"):
        return right / total


def kendall(query: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of two scores within each query (Biometrika 33, 1945), in [-1, 1].

    (concordant - discordant pairs) over the root of the pairs that the one score tells apart times those of the other;
    a query without such pairs has no value (NaN).
    """
    order = np.argsort(query, kind="stable")
    query = query[order]
    one, other = (np.asarray(score, np.float32)[order] for score in (first, second))
    queries = int(query[-1]) + 1
    agreed, apart, others_apart = np.zeros(queries), np.zeros(queries), np.zeros(queries)
    for left, right in _pairs(query):
        at = query[left]
        signs = (one[left] > one[right]).astype(np.int8) - (one[left] < one[right])
        others = (other[left] > other[right]).astype(np.int8) - (other[left] < other[right])
        agreed += np.bincount(at, signs * others, queries)
        apart += np.bincount(at, signs != 0, queries)
        others_apart += np.bincount(at, others != 0, queries)
    with np.errstate(invalid="ignore"):
        return agreed / np.sqrt(apart * others_apart)


def per_query(
    query: np.ndarray, gain: np.ndarray, relevant: np.ndarray, score: np.ndarray, tie: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The measures named in PER_QUERY, each of shape (queries,).

    Args:
        query: shape (rows,); leave queries out that are not `rankable`.
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
    """Mean nDCG at `k` over the rankable queries, as the evaluation counts it (gains in hundredths, ties by id).

    Raises:
        InputError: no query has products of different gain.
        RunStopped: a score is not a finite number.
    """
    broken = int(np.sum(~np.isfinite(scores)))
    if broken:
        raise RunStopped(f"{broken} of {len(scores)} scores are not finite, expected numbers; the model is broken")
    gain = grades(targets)
    _, query = np.unique(np.asarray(query_ids, dtype=str), return_inverse=True)
    decided = rankable(query, gain) if len(gain) else np.zeros(0, bool)
    if not decided.any():
        raise InputError(f"judged pairs: none of {len(decided)} queries has products of different rating")
    return float(ndcg(query, gain, np.asarray(scores), k, trec.tie_ranks(product_ids))[decided].mean())


def judged_ndcg(judged: pa.Table, scores: np.ndarray) -> float:
    """Mean nDCG@10 of `scores`, shape (rows,), on judged pairs with query_id, product_id and gain; as `mean_ndcg`."""
    query_ids, product_ids, gains = (judged.column(name).to_numpy() for name in ("query_id", "product_id", "gain"))
    return mean_ndcg(query_ids, product_ids, gains, scores)


class ThresholdCurve:
    """How many relevant and other rows lie above each threshold of the score; equal scores pass it together."""

    def __init__(self, relevant: np.ndarray, score: np.ndarray) -> None:
        score = np.asarray(score, np.float32)
        order = np.argsort(-score, kind="stable")
        last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
        self._hits = np.cumsum(relevant[order])[last]
        self._misses = last + 1 - self._hits

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Relevant and other rows at or above each threshold, from the highest down."""
        return self._hits, self._misses


class BootstrapAuc:
    """`roc_auc` and `pr_auc` of rows whose queries are drawn some number of times (a bootstrap).

    Sorted once; a draw then costs two gathers and two running sums. Both areas are sums over the relevant rows: of
    the other rows below each, and of the precision at its threshold.
    """

    def __init__(self, relevant: np.ndarray, score: np.ndarray, query: np.ndarray) -> None:
        score = np.asarray(score, np.float32)
        order = np.argsort(-score, kind="stable")
        chosen = relevant[order]
        end = np.flatnonzero(np.append(np.diff(score[order]) != 0, True)) + 1
        start = np.append(0, end[:-1])
        threshold = np.repeat(np.arange(len(end)), end - start)[chosen]
        hits = np.append(0, np.cumsum(chosen))
        self._relevant, self._others = query[order][chosen], query[order][~chosen]
        # Of each relevant row: relevant rows down to its threshold, other rows above it, and down to it.
        self._hits = hits[end][threshold]
        self._above = (start - hits[start])[threshold]
        self._misses = (end - hits[end])[threshold]

    def measure(self, drawn: np.ndarray) -> tuple[float, float]:
        """ROC-AUC and average precision where query i is there `drawn[i]` times, whole numbers; NaN as those have."""
        drawn = drawn.astype(np.int32)
        weight = drawn[self._relevant]
        hits, misses = (np.append(0, np.cumsum(part, dtype=np.int64)) for part in (weight, drawn[self._others]))
        if not hits[-1]:
            return float("nan"), float("nan")
        passed, missed = hits[self._hits], misses[self._misses]
        # rows drawn 0 times may come first: they weigh nothing
        precision = float(np.sum(weight * (passed / np.maximum(passed + missed, 1)))) / hits[-1]
        if not misses[-1]:
            return float("nan"), precision
        below = 2 * misses[-1] - misses[self._above] - missed
        return float(np.sum(weight * below)) / (2.0 * hits[-1] * misses[-1]), precision


def roc_auc(hits: np.ndarray, misses: np.ndarray) -> float:
    """Area under the ROC curve of `ThresholdCurve.counts`; NaN where one of the classes is absent."""
    if not hits[-1] or not misses[-1]:
        return float("nan")
    return float(np.trapezoid(np.append(0, hits), np.append(0, misses)) / (hits[-1] * misses[-1]))


def pr_auc(hits: np.ndarray, misses: np.ndarray) -> float:
    """Average precision (no interpolation) of `ThresholdCurve.counts`; NaN where nothing is relevant."""
    if not hits[-1]:
        return float("nan")
    passed = np.maximum(hits + misses, 1)  # rows of weight 0 may come first: no gain in recall there
    return float(np.sum(np.diff(hits, prepend=0) * hits / passed) / hits[-1])


def recall_at_precision(hits: np.ndarray, misses: np.ndarray, precision: float) -> float:
    """Largest recall of thresholds of at least this precision, 0 if there are none; NaN where nothing is relevant."""
    if not hits[-1]:
        return float("nan")
    # compared without a division, so that 19 of 20 is .95
    return float(np.max(hits, where=hits >= precision * (hits + misses) - 1e-9, initial=0) / hits[-1])


def reliability(probability: np.ndarray, target: np.ndarray, bins: int) -> list[dict[str, Any]]:
    """The reliability diagram: for each non-empty of `bins` equal-width bins of [0, 1], its count and two means.

    Bins are closed below; the last one holds 1 too. Targets are soft, in [0, 1].
    """
    at = np.minimum((np.asarray(probability, np.float64) * bins).astype(np.int64), bins - 1)
    count = np.bincount(at, minlength=bins)
    probabilities, targets = np.bincount(at, probability, bins), np.bincount(at, target, bins)
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
    """Expected calibration error of a reliability diagram (Naeini 2015): the mean gap of its bins, by count."""
    gaps = [part["count"] * abs(part["mean_probability"] - part["mean_target"]) for part in diagram]
    return sum(gaps) / sum(part["count"] for part in diagram)


def brier(probability: np.ndarray, target: np.ndarray) -> float:
    """Mean squared difference of probabilities and soft targets."""
    return float(np.mean((np.asarray(probability, np.float64) - np.asarray(target, np.float64)) ** 2))
