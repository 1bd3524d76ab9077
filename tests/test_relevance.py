import itertools
import json
import math
import shutil
from pathlib import Path
from urllib.parse import unquote

import ir_measures
import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from distilrank import registry
from distilrank.config import Compute, Evaluate, Registry, TeacherText, Text
from distilrank.core import artifacts, schemas
from distilrank.core.errors import InputError, RunStopped
from distilrank.evaluation import evaluate, metrics, significance, trec
from distilrank.evaluation.evaluate import Judged, System, baselines, compare_systems, latency
from distilrank.modeling.scorer import Scorer, describe, load_encoder
from tests.tiny_models import WORDS

CPU = Compute(precision="fp32", device="cpu", threads=1)
SMALL = Evaluate(bootstrap=200, cluster_bootstrap=50, latency_pairs=10)


def judged_table(rows, **columns):
    """A JUDGED table of (query_id, product_id, target); `columns` replace the others' defaults."""
    query_ids, product_ids, targets = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    values = {
        "query_id": query_ids,
        "query": [f"words of {query}" for query in query_ids],
        "product_id": product_ids,
        **{name: [None] * len(rows) for name in schemas.PRODUCT_FIELDS},
        "title": [f"title {product}" for product in product_ids],
        "target": targets,
        "gain": targets,
        "raters": [3] * len(rows),
        "locale": [None] * len(rows),
        "stratum": ["head"] * len(rows),
        "bm25": [float(len(product)) for product in product_ids],
    }
    return schemas.conform(pa.table({**values, **columns}), schemas.JUDGED, "judged")


def judgements(folder, table, relevant_from=0.5):
    schemas.write(table, folder / "test.parquet", schemas.JUDGED)
    protocol = {"source": "test", "rating_range": [1, 3], "relevant_from": relevant_from, "split": {"salt": "s"}}
    artifacts.write_json(folder / "protocol.json", protocol)
    artifacts.seal(folder)
    return folder


def some_rows(queries, rng, products=6):
    levels = (0, 1 / 6, 1 / 3, 0.5, 0.665, 1)
    return [
        (f"q{query}", f"p{product}", levels[rng.integers(len(levels))])
        for query in range(queries)
        for product in range(int(rng.integers(2, products + 1)))
    ]


# Measures ---------------------------------------------------------------------------------------------------------

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
    return [gain for _, _, gain in sorted(((-score, -at, gain) for at, (gain, score) in enumerate(rows)))]


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
def test_pair_accuracy_counts_every_pair_whatever_the_block(lists, at_once):
    query, gain, score, _ = flat(lists)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "PAIRS_AT_ONCE", at_once)
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
def test_areas_agree_with_scikit_learn_ties_and_draws_included(rows):
    relevant, score, drawn = (np.array(column) for column in zip(*rows, strict=True))
    curve = metrics.ThresholdCurve(relevant, score).counts()
    whole = metrics.roc_auc(*curve), metrics.pr_auc(*curve)
    areas = metrics.BootstrapAuc(relevant, score, np.arange(len(rows)))
    assert areas.measure(np.ones(len(rows))) == pytest.approx(whole, nan_ok=True)
    for weights, (roc, pr) in ((np.ones(len(rows)), whole), (drawn, areas.measure(drawn))):
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
def test_recall_at_precision_is_the_best_over_all_thresholds(rows, wanted):
    relevant, score, _ = (np.array(column) for column in zip(*rows, strict=True))
    if not relevant.any():
        return
    recalls = [
        relevant[score >= threshold].sum() / relevant.sum()
        for threshold in set(score)
        if relevant[score >= threshold].mean() >= wanted
    ]
    reached = metrics.recall_at_precision(*metrics.ThresholdCurve(relevant, score).counts(), wanted)
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


# TREC files -------------------------------------------------------------------------------------------------------

ODD = ["a b", "a%20b", "a", "A", "é\u00a0ü", "tab\there", "", "%", "b#1", "10", "9", "\u2028", "quote'\"", "a/b", "~"]


