"""Intervals and p-values against SciPy, statsmodels and textbook examples."""

from __future__ import annotations

import itertools

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
    has_rejection = [(significance.holm(family) < 0.05).any() for family in p_values]
    assert 0.03 < np.mean(has_rejection) < 0.065
    assert np.mean((p_values < 0.05).any(axis=1)) > 0.35, "without it, four families in ten would have one"


def test_bca_is_that_of_scipy():
    estimate = significance.paired_interval(
        SKEWED, resamples=9999, confidence=0.9, rng=np.random.default_rng(2), interval="bca"
    )
    expected = stats.bootstrap(
        (SKEWED[:, 0],), np.mean, n_resamples=9999, confidence_level=0.9, method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    width = expected.high - expected.low
    assert (estimate.low[0], estimate.high[0]) == pytest.approx((expected.low, expected.high), abs=0.03 * width)
    percentile = significance.paired_interval(SKEWED, resamples=9999, confidence=0.9, rng=np.random.default_rng(2))
    assert estimate.high[0] - percentile.high[0] > 0.05 * width, "the long tail is on the right"
    assert estimate.p_value == percentile.p_value


def test_bca_covers_a_skewed_mean_better_than_percentiles_do():
    rng, missed = np.random.default_rng(4), {}
    deltas = rng.exponential(1, (15, 600)) ** 2  # of mean 2
    for interval in ("percentile", "bca"):
        estimate = significance.paired_interval(
            deltas, resamples=600, confidence=0.9, rng=np.random.default_rng(5), interval=interval
        )
        missed[interval] = int(((estimate.low > 2) | (estimate.high < 2)).sum())
    assert missed["bca"] < missed["percentile"]
    assert 0.1 < missed["percentile"] / 600 < 0.5


@pytest.mark.parametrize("interval", ["percentile", "bca"])
def test_differences_that_never_vary_have_an_interval_of_no_width(interval):
    deltas = np.array([[0.0, 0.25]] * 6)
    estimate = significance.paired_interval(
        deltas, resamples=100, confidence=0.95, rng=np.random.default_rng(6), interval=interval
    )
    assert estimate.low.tolist() == estimate.high.tolist() == [0, 0.25]
    assert estimate.p_value[0] == 1


def test_figures_depend_neither_on_cores_nor_on_memory(monkeypatch):
    deltas = np.random.default_rng(7).normal(0.1, 1, (33, 3))

    def estimates():
        rng = np.random.default_rng(8)
        return np.stack(significance.paired_interval(deltas, resamples=170, confidence=0.95, rng=rng))

    expected = estimates()
    for cores, block_draws in ((1, 2**18), (5, 2**18), (2, 1), (2, 100)):
        monkeypatch.setattr(significance.hardware, "cores", lambda cores=cores: cores)
        monkeypatch.setattr(significance, "BLOCK_DRAWS", block_draws)
        assert np.allclose(estimates(), expected, atol=1e-12)


def test_the_first_resamples_are_the_same_whatever_their_number():
    drawn = {
        resamples: significance._draw_in_groups(
            np.random.default_rng(9), resamples, lambda group_rng, count: list(group_rng.integers(100, size=(count, 2)))
        )
        for resamples in (significance.GROUP, 3 * significance.GROUP)
    }
    few, many = drawn.values()
    assert np.array_equal(few, many[: len(few)]) and len(many) == 3 * len(few)


def test_every_query_is_drawn_and_flipped_as_often_as_it_should():
    rng = np.random.default_rng(10)
    drawn = np.concatenate(list(significance._query_counts(rng, 4000, 7)))
    is_kept = np.concatenate(list(significance._sign_flips(rng, 4000, 35)))
    assert drawn.shape == (4000, 7) and (drawn.sum(axis=1) == 7).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(7), abs=0.08)
    assert is_kept.shape == (4000, 35) and set(np.unique(is_kept)) == {0, 1}
    assert is_kept.mean(axis=0) == pytest.approx(np.full(35, 0.5), abs=0.04)
    assert abs(np.corrcoef(is_kept.T) - np.eye(35)).max() < 0.08


def test_wins_ties_and_losses_ignore_the_last_bits():
    deltas = np.array([[0.1, 1e-15], [-0.2, -1e-15], [0.3, 0.0]])
    wins, ties, losses = significance.win_tie_loss(deltas)
    assert (wins.tolist(), ties.tolist(), losses.tolist()) == ([2, 0], [0, 3], [1, 0])


