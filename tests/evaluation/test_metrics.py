"""Ranking and classification metrics against textbooks, scikit-learn and SciPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from distilrank.core.errors import InputError, RunStopped
from distilrank.evaluation import metrics
from distilrank.evaluation.judged import Judged, System
from distilrank.evaluation.systems import compare_systems
from tests.judged_samples import SMALL, judged_table, judgements, some_rows

LISTS = st.lists(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 0.335, 0.5, 1.0]), st.sampled_from([-1.5, 0.0, 0.5, 2.0])),
        min_size=1,
        max_size=7,
    ),
    min_size=1,
    max_size=5,
)


def flat(lists):
    query = np.repeat(np.arange(len(lists)), [len(rows) for rows in lists])
    gain, score = np.array([row for rows in lists for row in rows]).T
    tie = np.concatenate([np.arange(len(rows)) for rows in lists])
    shuffled = np.random.default_rng(len(query)).permutation(len(query))
    return tuple(column[shuffled] for column in (query, gain, score, tie))


def in_order(rows):
    """Gains of one list of (gain, score) by descending score, of ties the later row first."""
    return [gain for _, _, gain in sorted(((-score, -index, gain) for index, (gain, score) in enumerate(rows)))]


@given(LISTS, st.integers(1, 8))
def test_ndcg_is_the_textbook_sum(lists, k):
    def dcg(gains):
        return sum(gain / math.log2(1 + rank) for rank, gain in enumerate(gains[:k], start=1))

    query, gain, score, tie = flat(lists)
    for rows, value in zip(lists, metrics.ndcg(query, gain, score, k, tie), strict=True):
        ideal = dcg(sorted((gain for gain, _ in rows), reverse=True))
        assert math.isnan(value) if not ideal else value == pytest.approx(dcg(in_order(rows)) / ideal)


@given(LISTS)
def test_reciprocal_rank_is_that_of_the_first_relevant_product(lists):
    query, gain, score, tie = flat(lists)
    for rows, value in zip(lists, metrics.reciprocal_rank(query, gain >= 0.5, score, tie), strict=True):
        hits = [rank for rank, gain in enumerate(in_order(rows), start=1) if gain >= 0.5]
        assert value == pytest.approx(1 / hits[0] if hits else 0)


@given(LISTS, st.sampled_from([1, 3, 2**21]))
def test_pair_accuracy_counts_every_pair_whatever_the_block(lists, block_pairs):
    query, gain, score, _ = flat(lists)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "PAIRS_PER_BLOCK", block_pairs)
        accuracy = metrics.pair_accuracy(query, gain, score)
    for rows, value in zip(lists, accuracy, strict=True):
        pairs = [(a, b) if a[0] > b[0] else (b, a) for a, b in itertools.combinations(rows, 2) if a[0] != b[0]]
        right = [1.0 if better[1] > worse[1] else 0.5 if better[1] == worse[1] else 0.0 for better, worse in pairs]
        assert math.isnan(value) if not pairs else value == pytest.approx(np.mean(right))


@given(LISTS)
def test_rankable_queries_have_different_gains(lists):
    query, gain, _, _ = flat(lists)
    assert metrics.rankable(query, gain).tolist() == [len({gain for gain, _ in rows}) > 1 for rows in lists]


def test_scores_that_are_one_32_bit_float_are_tied():
    query, gain = np.zeros(2, int), np.array([1, 0])
    close = np.array([1.0, 1.0 + 1e-9])
    assert metrics.pair_accuracy(query, gain, close)[0] == 0.5
    assert metrics.ndcg(query, gain, close, 5, tie=np.array([1, 0]))[0] == 1.0
    assert metrics.ndcg(query, gain, close, 5, tie=np.array([0, 1]))[0] < 1.0


ROWS = st.lists(
    st.tuples(st.booleans(), st.sampled_from([-1.0, 0.0, 0.25, 0.5, 3.0]), st.integers(0, 3)), min_size=2, max_size=30
)


@given(ROWS)
def test_auc_agrees_with_scikit_learn_including_ties_and_resamples(rows):
    relevant, score, drawn = (np.array(column) for column in zip(*rows, strict=True))
    curve = metrics.ThresholdCurve(relevant, score).counts()
    whole = metrics.roc_auc(*curve), metrics.pr_auc(*curve)
    bootstrap = metrics.BootstrapAuc(relevant, score, np.arange(len(rows)))
    assert bootstrap.compute(np.ones(len(rows))) == pytest.approx(whole, nan_ok=True)
    for weights, (roc, pr) in ((np.ones(len(rows)), whole), (drawn, bootstrap.compute(drawn))):
        if weights[relevant].sum() and weights[~relevant].sum():
            assert roc == pytest.approx(sklearn.metrics.roc_auc_score(relevant, score, sample_weight=weights))
        else:
            assert math.isnan(roc)
        if weights[relevant].sum():
            assert pr == pytest.approx(sklearn.metrics.average_precision_score(relevant, score, sample_weight=weights))
        else:
            assert math.isnan(pr)
    if not relevant.any():
        assert math.isnan(metrics.recall_at_precision(*curve, 0.95))


@given(ROWS, st.sampled_from([0.5, 0.6, 0.95]))
def test_recall_at_precision_is_the_best_over_all_thresholds(rows, precision):
    relevant, score, _ = (np.array(column) for column in zip(*rows, strict=True))
    if not relevant.any():
        return
    recalls = [
        relevant[score >= threshold].sum() / relevant.sum()
        for threshold in set(score)
        if relevant[score >= threshold].mean() >= precision
    ]
    reached = metrics.recall_at_precision(*metrics.ThresholdCurve(relevant, score).counts(), precision)
    assert reached == pytest.approx(max(recalls, default=0.0))


def test_recall_counts_a_precision_of_exactly_the_bound():
    relevant = np.array([True] * 19 + [False] + [True])
    curve = metrics.ThresholdCurve(relevant, np.array([1.0] * 20 + [0.0]))
    assert metrics.recall_at_precision(*curve.counts(), 0.95) == 1.0  # 20 of 21
    curve = metrics.ThresholdCurve(relevant[:20], np.ones(20))
    assert metrics.recall_at_precision(*curve.counts(), 0.95) == 1.0  # 19 of 20
    assert metrics.recall_at_precision(*curve.counts(), 0.96) == 0.0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40), st.integers(2, 12))
def test_calibration_error_is_the_weighted_gap_of_the_bins(rows, bins):
    probability, target = np.array(rows).T
    gap = 0.0
    for index in range(bins):
        inside = np.array([min(int(value * bins), bins - 1) == index for value in probability])
        if inside.any():
            gap += inside.mean() * abs(probability[inside].mean() - target[inside].mean())
    diagram = metrics.reliability(probability, target, bins)
    assert metrics.ece(diagram) == pytest.approx(gap)
    assert sum(part["count"] for part in diagram) == len(rows)
    assert metrics.brier(probability, target) == pytest.approx(np.mean([(p - y) ** 2 for p, y in rows]))


def test_home_depot_ratings_keep_their_order_as_whole_hundredths():
    ratings = np.array([1, 1.25, 1.33, 1.5, 1.67, 1.75, 2, 2.25, 2.33, 2.5, 2.67, 2.75, 3])
    graded = metrics.grades(((ratings - 1) / 2).astype(np.float32))
    assert graded.tolist() == [0, 13, 17, 25, 34, 38, 50, 63, 67, 75, 84, 88, 100]
    assert graded.tolist() == metrics.grades((ratings - 1) / 2).tolist(), "32 or 64 bits, the same grade"


def test_mean_ndcg_is_that_of_the_evaluation_in_any_row_order(tmp_path):
    rng = np.random.default_rng(13)
    rows = some_rows(30, rng)
    judged = Judged.read(judgements(tmp_path, judged_table(rows)))
    score = rng.integers(0, 3, len(rows)).astype(np.float32)
    results, _ = compare_systems(judged, {"student": System(score)}, SMALL)
    for order in (np.arange(len(rows)), rng.permutation(len(rows))):
        query_ids, product_ids, targets = (np.array(column, object)[order] for column in zip(*rows, strict=True))
        for k in (5, 10):
            value = metrics.mean_ndcg(query_ids, product_ids, targets, score[order], k)
            assert value == pytest.approx(results["systems"]["student"][f"ndcg_at_{k}"], abs=1e-12)


def test_mean_ndcg_refuses_pairs_that_cannot_be_ranked():
    with pytest.raises(InputError, match="none of 2 queries"):
        metrics.mean_ndcg(["q", "q", "r"], ["a", "b", "a"], [1, 1, 0], [0.1, 0.2, 0.3])
    with pytest.raises(InputError, match="none of 0 queries"):
        metrics.mean_ndcg([], [], [], [])
    with pytest.raises(RunStopped, match="1 of 2 scores are not finite"):
        metrics.mean_ndcg(["q", "q"], ["a", "b"], [1, 0], [0.1, math.nan])


SCORES = st.lists(
    st.lists(st.tuples(*[st.sampled_from([-1.0, 0.0, 0.5, 2.0])] * 2), min_size=1, max_size=6), min_size=1, max_size=4
)


@given(SCORES)
def test_kendall_is_that_of_scipy(lists):
    query = np.repeat(np.arange(len(lists)), [len(rows) for rows in lists])
    first, second = np.array([row for rows in lists for row in rows]).T
    shuffled = np.random.default_rng(len(query)).permutation(len(query))
    taus = metrics.kendall(query[shuffled], first[shuffled], second[shuffled])
    for number, value in enumerate(taus):
        inside = query == number
        expected = stats.kendalltau(first[inside], second[inside]).statistic if inside.sum() > 1 else np.nan
        assert value == pytest.approx(expected, nan_ok=True)