@given(st.lists(st.text(), min_size=1, max_size=6))
def test_encoded_identifiers_are_single_words_and_reversible(identifiers):
    for identifier in identifiers:
        word = trec.encode(identifier)
        assert word.isascii() and word.split() == [word]
        assert unquote(word) == identifier or (identifier, word) == ("", "%")
    assert len({trec.encode(identifier) for identifier in identifiers}) == len(set(identifiers))


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_ir_measures_on_the_files_gives_the_same_figures(tmp_path_factory, seed):
    folder, rng = tmp_path_factory.mktemp("trec"), np.random.default_rng(seed)
    rows = [
        (query, product, float(rng.choice([0, 1 / 3, 0.335, 0.665, 0.67, 1])))
        for query in rng.choice(ODD, 8, replace=False)
        for product in rng.choice(ODD, int(rng.integers(1, 14)), replace=False)
    ]
    rows += [("decided", "a b", 0.0), ("decided", "b", 1.0)]  # so that at least one query can be ranked
    judged = Judged.read(judgements(folder / "judgements", judged_table(rows), relevant_from=0.665))
    systems = {
        **baselines(judged, SMALL),
        "tied": System(rng.integers(-1, 2, len(rows)).astype(np.float32)),
        "close": System(np.nextafter(np.float32(1), np.where(rng.random(len(rows)) < 0.5, 2, 1), dtype=np.float32)),
    }
    results, by_query = compare_systems(judged, systems, SMALL)
    evaluate.write_trec(folder, judged, systems)

    qrels = list(ir_measures.read_trec_qrels(str(folder / "qrels.txt")))
    assert len({row.query_id for row in qrels}) == results["protocol"]["ranked_queries"]
    wanted = {
        "ndcg_at_5": ir_measures.nDCG @ 5,
        "ndcg_at_10": ir_measures.nDCG @ 10,
        "mrr": ir_measures.RR(rel=results["protocol"]["relevant_grade"]),
    }
    for name in systems:
        run = list(ir_measures.read_trec_run(str(folder / "runs" / f"{name}.run")))
        assert len(run) == len(qrels)
        theirs = ir_measures.calc_aggregate(list(wanted.values()), qrels, run)
        for metric, measure in wanted.items():
            assert results["systems"][name][metric] == pytest.approx(theirs[measure], abs=1e-9), (name, metric)
            assert by_query[name][metric].mean() == results["systems"][name][metric]


def test_run_files_rank_from_one_in_trec_eval_order(tmp_path):
    judged = Judged.read(
        judgements(tmp_path / "j", judged_table([("q 1", "a", 0), ("q 1", "c", 0.5), ("q 1", "b", 1)]))
    )
    evaluate.write_trec(tmp_path, judged, {"flat": System(np.zeros(3, np.float32))})
    lines = [line.split() for line in (tmp_path / "runs" / "flat.run").read_text().splitlines()]
    assert {(line[0], line[1], line[5]) for line in lines} == {("q%201", "Q0", "flat")}
    assert {line[2]: line[3] for line in lines} == {"c": "1", "b": "2", "a": "3"}
    assert (tmp_path / "qrels.txt").read_text() == "q%201 0 a 0\nq%201 0 c 50\nq%201 0 b 100\n"


# Significance -----------------------------------------------------------------------------------------------------


def test_paired_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(10):  # 40 differences share the resamples of one call
        deltas = rng.normal(0.1, 0.5, (60, 40))
        sure = significance.paired_interval(deltas, resamples=500, confidence=0.9, rng=rng)
        covered += int(((sure.low <= 0.1) & (sure.high >= 0.1)).sum())
    assert 0.85 < covered / 400 < 0.94


def test_paired_interval_width_is_that_of_the_mean():
    deltas = np.random.default_rng(1).normal(0, 1, (400, 1))
    sure = significance.paired_interval(deltas, resamples=4000, confidence=0.95, rng=np.random.default_rng(2))
    half = 1.96 * deltas.std() / 20
    assert sure.low[0] == pytest.approx(deltas.mean() - half, abs=0.015)
    assert sure.high[0] == pytest.approx(deltas.mean() + half, abs=0.015)


def test_sign_flips_approach_the_exact_randomization_test():
    deltas = np.array([0.3, -0.1, 0.2, 0.4, 0.05, -0.02, 0.25, 0.1])
    flipped = [abs(np.dot(signs, deltas)) for signs in itertools.product((-1, 1), repeat=len(deltas))]
    exact = np.mean(np.array(flipped) >= abs(deltas.sum()) - 1e-12)
    sure = significance.paired_interval(
        deltas[:, None], resamples=20_000, confidence=0.95, rng=np.random.default_rng(3)
    )
    assert sure.p_value[0] == pytest.approx(exact, abs=0.01)


