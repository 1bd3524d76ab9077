"""The spread of a model's raw scores, and its collapse."""

from __future__ import annotations

import numpy as np
import pytest

from distilrank.evaluation import score_spread


def test_spread_counts_every_logit_once() -> None:
    logits = np.array([-100, -0.3, -0.25, 0, 0.1, 0.3, 100], np.float32)
    result = score_spread.spread(logits)
    histogram = result["histogram"]
    assert sum(histogram["counts"]) == 7 and histogram["low"] == -16 and len(histogram["counts"]) == 128
    assert histogram["counts"][0] == histogram["counts"][-1] == 1
    assert histogram["counts"][62:66] == [1, 1, 2, 1]
    assert (result["min"], result["max"], result["distinct"]) == (-100, 100, 7)
    assert score_spread.spread(np.full(3, 1.3))["histogram"] == {"width": 0.25, "low": 1.25, "counts": [3]}


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        (np.random.default_rng(0).normal(size=500), None),
        (np.random.default_rng(0).normal(0, 0.001, 500), "the standard deviation of 500 logits is 0.001"),
        (np.tile([-1.0, 0.5, 1.0], 500), "3 of the first 1000 logits are distinct, expected 50 or more"),
        (np.concatenate([np.full(1500, 2.0), np.arange(500.0)]), "1 of the first 1000 logits are distinct"),
        (np.array([1.0, np.nan, np.inf]), "2 of 3 logits are not finite"),
        (np.ones(19), None),
        (np.ones(20), "the standard deviation of 20 logits is 0, expected 0.01 or more"),
    ],
)
def test_a_collapse_is_described_in_words(logits: np.ndarray, reason: str | None) -> None:
    result = score_spread.describe_collapse(logits.astype(np.float32), 0.01, 0.05)
    assert result is None if reason is None else result is not None and result.startswith(reason)
