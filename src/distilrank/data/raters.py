"""Several ratings of one judged pair: combine them, and measure the agreement of the raters."""

from __future__ import annotations

from typing import Any

import numpy as np

MOST_PAIRS = 20_000
"""Most pairs on which alpha is computed, drawn at random; its standard error is then about 0.003."""

_MOST_RATINGS = 1000  # distinct ratings; finer ones are rounded, since the cost of alpha grows with their square


def reduce_ratings(rule: str, group: np.ndarray, rating: np.ndarray, weight: np.ndarray, groups: int) -> np.ndarray:
    """Combine ratings into one per group, float64, shape (groups,).

    Args:
        rule: `data.rating_conflicts`. mean is weighted, and also used for refuse, where only the spellings of a query
            can differ; median is the mean of the middle two of an even number; majority is the most frequent rating,
            or the median of equally frequent ones.
        group: index of each rating's group, 0 to groups - 1, none of them empty, shape (ratings,).
        rating: on the source's scale, shape (ratings,).
        weight: number of raters behind each rating, shape (ratings,); ignored by median and majority.
        groups: number of groups.
    """
    if rule == "median":
        return _median(group, rating, groups)
    if rule == "majority":
        return _majority(group, rating, groups)
    lowest, highest = extremes(group, rating, groups)
    mean = np.bincount(group, rating * weight, groups) / np.maximum(np.bincount(group, weight, groups), 1)
    return np.where(lowest == highest, lowest, mean)  # a rounded mean of equal numbers may differ from them


def extremes(group: np.ndarray, rating: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest rating of each group, shape (groups,) each; arguments as for `reduce_ratings`."""
    lowest, highest = np.full(groups, np.inf), np.full(groups, -np.inf)
    np.minimum.at(lowest, group, rating)
    np.maximum.at(highest, group, rating)
    return lowest, highest


def _median(group: np.ndarray, rating: np.ndarray, groups: int) -> np.ndarray:
    ordered = rating[np.lexsort((rating, group))]
    count = np.bincount(group, minlength=groups)
    start = np.cumsum(count) - count
    return (ordered[start + (count - 1) // 2] + ordered[start + count // 2]) / 2


def _majority(group: np.ndarray, rating: np.ndarray, groups: int) -> np.ndarray:
    choices, votes = np.unique(np.stack([group, rating]), axis=1, return_counts=True)
    group, rating = choices[0].astype(np.int64), choices[1]
    most = np.zeros(groups, np.int64)
    np.maximum.at(most, group, votes)
    tied = votes == most[group]
    return _median(group[tied], rating[tied], groups)


def agreement(rule: str, pair: np.ndarray, rating: np.ndarray, pairs: int, seed: int) -> dict[str, Any]:
    """Measure the agreement of raters of the same pairs, as JSON values.

    Krippendorff's alpha handles any number of raters, named or anonymous, and pairs that some of them did not rate.
    Its interval form weighs a disagreement by its square, like quadratic kappa, which suits soft targets, since they
    are linear in the rating.

    Args:
        rule: `data.rating_conflicts`.
        pair: index of each rating's pair, 0 to pairs - 1, shape (ratings,); a rater rates a pair once.
        rating: rating of a single rater, shape (ratings,).
        pairs: number of pairs.
        seed: seed of the sample of MOST_PAIRS.

    Returns:
        `pairs`: pairs with two or more ratings; `unanimous`: those of them with equal ratings; `alpha`: 1 for full
        agreement, 0 for chance, None if no pair has two ratings, all ratings are equal, or unequal ones are refused.

    Source: Krippendorff, Content Analysis, 4th edition (2019), chapter 12.
    """
    several = np.bincount(pair, minlength=pairs) > 1
    lowest, highest = extremes(pair, rating, pairs)
    rated_pairs = np.flatnonzero(several)
    chosen = several
    if len(rated_pairs) > MOST_PAIRS:
        chosen = np.zeros(pairs, bool)
        chosen[np.random.default_rng(seed).choice(rated_pairs, MOST_PAIRS, replace=False)] = True
    rows = chosen[pair]
    return {
        "pairs": len(rated_pairs),
        "unanimous": int((lowest == highest)[several].sum()),
        "alpha": None if rule == "refuse" else _alpha(pair[rows], rating[rows]),
    }


def _alpha(pair: np.ndarray, rating: np.ndarray) -> float | None:
    values = np.unique(rating)
    if len(values) < 2:
        return None
    if len(values) > _MOST_RATINGS:
        step = (values[-1] - values[0]) / _MOST_RATINGS
        rating = np.rint(rating / step) * step
    # The package takes seconds to import, and most judgements have one rating per pair.
    from nltk.metrics.agreement import AnnotationTask
    from nltk.metrics.distance import interval_distance

    # Alpha does not depend on who gave which rating of a pair, so rows stand for raters.
    rows = zip(range(len(pair)), pair.tolist(), rating.tolist(), strict=True)
    return round(float(AnnotationTask(list(rows), interval_distance).alpha()), 4)