def test_p_values_are_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(4)
    sure = significance.paired_interval(rng.normal(0, 1, (50, 400)), resamples=500, confidence=0.95, rng=rng)
    assert 0.02 < (sure.p_value <= 0.05).mean() < 0.09
    assert 0.42 < (sure.p_value <= 0.5).mean() < 0.58


def test_no_difference_at_all_is_an_empty_interval_and_p_one():
    sure = significance.paired_interval(np.zeros((7, 2)), resamples=100, confidence=0.95, rng=np.random.default_rng(5))
    assert [values.tolist() for values in sure] == [[0, 0], [0, 0], [1, 1]]


def test_resampling_in_blocks_changes_nothing(monkeypatch):
    deltas = np.random.default_rng(6).normal(0, 1, (9, 3))
    results = []
    for at_once in (2**22, 20, 1):
        monkeypatch.setattr(significance, "AT_ONCE", at_once)
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

    sure = significance.cluster_interval(differences, 3, resamples=200, confidence=0.95, rng=np.random.default_rng(10))
    assert sure.low[0] == 1 and sure.high[0] >= 2 and sure.p_value[0] < 0.05
    assert np.isnan([sure.low[1], sure.high[1], sure.p_value[1]]).all()


# Systems side by side ---------------------------------------------------------------------------------------------


def with_models(judged, rng, noise=0.2):
    def noisy(scale):
        return (judged.target + rng.normal(0, scale, len(judged.target))).astype(np.float32)

    student, teacher = noisy(noise), noisy(noise / 2)
    return {
        **baselines(judged, SMALL),
        "teacher": System(teacher, np.clip(teacher, 0, 1)),
        "student": System(student, np.clip(student, 0, 1)),
    }


def test_a_test_set_is_known_by_its_queries_not_by_its_targets(tmp_path):
    rows = [(f"q{query}", f"p{product}", product / 2) for query in range(30) for product in range(3)]
    judged = Judged.read(judgements(tmp_path / "one", judged_table(rows)))
    touched = [(*rows[0][:2], 0.00001), *rows[1:]]
    other = Judged.read(judgements(tmp_path / "two", judged_table(touched)))
    assert judged.digest != other.digest and judged.sketch == other.sketch
    # Queries that nothing ranks would thin the overlap out.
    padded = Judged.read(
        judgements(tmp_path / "three", judged_table([*rows, *((f"r{at}", "p", 0) for at in range(90))]))
    )
    assert padded.sketch == judged.sketch and len(padded.query_ids) == 120
    results, _ = compare_systems(judged, baselines(judged, SMALL), SMALL)
    assert results["test_set"]["sketch"] == judged.sketch
    assert (results["protocol"]["slices"], results["protocol"]["slice_queries"]) == (list(SMALL.slices), 20)


def test_metrics_have_the_documented_form_and_finite_values(tmp_path):
    rng = np.random.default_rng(11)
    judged = Judged.read(judgements(tmp_path, judged_table(some_rows(40, rng))))
    systems = with_models(judged, rng)
    systems["champion"] = System(systems["student"].score.copy())
    results, _ = compare_systems(judged, systems, SMALL)
    json.dumps(results, allow_nan=False)
    assert set(results) == {
        "protocol",
        "systems",
        "comparisons",
        "slices",
        "agreement",
        "examples",
        "distribution",
        "test_set",
        "reliability",
        "scores",
    }
    nine = {
        "ndcg_at_5",
        "ndcg_at_10",
        "mrr",
        "pair_accuracy",
        "roc_auc",
        "pr_auc",
        "recall_at_precision_95",
        "ece",
        "brier",
    }
    assert all(set(values) == nine for values in results["systems"].values())
    assert results["systems"]["bm25"]["ece"] is None and results["systems"]["champion"]["brier"] is None
    assert results["systems"]["student"]["ece"] >= 0
    assert set(results["reliability"]) == set(results["scores"]) == {"teacher", "student"}
    assert sum(results["scores"]["student"]["counts"]) == len(judged.query)

    keys = [(one["system"], one["baseline"], one["metric"]) for one in results["comparisons"]]
    assert len(set(keys)) == len(keys) == 5 * 6
    for one in results["comparisons"]:
        across = one["metric"] in ("roc_auc", "pr_auc")
        keys = {"system", "baseline", "metric", "delta", "ci_low", "ci_high", "p_value", "queries"}
        assert set(one) == keys | (set() if across else {"wins", "ties", "losses"})
        if not across:
            assert one["wins"] + one["ties"] + one["losses"] == one["queries"]
        figures = (results["systems"][one[role]][one["metric"]] for role in ("system", "baseline"))
        assert one["delta"] == pytest.approx(next(figures) - next(figures))
        assert one["ci_low"] <= one["ci_high"] and 0 < one["p_value"] <= 1
        assert one["queries"] == results["protocol"]["queries" if across else "ranked_queries"]
        if one["baseline"] == "champion":  # the same scores
            assert (one["delta"], one["ci_low"], one["ci_high"], one["p_value"]) == (0, 0, 0, 1)
        if (one["system"], one["baseline"]) == ("student", "random"):
            assert one["ci_low"] > 0 and one["p_value"] < 0.05


