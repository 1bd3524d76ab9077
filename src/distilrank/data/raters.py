"""Several ratings of one judged pair: how they become one, and how far the raters agree."""

from __future__ import annotations

from typing import Any

import numpy as np

MOST_PAIRS = 20_000
"""Pairs that alpha is computed on, drawn at random where there are more: its standard error is some 0.003 by then."""

_MOST_RATINGS = 1000  # different ones; finer ones are rounded, since alpha's cost grows with their square


def reduce_ratings(rule: str, group: np.ndarray, rating: np.ndarray, weight: np.ndarray, groups: int) -> np.ndarray:
    """One rating per group, float64, shape (groups,).

    Args:
        rule: `data.rating_conflicts`. mean (also for refuse, where spellings of a query are all that can differ) is
            weighted; median is the mean of the middle two where their number is even; majority is the most frequent
            rating, of equally frequent ones their median.
        group: number of each rating's group, 0 to groups - 1, each with a rating, shape (ratings,).
        rating: on the source's scale, shape (ratings,).
        weight: how many raters each rating stands for, shape (ratings,); median and majority take it for 1.
        groups: how many there are.
    """
    if rule == "median":
        return _median(group, rating, groups)
    if rule == "majority":
        return _majority(group, rating, groups)
    lowest, highest = extremes(group, rating, groups)
    mean = np.bincount(group, rating * weight, groups) / np.maximum(np.bincount(group, weight, groups), 1)
    return np.where(lowest == highest, lowest, mean)  # a mean of equal numbers need not be that number


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
    """How far the raters of the same pairs agree, as JSON values.

    Krippendorff's alpha takes any number of raters, known by name or not, and pairs that some of them did not rate. Its
    interval form weighs a disagreement by its square, as a quadratic kappa does, which suits soft targets: they are
    linear in the rating.

    Args:
        rule: `data.rating_conflicts`.
        pair: number of each rating's pair, 0 to pairs - 1, shape (ratings,); no rater's twice.
        rating: of a single rater, shape (ratings,).
        pairs: how many there are.
        seed: of the draw of MOST_PAIRS.

    Returns:
        pairs, those with two ratings or more; unanimous, how many of these have equal ratings; alpha, 1 for full
        agreement and 0 for chance, None where no pair has two ratings, all ratings are equal, or unequal ones are
        refused.

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
    # Its package takes seconds to load, and most judgements have one rating per pair.
    from nltk.metrics.agreement import AnnotationTask
    from nltk.metrics.distance import interval_distance

    # Alpha does not depend on who gave which rating of a pair, so rows stand for raters.
    rows = zip(range(len(pair)), pair.tolist(), rating.tolist(), strict=True)
    return round(float(AnnotationTask(list(rows), interval_distance).alpha()), 4)
