"""Systems side by side: metrics, comparisons, and the form of metrics.json."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sklearn.metrics

from distilrank.config import Evaluate
from distilrank.core.errors import RunStopped
from distilrank.evaluation import metrics
from distilrank.evaluation.judged import Judged, System
from distilrank.evaluation.outputs import write_trec
from distilrank.evaluation.systems import compare_systems, score_baselines
from tests.judged_samples import SMALL, judged_table, judgements, some_rows, with_models


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

    keys = [(row["system"], row["baseline"], row["metric"]) for row in results["comparisons"]]
    assert len(set(keys)) == len(keys) == 5 * 6
    for row in results["comparisons"]:
        across = row["metric"] in ("roc_auc", "pr_auc")
        keys = {"system", "baseline", "metric", "delta", "ci_low", "ci_high", "p_value", "queries"}
        assert set(row) == keys | (set() if across else {"wins", "ties", "losses"})
        if not across:
            assert row["wins"] + row["ties"] + row["losses"] == row["queries"]
        figures = (results["systems"][row[role]][row["metric"]] for role in ("system", "baseline"))
        assert row["delta"] == pytest.approx(next(figures) - next(figures))
        assert row["ci_low"] <= row["ci_high"] and 0 < row["p_value"] <= 1
        assert row["queries"] == results["protocol"]["queries" if across else "ranked_queries"]
        if row["baseline"] == "champion":  # the same scores
            assert (row["delta"], row["ci_low"], row["ci_high"], row["p_value"]) == (0, 0, 0, 1)
        if (row["system"], row["baseline"]) == ("student", "random"):
            assert row["ci_low"] > 0 and row["p_value"] < 0.05


def test_intervals_of_auc_resample_whole_queries(tmp_path):
    rng = np.random.default_rng(15)
    judged = Judged.read(judgements(tmp_path, judged_table(some_rows(30, rng))))
    systems = with_models(judged, rng)
    results, _ = compare_systems(judged, systems, Evaluate(bootstrap=100, cluster_bootstrap=400))
    keys = ("student", "random", "roc_auc")
    row = next(row for row in results["comparisons"] if (row["system"], row["baseline"], row["metric"]) == keys)
    rows = [np.flatnonzero(judged.query == query) for query in range(30)]
    deltas = []
    for _ in range(200):
        drawn = np.concatenate([rows[query] for query in rng.integers(30, size=30)])
        auc = [sklearn.metrics.roc_auc_score(judged.relevant[drawn], systems[name].score[drawn]) for name in keys[:2]]
        deltas.append(auc[0] - auc[1])
    low, high = np.quantile(deltas, [0.025, 0.975])
    assert high - low > 0.1
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high), abs=0.05)


def test_a_champion_changes_no_other_comparison(tmp_path):
    rng = np.random.default_rng(12)
    judged = Judged.read(judgements(tmp_path, judged_table(some_rows(20, rng))))
    systems = with_models(judged, rng)
    without = compare_systems(judged, systems, SMALL)[0]["comparisons"]
    champion = compare_systems(judged, {**systems, "champion": systems["teacher"]}, SMALL)[0]["comparisons"]
    others = [row for row in champion if row["baseline"] != "champion"]
    assert without == [pytest.approx(row) for row in others]


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
    write_trec(tmp_path, judged, {"student": System(score)})
    assert {line.split()[0] for line in (tmp_path / "qrels.txt").read_text().splitlines()} == {"q1"}
    assert {line.split()[0] for line in (tmp_path / "runs" / "student.run").read_text().splitlines()} == {"q1"}


def test_one_query_is_measured_with_an_interval_of_no_width(tmp_path):
    judged = Judged.read(judgements(tmp_path, judged_table([("q", "a", 0.0), ("q", "b", 1.0), ("q", "c", 0.5)])))
    systems = {**score_baselines(judged, SMALL), "student": System(np.array([0, 2, 1], np.float32))}
    results, _ = compare_systems(judged, systems, SMALL)
    assert results["systems"]["student"]["ndcg_at_10"] == 1.0
    for row in results["comparisons"]:
        assert row["ci_low"] == pytest.approx(row["delta"]) and row["ci_high"] == pytest.approx(row["delta"])


def test_metrics_without_a_value_are_null_and_not_compared(tmp_path):
    judged = Judged.read(judgements(tmp_path, judged_table([("q", "a", 0.0), ("q", "b", 0.25)]), relevant_from=0.5))
    systems = {**score_baselines(judged, SMALL), "student": System(np.array([0, 1], np.float32))}
    results, _ = compare_systems(judged, systems, SMALL)
    figures = results["systems"]["student"]
    assert figures["roc_auc"] is figures["pr_auc"] is figures["recall_at_precision_95"] is None
    assert figures["mrr"] == 0 and figures["ndcg_at_10"] == 1
    assert {row["metric"] for row in results["comparisons"]} == set(metrics.PER_QUERY)


def test_only_the_metric_without_a_value_is_left_out(tmp_path):
    judged = Judged.read(judgements(tmp_path, judged_table([("q", "a", 0.5), ("q", "b", 1.0)]), relevant_from=0.5))
    systems = {**score_baselines(judged, SMALL), "student": System(np.array([0, 1], np.float32))}
    results, _ = compare_systems(judged, systems, SMALL)
    assert results["systems"]["student"]["roc_auc"] is None and results["systems"]["student"]["pr_auc"] == 1
    assert {row["metric"] for row in results["comparisons"]} == {*metrics.PER_QUERY, "pr_auc"}


def test_a_model_that_gives_no_numbers_stops_the_run(tmp_path):
    judged = Judged.read(judgements(tmp_path, judged_table([("q", "a", 0.0), ("q", "b", 1.0)])))
    with pytest.raises(RunStopped, match=r"student: score is nan for query 'words of q', product 'b' \(1 of 2"):
        compare_systems(judged, {"student": System(np.array([0, np.nan], np.float32))}, SMALL)