def test_intervals_of_areas_resample_whole_queries(tmp_path):
    rng = np.random.default_rng(15)
    judged = Judged.read(judgements(tmp_path, judged_table(some_rows(30, rng))))
    systems = with_models(judged, rng)
    results, _ = compare_systems(judged, systems, Evaluate(bootstrap=100, cluster_bootstrap=400))
    keys = ("student", "random", "roc_auc")
    found = next(one for one in results["comparisons"] if (one["system"], one["baseline"], one["metric"]) == keys)
    rows = [np.flatnonzero(judged.query == query) for query in range(30)]
    deltas = []
    for _ in range(200):
        drawn = np.concatenate([rows[query] for query in rng.integers(30, size=30)])
        areas = [sklearn.metrics.roc_auc_score(judged.relevant[drawn], systems[name].score[drawn]) for name in keys[:2]]
        deltas.append(areas[0] - areas[1])
    low, high = np.quantile(deltas, [0.025, 0.975])
    assert high - low > 0.1
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((low, high), abs=0.05)


def test_a_champion_changes_no_other_comparison(tmp_path):
    rng = np.random.default_rng(12)
    judged = Judged.read(judgements(tmp_path, judged_table(some_rows(20, rng))))
    systems = with_models(judged, rng)
    without = compare_systems(judged, systems, SMALL)[0]["comparisons"]
    champion = compare_systems(judged, {**systems, "champion": systems["teacher"]}, SMALL)[0]["comparisons"]
    others = [one for one in champion if one["baseline"] != "champion"]
    assert without == [pytest.approx(one) for one in others]


def test_queries_of_equal_gains_are_counted_and_left_out_of_ranking_only(tmp_path):
    rows = [("q1", "a", 0.0), ("q1", "b", 1.0), ("equal", "a", 1.0), ("equal", "b", 1.0), ("single", "a", 0.0)]
    score = np.array([1.0, 0.0, 5.0, 4.0, 3.0], np.float32)
    judged = Judged.read(judgements(tmp_path / "j", judged_table(rows)))
    results, by_query = compare_systems(judged, {"student": System(score)}, SMALL)
    protocol = results["protocol"]
    assert (protocol["queries"], protocol["ranked_queries"], protocol["left_out_queries"]) == (3, 1, 2)
    assert (protocol["pairs"], protocol["ranked_pairs"]) == (5, 2)
    assert results["systems"]["student"]["mrr"] == 0.5 and results["systems"]["student"]["pair_accuracy"] == 0.0
    assert {len(values) for values in by_query["student"].values()} == {1}
    relevant = [False, True, True, True, False]
    assert results["systems"]["student"]["roc_auc"] == sklearn.metrics.roc_auc_score(relevant, score)
    evaluate.write_trec(tmp_path, judged, {"student": System(score)})
    assert {line.split()[0] for line in (tmp_path / "qrels.txt").read_text().splitlines()} == {"q1"}
    assert {line.split()[0] for line in (tmp_path / "runs" / "student.run").read_text().splitlines()} == {"q1"}


def test_one_query_is_measured_with_an_interval_of_no_width(tmp_path):
    judged = Judged.read(judgements(tmp_path, judged_table([("q", "a", 0.0), ("q", "b", 1.0), ("q", "c", 0.5)])))
    systems = {**baselines(judged, SMALL), "student": System(np.array([0, 2, 1], np.float32))}
    results, _ = compare_systems(judged, systems, SMALL)
    assert results["systems"]["student"]["ndcg_at_10"] == 1.0
    for one in results["comparisons"]:
        assert one["ci_low"] == pytest.approx(one["delta"]) and one["ci_high"] == pytest.approx(one["delta"])


