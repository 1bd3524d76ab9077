"""Drift of texts: can a classifier tell the new window from the old one by what a text encoder makes of its rows?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

FOLDS = 5
FEWEST = 2 * FOLDS
"""Queries that a window must have."""
RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class DomainClassifierResult:
    """How well rows of the current window can be told from those of the reference."""

    auc: float
    """ROC-AUC for queries that the classifier has not seen; 0.5: not at all."""
    ci_low: float
    ci_high: float
    probability: np.ndarray
    """Of being current, for each row of the current window, from the classifier that has not seen its query."""


def fit_domain_classifier(
    reference: np.ndarray, current: np.ndarray, reference_query: np.ndarray, current_query: np.ndarray
) -> DomainClassifierResult | None:
    """Train a classifier of the window, on some queries, and apply it to the others, fold by fold.

    A query's rows of both windows are always on one side, so that what the classifier remembers of a query is of no
    use to it, and a query that both windows have in equal shares pulls the AUC to 0.5. Pairs of rows count within
    folds alone, since the scores of two classifiers have no common scale. The interval is that of resampled queries.

    Args:
        reference: vectors, shape (n, d); `current` likewise, shape (m, d).
        reference_query: the query of each row, whole numbers; `current_query` likewise.

    Returns:
        None where a window has too few queries for folds.
    """
    if min(len(np.unique(reference_query)), len(np.unique(current_query))) < FEWEST:
        return None
    vectors = np.concatenate([reference, current])
    is_current = np.repeat([0, 1], [len(reference), len(current)])
    query = np.unique(np.concatenate([reference_query, current_query]), return_inverse=True)[1]
    probability, fold = np.zeros(len(vectors)), np.zeros(len(vectors), np.int64)
    for number, (train, test) in enumerate(
        StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(vectors, is_current, query)
    ):
        if len(np.unique(is_current[train])) < 2:
            return None
        classifier = LogisticRegression(class_weight="balanced", max_iter=200)
        probability[test] = classifier.fit(vectors[train], is_current[train]).predict_proba(vectors[test])[:, 1]
        fold[test] = number
    draws = np.random.default_rng(0).poisson(1, (RESAMPLES, query.max() + 1)).astype(np.float64)
    weights = np.concatenate([np.ones((1, query.max() + 1)), draws])
    above, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for number in range(FOLDS):
        rows = np.flatnonzero(fold == number)
        for start in range(0, len(weights), 100):
            some = slice(start, start + 100)
            won, all_pairs = _ordered(probability[rows], is_current[rows] == 1, weights[some][:, query[rows]])
            above[some] += won
            pairs[some] += all_pairs
    auc = np.divide(above, pairs, out=np.full(len(weights), 0.5), where=pairs > 0)
    low, high = np.quantile(auc[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return DomainClassifierResult(float(auc[0]), float(low), float(high), probability[len(reference) :])


def _ordered(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the pairs in which the positive row scores higher (ties count half), and of all pairs.

    Args:
        weights: shape (draws, rows).
    """
    values, place = np.unique(score, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(values)))
    up = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    down = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    below = np.cumsum(down, axis=1) - down / 2
    return (up * below).sum(axis=1), up.sum(axis=1) * down.sum(axis=1)
