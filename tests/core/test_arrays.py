"""Systematic samples of impressions."""

from __future__ import annotations

import numpy as np
import pytest

from distilrank.core.arrays import systematic_sample


def test_systematic_samples_stratify_and_are_unbiased() -> None:
    draw = np.random.default_rng(6)
    hits = np.zeros(10)
    for _ in range(500):
        rows = systematic_sample(10, 4, draw)
        assert len(set(rows.tolist())) == 4 and 1 <= (rows < 5).sum() <= 3
        hits[rows] += 1
    assert hits / 500 == pytest.approx(np.full(10, 0.4), abs=0.1)
    assert systematic_sample(3, 10, draw).tolist() == [0, 1, 2]