def test_measures_without_meaning_are_null_and_not_compared(tmp_path):
    judged = Judged.read(judgements(tmp_path, judged_table([("q", "a", 0.0), ("q", "b", 0.25)]), relevant_from=0.5))
    systems = {**baselines(judged, SMALL), "student": System(np.array([0, 1], np.float32))}
    results, _ = compare_systems(judged, systems, SMALL)
    figures = results["systems"]["student"]
    assert figures["roc_auc"] is figures["pr_auc"] is figures["recall_at_precision_95"] is None
    assert figures["mrr"] == 0 and figures["ndcg_at_10"] == 1
    assert {one["metric"] for one in results["comparisons"]} == set(metrics.PER_QUERY)


def test_only_the_measure_without_meaning_is_left_out(tmp_path):
    judged = Judged.read(judgements(tmp_path, judged_table([("q", "a", 0.5), ("q", "b", 1.0)]), relevant_from=0.5))
    systems = {**baselines(judged, SMALL), "student": System(np.array([0, 1], np.float32))}
    results, _ = compare_systems(judged, systems, SMALL)
    assert results["systems"]["student"]["roc_auc"] is None and results["systems"]["student"]["pr_auc"] == 1
    assert {one["metric"] for one in results["comparisons"]} == {*metrics.PER_QUERY, "pr_auc"}


def test_each_system_is_timed_first_as_often(tmp_path):
    rows = [(f"q{query}", product, target) for query in range(6) for product, target in (("a", 0.0), ("b", 1.0))]
    judged = Judged.read(judgements(tmp_path, judged_table(rows)))
    called = []
    timed = latency({name: lambda request, name=name: called.append(name) for name in "xyz"}, judged, 100)
    assert set(timed) == set("xyz")
    assert "".join(called[18:]) == 2 * "xyzyzxzxy"  # after six requests each to warm up


def test_dev_ndcg_is_the_figure_of_the_evaluation_in_any_row_order(tmp_path):
    rng = np.random.default_rng(13)
    rows = some_rows(30, rng)
    judged = Judged.read(judgements(tmp_path, judged_table(rows)))
    score = rng.integers(0, 3, len(rows)).astype(np.float32)
    results, _ = compare_systems(judged, {"student": System(score)}, SMALL)
    for order in (np.arange(len(rows)), rng.permutation(len(rows))):
        query_ids, product_ids, targets = (np.array(column, object)[order] for column in zip(*rows, strict=True))
        for k in (5, 10):
            value = evaluate.mean_ndcg(query_ids, product_ids, targets, score[order], k)
            assert value == pytest.approx(results["systems"]["student"][f"ndcg_at_{k}"], abs=1e-12)


def test_dev_ndcg_refuses_what_it_cannot_rank():
    with pytest.raises(InputError, match="none of 2 queries"):
        evaluate.mean_ndcg(["q", "q", "r"], ["a", "b", "a"], [1, 1, 0], [0.1, 0.2, 0.3])
    with pytest.raises(InputError, match="none of 0 queries"):
        evaluate.mean_ndcg([], [], [], [])
    with pytest.raises(RunStopped, match="1 of 2 scores are not finite"):
        evaluate.mean_ndcg(["q", "q"], ["a", "b"], [1, 0], [0.1, math.nan])


def test_a_model_that_gives_no_numbers_stops_the_run(tmp_path):
    judged = Judged.read(judgements(tmp_path, judged_table([("q", "a", 0.0), ("q", "b", 1.0)])))
    with pytest.raises(RunStopped, match=r"student: score is nan for query 'words of q', product 'b' \(1 of 2"):
        compare_systems(judged, {"student": System(np.array([0, np.nan], np.float32))}, SMALL)


