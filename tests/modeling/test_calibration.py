"""Calibrations are monotone, honest about rows they have seen, and chosen by those they have not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from distilrank.evaluation import metrics
from distilrank.modeling import calibration

METHODS = ("platt", "isotonic")


def judged(rng: np.random.Generator, queries: int, truth=lambda logit: expit(1.3 * logit - 0.4), per_query: int = 8):
    """Logits, soft targets of three raters, and queries whose logits have a level in common."""
    groups = np.repeat([f"q{query}" for query in range(queries)], per_query)
    logits = rng.normal(0, 1.5, len(groups)) + np.repeat(rng.normal(0, 0.5, queries), per_query)
    targets = (rng.random((len(groups), 3)) < truth(logits)[:, None]).mean(axis=1)
    return logits, targets, groups


def saturating(logit: np.ndarray) -> np.ndarray:
    """A truth that no sigmoid of a line can follow: the teacher is too sure of its best products."""
    return 0.6 * expit(3 * logit)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-8, 8, width=16), st.sampled_from([0, 1 / 3, 0.5, 2 / 3, 1])), min_size=2, max_size=80)
)
def test_isotonic_rises_strictly_from_the_least_logit_to_the_largest(rows) -> None:
    logits, targets = np.array(rows, np.float64).T
    fitted = calibration.fit("isotonic", logits, targets)
    assert np.all(np.diff(fitted["x"]) > 0) and np.all(np.diff(fitted["y"]) > 0)
    grid = np.linspace(logits.min() - 0.5, logits.max() + 0.5, 200)  # candidates go further than judged pairs
    calibrated = calibration.calibrated_logit(fitted, grid)
    assert np.all(np.diff(calibrated) > 0) and np.abs(calibrated).max() < 6.91
    far = calibration.probability(fitted, np.array([-1e6, 1e6]))
    assert 1e-3 <= far[0] < far[1] <= 1 - 1e-3 + 1e-12


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 200))
def test_isotonic_goes_through_the_pooled_means(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    logits, targets = np.sort(rng.normal(size=rows)), rng.choice([0, 0.5, 1], rows)
    fitted = calibration.fit("isotonic", logits, targets)
    # one judgement more: half of it against either end
    weight, total = np.ones(rows), targets.copy()
    weight[[0, -1]] += 0.5
    total[0] += 0.5
    steps = IsotonicRegression().fit_transform(logits, total / weight, sample_weight=weight)
    for mean in np.unique(steps.round(9)):
        block = np.abs(steps - mean) < 1e-8
        center = np.average(logits[block], weights=weight[block])
        assert calibration.probability(fitted, center) == pytest.approx(0.002 + 0.996 * mean, abs=1e-6)


def test_a_few_zeros_are_no_certainty() -> None:
    logits = np.arange(40.0)
    targets = np.concatenate([np.zeros(3), np.full(37, 0.5)])
    few = calibration.probability(calibration.fit("isotonic", logits, targets), 1.0)
    many = calibration.probability(calibration.fit("isotonic", np.arange(400.0), np.repeat(targets > 0, 10) / 2), 15.0)
    assert 0.1 < few < 0.2 and many < 0.03


def test_isotonic_keeps_margins_within_steps() -> None:
    rng = np.random.default_rng(1)
    logits, targets, _ = judged(rng, 60)
    fitted = calibration.fit("isotonic", logits, targets)
    values = calibration.calibrated_logit(fitted, np.sort(logits).astype(np.float32)).astype(np.float32)
    assert len(np.unique(values)) == len(np.unique(logits.astype(np.float32)))


def test_an_older_isotonic_value_is_read_as_it_was() -> None:
    old = {"method": "isotonic", "x": [-1.0, 0.0, 2.0], "y": [0.0, 0.5, 1.0]}
    assert calibration.probability(old, np.array([-5, -0.5, 0, 1, 9])).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert np.abs(calibration.calibrated_logit(old, np.array([-5, 9]))) == pytest.approx(6.9068, abs=1e-3)


def test_platt_finds_the_line_and_takes_soft_targets() -> None:
    rng = np.random.default_rng(2)
    logits, targets, _ = judged(rng, 3000)
    fitted = calibration.fit("platt", logits, targets)
    assert fitted["slope"] == pytest.approx(1.3, abs=0.05) and fitted["intercept"] == pytest.approx(-0.4, abs=0.05)
    exact = expit(0.7 * logits + 0.2)
    fitted = calibration.fit("platt", logits, exact)
    assert fitted["slope"] == pytest.approx(0.7, abs=0.01) and fitted["intercept"] == pytest.approx(0.2, abs=0.01)


def test_platt_of_perfectly_separated_targets_is_finite() -> None:
    fitted = calibration.fit("platt", np.array([-2.0, -1, 1, 2]), np.array([0.0, 0, 1, 1]))
    probabilities = calibration.probability(fitted, np.array([-2.0, 2]))
    assert 0 < fitted["slope"] < 5 and 0.1 < probabilities[0] < 0.3 and 0.7 < probabilities[1] < 0.9


@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize("targets", [[0.5, 0.5, 0.5], [0, 0, 0], [1, 1, 1], [1, 0.5, 0]])
@pytest.mark.parametrize("logits", [[1, 1, 1], [1, 2, 3]])
def test_odd_judgements_give_probabilities_all_the_same(method, targets, logits) -> None:
    fitted = calibration.fit(method, np.array(logits), np.array(targets), np.array(["a", "a", "b"]))
    probabilities = calibration.probability(fitted, np.linspace(-9, 9, 50))
    assert np.isfinite(probabilities).all() and probabilities.min() >= 0 and probabilities.max() <= 1
    json.dumps(fitted, allow_nan=False)
    assert np.isfinite(calibration.out_of_fold(method, np.array(logits), np.array(targets))).all()


def test_none_is_the_sigmoid_that_nothing_was_fitted_to() -> None:
    logits = np.array([-1.0, 0, 3])
    assert calibration.fit("none", logits, logits > 0) == {"method": "none"}
    np.testing.assert_allclose(calibration.out_of_fold("none", logits, logits > 0), expit(logits), rtol=1e-14)


# Out of fold ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_query_does_not_affect_its_own_probabilities(method: str) -> None:
    logits, targets, groups = judged(np.random.default_rng(3), 30)
    probabilities = calibration.out_of_fold(method, logits, targets, groups)
    turned = targets.copy()
    turned[groups == "q7"] = 1 - turned[groups == "q7"]
    again = calibration.out_of_fold(method, logits, turned, groups)
    assert np.array_equal(probabilities[groups == "q7"], again[groups == "q7"])
    assert not np.array_equal(probabilities, again)


def test_folds_hold_whole_queries_and_do_not_depend_on_the_order_of_rows() -> None:
    logits, targets, groups = judged(np.random.default_rng(4), 43)
    fold = calibration._folds(groups)
    assert all(len(set(fold[groups == query])) == 1 for query in set(groups))
    sizes = np.bincount(fold)
    assert len(sizes) == 5 and np.ptp(sizes) <= 8
    order = np.random.default_rng(5).permutation(len(groups))
    assert np.array_equal(calibration._folds(groups[order]), fold[order])
    probabilities = calibration.out_of_fold("platt", logits, targets, groups)
    shuffled = calibration.out_of_fold("platt", logits[order], targets[order], groups[order])
    assert np.allclose(shuffled, probabilities[order], atol=1e-4)


def test_its_own_rows_flatter_a_calibration() -> None:
    logits, targets, groups = judged(np.random.default_rng(6), 30)
    noise = np.random.default_rng(7).permutation(targets)
    own = calibration.probability(calibration.fit("isotonic", logits, noise), logits)
    held_out = calibration.out_of_fold("isotonic", logits, noise, groups)
    assert metrics.brier(own, noise) < metrics.brier(held_out, noise)
    errors = [metrics.ece(metrics.reliability(probabilities, noise, 10)) for probabilities in (own, held_out)]
    assert errors[0] < errors[1]


def test_a_single_query_is_calibrated_by_its_own_fit() -> None:
    logits, targets, groups = judged(np.random.default_rng(8), 1)
    own = calibration.probability(calibration.fit("platt", logits, targets), logits)
    assert np.array_equal(calibration.out_of_fold("platt", logits, targets, groups), own)


# The choice -----------------------------------------------------------------------------------------------------------


def test_auto_takes_isotonic_where_no_sigmoid_fits() -> None:
    logits, targets, groups = judged(np.random.default_rng(9), 150, saturating)
    fitted = calibration.fit("auto", logits, targets, groups)
    chosen = fitted.pop("chosen_by")
    assert fitted == calibration.fit("isotonic", logits, targets)
    assert chosen["gain"] > chosen["standard_error"] > 0 and (chosen["rows"], chosen["queries"]) == (1200, 150)
    assert chosen["gain"] == pytest.approx(chosen["log_loss"]["platt"] - chosen["log_loss"]["isotonic"])
    for method in METHODS:
        probabilities = calibration.out_of_fold(method, logits, targets, groups)
        assert chosen["brier"][method] == pytest.approx(metrics.brier(probabilities, targets))
        loss = -np.mean(targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities))
        assert chosen["log_loss"][method] == pytest.approx(loss, abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_auto_keeps_two_parameters_where_a_sigmoid_fits(seed: int) -> None:
    logits, targets, groups = judged(np.random.default_rng(seed), 150)
    fitted = calibration.fit("auto", logits, targets, groups)
    chosen = fitted.pop("chosen_by")
    assert fitted == calibration.fit("platt", logits, targets)
    assert chosen["gain"] <= chosen["standard_error"]


@pytest.mark.parametrize(("queries", "per_query"), [(19, 40), (24, 8)])
def test_auto_does_not_compare_on_few_judgements(queries: int, per_query: int) -> None:
    logits, targets, groups = judged(np.random.default_rng(1), queries, saturating, per_query)
    fitted = calibration.fit("auto", logits, targets, groups)
    assert fitted["method"] == "platt"
    assert fitted["chosen_by"] == {"rows": queries * per_query, "queries": queries}


def test_the_standard_error_is_one_over_queries() -> None:
    """Rows that say the same thing several times over do not make the choice surer."""
    logits, targets, groups = judged(np.random.default_rng(2), 60, saturating)
    once = calibration.fit("auto", logits, targets, groups)["chosen_by"]
    copies = [np.tile(values, 4) for values in (logits, targets, groups)]
    again = calibration.fit("auto", *copies)["chosen_by"]
    assert again["standard_error"] > 0.8 * once["standard_error"]
    apart = calibration.fit("auto", copies[0], copies[1])["chosen_by"]
    assert apart["standard_error"] < 0.7 * once["standard_error"]
