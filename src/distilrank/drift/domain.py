"""Domain classifier: drift of texts as the ROC-AUC with which their embeddings tell the newest window from the old."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from distilrank.evaluation.significance import cluster_bootstrap, tail_levels

FOLDS = 5
MIN_QUERIES = 2 * FOLDS
"""Queries that each window must have."""
RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class DomainClassifierResult:
    """How well a classifier separates the rows of the current window from those of the reference."""

    auc: float
    """ROC-AUC on queries that the classifier was not trained on; 0.5 is chance."""
    ci_low: float
    ci_high: float
    probability: np.ndarray
    """Probability of being current, for each row of the current window, shape (m,), out of fold."""


def fit_domain_classifier(
    reference: np.ndarray, current: np.ndarray, reference_query: np.ndarray, current_query: np.ndarray
) -> DomainClassifierResult | None:
    """Cross-validate a logistic regression that predicts a row's window from its embedding.

    All rows of a query, of both windows, are in the same fold. Memorizing a query therefore does not help, and a query
    with equal shares in both windows pulls the AUC to 0.5. Only pairs of rows within a fold count, since the scores of
    two classifiers have no common scale. The interval comes from a cluster bootstrap over queries.

    Args:
        reference: vectors of the reference window, shape (n, d).
        current: vectors of the current window, shape (m, d).
        reference_query: integer code of each reference row's query, shape (n,).
        current_query: integer code of each current row's query, shape (m,); the same code means the same query.

    Returns:
        None if a window has too few queries for the folds.
    """
    if min(len(np.unique(reference_query)), len(np.unique(current_query))) < MIN_QUERIES:
        return None
    vectors = np.concatenate([reference, current])
    is_current = np.repeat([False, True], [len(reference), len(current)])
    query = np.unique(np.concatenate([reference_query, current_query]), return_inverse=True)[1]
    probability = np.zeros(len(vectors))
    folds = []
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for train, test in splitter.split(vectors, is_current, query):
        if len(np.unique(is_current[train])) < 2:
            return None
        classifier = LogisticRegression(class_weight="balanced", max_iter=200)
        probability[test] = classifier.fit(vectors[train], is_current[train]).predict_proba(vectors[test])[:, 1]
        folds.append(test)

    def fold_auc(counts: np.ndarray) -> np.ndarray:
        """AUC within folds, shape (n,), of n resamples of the queries."""
        above, pairs = np.zeros(len(counts)), np.zeros(len(counts))
        for rows in folds:
            fold_above, fold_pairs = _ordered_pairs(probability[rows], is_current[rows], counts[:, query[rows]])
            above += fold_above
            pairs += fold_pairs
        return np.divide(above, pairs, out=np.full(len(counts), 0.5), where=pairs > 0)

    queries = int(query.max()) + 1
    resampled = cluster_bootstrap(fold_auc, queries, resamples=RESAMPLES, rng=np.random.default_rng(0))
    low, high = np.quantile(resampled, tail_levels(CONFIDENCE))
    auc = float(fold_auc(np.ones((1, queries)))[0])
    return DomainClassifierResult(auc, float(low), float(high), probability[len(reference) :])


def _ordered_pairs(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the pairs whose positive row scores higher (ties count one half), and of all pairs, each shape (n,).

    Args:
        score: shape (rows,).
        positive: bool, shape (rows,).
        weights: weight of each row in each of n resamples, shape (n, rows).
    """
    values, rank = np.unique(score, return_inverse=True)
    order = np.argsort(rank, kind="stable")
    starts = np.searchsorted(rank[order], np.arange(len(values)))
    positive_weight = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    negative_weight = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    below = np.cumsum(negative_weight, axis=1) - negative_weight / 2
    return (positive_weight * below).sum(axis=1), positive_weight.sum(axis=1) * negative_weight.sum(axis=1)