@pytest.mark.parametrize(
    ("rows", "relevant_from", "message"),
    [
        ([], 0.5, "no rows, expected judged pairs"),
        ([("q", "a", 0.0), ("q", "b", 1.5)], 0.5, "row 2: target is 1.5, expected 0 to 1"),
        ([("q", "a", 0.0), ("q", "b", math.nan)], 0.5, "row 2: target is nan"),
        ([("q", "a", 0.0), ("q", "a", 1.0)], 0.5, "query 'words of q' and product 'a' are judged more than once"),
        ([("q", "a", 1.0), ("r", "a", 0.0)], 0.5, "none of 2 queries has products of different rating"),
        ([("q", "a", 0.0), ("q", "b", 1.0)], None, "protocol.json: relevant_from is None"),
        ([("q", "a", 0.0), ("q", "b", 1.0)], 2.33, "protocol.json: relevant_from is 2.33, expected a number in"),
    ],
)
def test_bad_judgements_are_one_clear_line(tmp_path, rows, relevant_from, message):
    with pytest.raises(InputError, match=message) as refusal:
        Judged.read(judgements(tmp_path, judged_table(rows), relevant_from))
    assert "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)


# The stage --------------------------------------------------------------------------------------------------------


def trained(base, folder, seed, kind, text, calibrated):
    """A model with a random head in the layout that the training stages write."""
    torch.manual_seed(seed)
    shutil.copytree(base, folder)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = model.config.pad_token_id or 1
    head = model.score if kind == "decoder" else model.classifier
    torch.nn.init.normal_(head.weight)
    model.save_pretrained(folder)
    encoder = load_encoder(folder, text, kind)
    describe(folder, role="student", encoder=encoder, text=text, tokens=512, base=str(base))
    described = artifacts.read_json(folder / "distilrank.json")
    artifacts.write_json(folder / "distilrank.json", described | {"calibration": calibrated})
    artifacts.seal(folder)


def a_traffic_table(rng, rows):
    def words(count):
        return [" ".join(rng.choice(WORDS, 3)) for _ in range(count)]

    values = {
        **{name: [None] * rows for name in schemas.PRODUCT_FIELDS},
        "query_id": [f"q{row % 5}" for row in range(rows)],
        "query": words(rows),
        "product_id": [f"p{row}" for row in range(rows)],
        "title": words(rows),
        **{name: [1] * rows for name in ("query_words", "query_characters", "query_tokens", "title_words")},
        "script": ["latin"] * rows,
        "position": [None] * rows,
        "clicked": [None] * rows,
        "unseen_words": [0.0] * rows,
        "bm25": [1.0] * rows,
    }
    return schemas.conform(pa.table(values), schemas.TRAFFIC, "traffic")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, models):
    """Everything that the stage reads, small and real."""
    root, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(14)
    rows = some_rows(12, rng)
    texts = {"query": [f"{WORDS[int(row[0][1:])]} lamp" for row in rows]}
    texts["title"] = [" ".join(rng.choice(WORDS, 4)) for _ in rows]
    judgements(root / "judgements", judged_table(rows, **texts))
    for name, size in (("reference", 30), ("current", 20)):
        schemas.write(a_traffic_table(rng, size), root / "traffic" / f"{name}.parquet", schemas.TRAFFIC)
    artifacts.seal(root / "traffic")
    platt = {"method": "platt", "slope": 0.5, "intercept": -0.25}
    trained(models / "decoder", root / "teacher", 1, "decoder", TeacherText(max_tokens=64), platt)
    trained(models / "encoder", root / "student", 2, "encoder", Text(max_tokens=32), platt)
    (root / "version").mkdir()
    trained(models / "encoder", root / "version" / "student", 3, "encoder", Text(max_tokens=32), {"method": "none"})
    return root


