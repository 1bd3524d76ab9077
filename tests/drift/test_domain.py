"""The domain classifier, which must not profit from queries that it has memorized."""

from __future__ import annotations

import numpy as np

from distilrank.drift.domain import fit_domain_classifier


def test_the_classifier_is_never_trained_on_the_query_that_it_scores() -> None:
    """Vectors that identify their query separate the windows only for a classifier that has seen the query."""
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(80, 200))
    queries = rng.integers(0, 40, 400), rng.integers(40, 80, 400)
    result = fit_domain_classifier(vectors[queries[0]], vectors[queries[1]], *queries)
    assert result.ci_low < 0.55 and result.auc < 0.65
    assert fit_domain_classifier(vectors[:5], vectors[5:10], np.arange(5), np.arange(5)) is None
