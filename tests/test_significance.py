"""Intervals and adjusted p-values against the libraries' and against the textbook's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from distilrank.evaluation import significance

SKEWED = np.random.default_rng(0).exponential(1, (40, 1)) ** 2 - 1.5


def test_holm_is_that_of_statsmodels_whatever_the_order():
    rng = np.random.default_rng(11)
    for size in (1, 2, 7, 12):
        p_values = rng.random(size).round(1 if size == 12 else 4) ** 3 + 1e-4  # of twelve, some are equal
        expected = multipletests(p_values, method="holm")[1]
        assert significance.holm(p_values) == pytest.approx(expected)
        assert significance.holm(p_values[::-1])[::-1] == pytest.approx(expected)


def test_holm_of_the_textbook_and_of_nothing():
    assert significance.holm(np.array([0.01, 0.04, 0.03, 0.005])).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm(np.array([])).tolist() == []


def test_holm_keeps_false_findings_of_a_family_rare():
    p_values = np.random.default_rng(1).random((2000, 10))
    found = [(significance.holm(family) < 0.05).any() for family in p_values]
    assert 0.03 < np.mean(found) < 0.065
    assert np.mean((p_values < 0.05).any(axis=1)) > 0.35, "without it, four families in ten would have one"


def test_bca_is_that_of_scipy():
    sure = significance.paired_interval(
        SKEWED, resamples=9999, confidence=0.9, rng=np.random.default_rng(2), interval="bca"
    )
    theirs = stats.bootstrap(
        (SKEWED[:, 0],), np.mean, n_resamples=9999, confidence_level=0.9, method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    spread = theirs.high - theirs.low
    assert (sure.low[0], sure.high[0]) == pytest.approx((theirs.low, theirs.high), abs=0.03 * spread)
    percentile = significance.paired_interval(SKEWED, resamples=9999, confidence=0.9, rng=np.random.default_rng(2))
    assert sure.high[0] - percentile.high[0] > 0.05 * spread, "the long tail is on the right"
    assert sure.p_value == percentile.p_value


def test_bca_covers_a_skewed_mean_better_than_percentiles_do():
    rng, missed = np.random.default_rng(4), {}
    deltas = rng.exponential(1, (15, 600)) ** 2  # of mean 2
    for interval in ("percentile", "bca"):
        sure = significance.paired_interval(
            deltas, resamples=600, confidence=0.9, rng=np.random.default_rng(5), interval=interval
        )
        missed[interval] = int(((sure.low > 2) | (sure.high < 2)).sum())
    assert missed["bca"] < missed["percentile"]
    assert 0.1 < missed["percentile"] / 600 < 0.5


@pytest.mark.parametrize("interval", ["percentile", "bca"])
def test_differences_that_never_vary_have_an_interval_of_no_width(interval):
    deltas = np.array([[0.0, 0.25]] * 6)
    sure = significance.paired_interval(
        deltas, resamples=100, confidence=0.95, rng=np.random.default_rng(6), interval=interval
    )
    assert sure.low.tolist() == sure.high.tolist() == [0, 0.25]
    assert sure.p_value[0] == 1


def test_figures_depend_neither_on_cores_nor_on_memory(monkeypatch):
    deltas = np.random.default_rng(7).normal(0.1, 1, (33, 3))

    def measured():
        rng = np.random.default_rng(8)
        return np.stack(significance.paired_interval(deltas, resamples=170, confidence=0.95, rng=rng))

    expected = measured()
    for cores, at_once in ((1, 2**18), (5, 2**18), (2, 1), (2, 100)):
        monkeypatch.setattr(significance.hardware, "cores", lambda cores=cores: cores)
        monkeypatch.setattr(significance, "AT_ONCE", at_once)
        assert np.allclose(measured(), expected, atol=1e-12)


def test_the_first_resamples_are_the_same_whatever_their_number():
    drawn = {
        resamples: significance._grouped(
            np.random.default_rng(9), resamples, lambda own, count: list(own.integers(100, size=(count, 2)))
        )
        for resamples in (significance.GROUP, 3 * significance.GROUP)
    }
    few, many = drawn.values()
    assert np.array_equal(few, many[: len(few)]) and len(many) == 3 * len(few)


def test_every_query_is_drawn_and_flipped_as_often_as_it_should():
    rng = np.random.default_rng(10)
    drawn = np.concatenate(list(significance._multiplicities(rng, 4000, 7)))
    kept = np.concatenate(list(significance._halves(rng, 4000, 35)))
    assert drawn.shape == (4000, 7) and (drawn.sum(axis=1) == 7).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(7), abs=0.08)
    assert kept.shape == (4000, 35) and set(np.unique(kept)) == {0, 1}
    assert kept.mean(axis=0) == pytest.approx(np.full(35, 0.5), abs=0.04)
    assert abs(np.corrcoef(kept.T) - np.eye(35)).max() < 0.08


def test_wins_ties_and_losses_ignore_the_last_bits():
    deltas = np.array([[0.1, 1e-15], [-0.2, -1e-15], [0.3, 0.0]])
    won, tied, lost = significance.outcomes(deltas)
    assert (won.tolist(), tied.tolist(), lost.tolist()) == ([2, 0], [0, 3], [1, 0])