def run_stage(root, output, champion="", uri="unused", anchor="", config=SMALL):
    return evaluate.evaluate(
        config,
        CPU,
        Registry(uri=str(uri)),
        judgements=root / "judgements",
        traffic=root / "traffic",
        teacher=root / "teacher",
        student=root / "student",
        champion=champion,
        anchor=anchor,
        output=output,
    )


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_stage_writes_a_sealed_folder_of_everything(inputs, tmp_path):
    output = tmp_path / "evaluation"
    evaluation = run_stage(inputs, output)
    runs = {f"runs/{name}.run" for name in ("random", "bm25", "teacher", "student")}
    scores = {"traffic_scores/reference.parquet", "traffic_scores/current.parquet"}
    tables = {"metrics.json", "per_query.parquet", "pair_scores.parquet", "qrels.txt", "digest.json", "stage.json"}
    assert files(output) == runs | scores | tables
    artifacts.verify(output)

    results = artifacts.read_json(output / "metrics.json")
    student = results["systems"]["student"]
    assert evaluation.ndcg_at_10 == student["ndcg_at_10"]
    assert evaluation.lift_over_bm25 == pytest.approx(student["ndcg_at_10"] - results["systems"]["bm25"]["ndcg_at_10"])
    assert set(results["latency"]) == {"student"}
    timed = results["latency"]["student"]
    assert (
        0 < timed["p50_ms"] <= timed["p95_ms"] <= timed["p99_ms"]
        and timed["pairs_per_second"] > 0
        and timed["pairs_per_request"] >= 2
    )

    pairs = schemas.read(output / "pair_scores.parquet", schemas.PAIR_SCORES).to_pandas()
    scorer = Scorer.load(inputs / "student", CPU)
    test = schemas.read(inputs / "judgements" / "test.parquet", schemas.JUDGED)
    expected = scorer.score(test)
    mine = pairs[pairs.system == "student"]
    assert np.allclose(mine.score, expected, atol=1e-5)
    assert mine.score.nunique() > len(mine) / 2
    assert np.allclose(mine.probability, scorer.probability(expected), atol=1e-5)
    assert pairs[pairs.system == "bm25"].probability.isna().all()
    per_query = schemas.read(output / "per_query.parquet", schemas.PER_QUERY).to_pandas()
    for name, values in results["systems"].items():
        means = per_query[per_query.system == name][list(metrics.PER_QUERY)].mean()
        assert all(means[metric] == pytest.approx(values[metric]) for metric in metrics.PER_QUERY)

    traffic = schemas.read(inputs / "traffic" / "current.parquet", schemas.TRAFFIC)
    scored = schemas.read(output / "traffic_scores" / "current.parquet", schemas.TRAFFIC_SCORES)
    assert np.allclose(scored.column("score"), scorer.probability(scorer.score(traffic)), atol=1e-5)


def test_the_stage_repeats_itself_but_for_the_timings(inputs, tmp_path):
    for name in ("one", "two"):
        run_stage(inputs, tmp_path / name)
    digests = [artifacts.read_json(tmp_path / name / "digest.json")["files"] for name in ("one", "two")]
    results = [artifacts.read_json(tmp_path / name / "metrics.json") for name in ("one", "two")]
    for digest, values in zip(digests, results, strict=True):
        del digest["metrics.json"], values["latency"]
    assert digests[0] == digests[1] and results[0] == results[1]


def publish(inputs, folder, seed=0):
    """A version in the registry of `folder`; another one with another `seed`."""
    made = folder / f"version-{seed}"
    artifacts.copy_tree(inputs / "version", made)
    if seed:
        shutil.rmtree(made / "student")
        artifacts.copy_tree(inputs / "student", made / "student")
    artifacts.seal(made)
    version = "v" + artifacts.sealed_digest(made / "student")[:12]
    registry.open(str(folder / "registry")).publish(made, version)
    return version


def test_the_champion_is_scored_again_on_the_same_rows(inputs, tmp_path):
    version = publish(inputs, tmp_path)
    output = tmp_path / "evaluation"
    run_stage(inputs, output, version, tmp_path / "registry")
    results = artifacts.read_json(output / "metrics.json")
    assert list(results["systems"]) == ["random", "bm25", "teacher", "student", "champion"]
    assert results["systems"]["champion"]["ece"] is None, "it was not calibrated"
    assert results["examples"]["baseline"] == "champion"
    assert set(results["latency"]) == {"student", "champion"}
    pairs = schemas.read(output / "pair_scores.parquet", schemas.PAIR_SCORES).to_pandas()
    scorer = Scorer.load(inputs / "version" / "student", CPU)
    test = schemas.read(inputs / "judgements" / "test.parquet", schemas.JUDGED)
    assert np.allclose(pairs[pairs.system == "champion"].score, scorer.score(test), atol=1e-5)
    traffic = schemas.read(inputs / "traffic" / "current.parquet", schemas.TRAFFIC)
    scored = schemas.read(output / "traffic_scores" / "champion_current.parquet", schemas.TRAFFIC_SCORES)
    assert np.allclose(scored.column("score"), 1 / (1 + np.exp(-scorer.score(traffic))), atol=1e-5)

    run_stage(inputs, output)  # into the same folder, without a champion: nothing of it may stay
    assert not {name for name in files(output) if "champion" in name}