def test_paired_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(10):  # 40 differences share the resamples of one call
        deltas = rng.normal(0.1, 0.5, (60, 40))
        estimate = significance.paired_interval(deltas, resamples=500, confidence=0.9, rng=rng)
        covered += int(((estimate.low <= 0.1) & (estimate.high >= 0.1)).sum())
    assert 0.85 < covered / 400 < 0.94


def test_paired_interval_width_is_that_of_the_mean():
    deltas = np.random.default_rng(1).normal(0, 1, (400, 1))
    estimate = significance.paired_interval(deltas, resamples=4000, confidence=0.95, rng=np.random.default_rng(2))
    half = 1.96 * deltas.std() / 20
    assert estimate.low[0] == pytest.approx(deltas.mean() - half, abs=0.015)
    assert estimate.high[0] == pytest.approx(deltas.mean() + half, abs=0.015)


def test_sign_flips_approach_the_exact_randomization_test():
    deltas = np.array([0.3, -0.1, 0.2, 0.4, 0.05, -0.02, 0.25, 0.1])
    flipped = [abs(np.dot(signs, deltas)) for signs in itertools.product((-1, 1), repeat=len(deltas))]
    exact = np.mean(np.array(flipped) >= abs(deltas.sum()) - 1e-12)
    estimate = significance.paired_interval(
        deltas[:, None], resamples=20_000, confidence=0.95, rng=np.random.default_rng(3)
    )
    assert estimate.p_value[0] == pytest.approx(exact, abs=0.01)


def test_p_values_are_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(4)
    estimate = significance.paired_interval(rng.normal(0, 1, (50, 400)), resamples=500, confidence=0.95, rng=rng)
    assert 0.02 < (estimate.p_value <= 0.05).mean() < 0.09
    assert 0.42 < (estimate.p_value <= 0.5).mean() < 0.58


def test_no_difference_at_all_is_an_empty_interval_and_p_one():
    estimate = significance.paired_interval(
        np.zeros((7, 2)), resamples=100, confidence=0.95, rng=np.random.default_rng(5)
    )
    assert [values.tolist() for values in estimate] == [[0, 0], [0, 0], [1, 1]]


def test_resampling_in_blocks_changes_nothing(monkeypatch):
    deltas = np.random.default_rng(6).normal(0, 1, (9, 3))
    results = []
    for block_draws in (2**22, 20, 1):
        monkeypatch.setattr(significance, "BLOCK_DRAWS", block_draws)
        results.append(
            significance.paired_interval(deltas, resamples=100, confidence=0.95, rng=np.random.default_rng(7))
        )
    assert all(np.allclose(first.low, result.low) for first, result in itertools.combinations(results, 2))


def test_clustered_bootstrap_of_a_mean_is_the_paired_one():
    deltas = np.random.default_rng(8).normal(0.2, 1, (80, 2))
    paired = significance.paired_interval(deltas, resamples=300, confidence=0.95, rng=np.random.default_rng(9))
    clustered = significance.cluster_interval(
        lambda drawn: drawn @ deltas / len(deltas),
        len(deltas),
        resamples=300,
        confidence=0.95,
        rng=np.random.default_rng(9),
    )
    assert np.allclose(paired.low, clustered.low) and np.allclose(paired.high, clustered.high)
    mirrored = significance.cluster_interval(
        lambda drawn: -drawn @ deltas / len(deltas),
        len(deltas),
        resamples=300,
        confidence=0.95,
        rng=np.random.default_rng(9),
    )
    assert clustered.p_value.tolist() == mirrored.p_value.tolist(), "two-sided"
    assert 0 < clustered.p_value[0] < 1


def test_clustered_bootstrap_leaves_out_resamples_without_a_value():
    def differences(drawn):
        return np.array([np.nan if drawn[0] == 0 else float(drawn[0]), np.nan])

    estimate = significance.cluster_interval(
        differences, 3, resamples=200, confidence=0.95, rng=np.random.default_rng(10)
    )
    assert estimate.low[0] == 1 and estimate.high[0] >= 2 and estimate.p_value[0] < 0.05
    assert np.isnan([estimate.low[1], estimate.high[1], estimate.p_value[1]]).all()
