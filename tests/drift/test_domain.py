"""The domain classifier."""

from __future__ import annotations

import numpy as np

from distilrank.drift.domain import fit_domain_classifier


def test_the_domain_classifier_never_sees_the_query_that_it_is_asked_about() -> None:
    """Vectors that name their query: within a fold they would tell the windows apart, across queries they cannot."""
    draw = np.random.default_rng(5)
    vectors = draw.normal(size=(80, 200))
    sides = draw.integers(0, 40, 400), draw.integers(40, 80, 400)
    told = fit_domain_classifier(vectors[sides[0]], vectors[sides[1]], *sides)
    assert told.ci_low < 0.55 and told.auc < 0.65
    assert fit_domain_classifier(vectors[:5], vectors[5:10], np.arange(5), np.arange(5)) is None