def test_an_anchor_is_a_system_of_its_own_unless_it_is_the_champion(inputs, tmp_path):
    champion, anchor = publish(inputs, tmp_path), publish(inputs, tmp_path, seed=1)
    run_stage(inputs, tmp_path / "two", champion, tmp_path / "registry", anchor)
    two = artifacts.read_json(tmp_path / "two" / "metrics.json")
    assert two["systems"]["anchor"] == two["systems"]["student"] != two["systems"]["champion"], "the same weights"
    assert set(two["latency"]) == {"student", "champion", "anchor"}
    run_stage(inputs, tmp_path / "one", champion, tmp_path / "registry", champion)
    one = artifacts.read_json(tmp_path / "one" / "metrics.json")
    assert one["systems"]["anchor"] == one["systems"]["champion"] == two["systems"]["champion"]
    assert set(one["latency"]) == {"student", "champion", "anchor"}
    by_baseline = {
        name: [entry | {"baseline": ""} for entry in one["comparisons"] if entry["baseline"] == name]
        for name in ("champion", "anchor")
    }
    assert len(by_baseline["anchor"]) == 6
    assert by_baseline["anchor"] == by_baseline["champion"]
    assert {entry["baseline"] for row in one["slices"]["rows"] for entry in row["comparisons"]} <= {
        "bm25",
        "champion",
        "anchor",
    }


def test_a_champion_that_cannot_be_loaded_is_named_before_anything_is_scored(inputs, tmp_path, monkeypatch):
    version = publish(inputs, tmp_path)
    scored = []
    monkeypatch.setattr(Scorer, "score", lambda *arguments: scored.append(arguments))
    found = next((tmp_path / "registry").rglob(f"*{version}*/student/model.safetensors"))
    found.chmod(0o644)
    found.write_bytes(found.read_bytes()[:-8] + b"damaged.")
    with pytest.raises(InputError, match=rf"the champion {version} of registry .* cannot be loaded: .*safetensors"):
        run_stage(inputs, tmp_path / "evaluation", version, tmp_path / "registry")
    with pytest.raises(InputError, match=r"the anchor v0123456789ab of registry .* cannot be loaded"):
        run_stage(inputs, tmp_path / "evaluation", "", tmp_path / "registry", "v0123456789ab")
    assert not scored


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("judgements", "test.parquet"),
        ("traffic", "current.parquet"),
        ("teacher", "model.safetensors"),
        ("student", "model.safetensors"),
    ],
)
def test_what_was_changed_after_it_was_sealed_is_not_measured(inputs, tmp_path, monkeypatch, part, file):
    for name in ("judgements", "traffic", "teacher", "student"):
        (tmp_path / name).symlink_to(inputs / name)
    (tmp_path / part).unlink()
    artifacts.copy_tree(inputs / part, tmp_path / part)
    path = tmp_path / part / file
    if part == "judgements":  # as good as the student's order: nDCG would be 1
        table = schemas.read(path, schemas.JUDGED)
        score = Scorer.load(inputs / "student", CPU).score(table)
        target = pa.array((np.argsort(np.argsort(score)) / len(score)).astype(np.float32))
        for name in ("target", "gain"):
            table = table.set_column(table.schema.get_field_index(name), schemas.JUDGED.field(name), target)
        schemas.write(table, path, schemas.JUDGED)
    else:
        path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(Scorer, "load", lambda *_, **__: pytest.fail("a model is loaded"))
    with pytest.raises(InputError, match=rf"input {part}: {path}: digest \w+ differs from the recorded"):
        run_stage(tmp_path, tmp_path / "evaluation")
    assert not (tmp_path / "evaluation").exists()


def test_a_slice_column_that_there_is_not_is_named_before_a_model_is_loaded(inputs, tmp_path):
    config = SMALL.model_copy(update={"slices": ("stratum", "color")})
    with pytest.raises(
        InputError, match=r"evaluate\.slices: 'color' is no column .* expected some of query_words, .*color"
    ):
        run_stage(inputs, tmp_path / "evaluation", champion="v-unknown", config=config)


def test_an_empty_test_split_ends_the_stage(inputs, tmp_path):
    root = tmp_path / "inputs"
    for name in ("traffic", "teacher", "student"):
        artifacts.copy_tree(inputs / name, root / name)
    judgements(root / "judgements", judged_table([]))
    with pytest.raises(InputError, match=r"test\.parquet: no rows"):
        run_stage(root, tmp_path / "evaluation")
    assert not (tmp_path / "evaluation" / "digest.json").exists()
