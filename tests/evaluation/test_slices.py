"""Slices of the test queries: how queries get their values, and how slices are compared."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from distilrank.config import Evaluate
from distilrank.core.errors import InputError
from distilrank.evaluation import significance, slices
from distilrank.evaluation.judged import Judged, System
from distilrank.evaluation.systems import compare_systems
from tests.judged_samples import judged_table, judgements, some_rows, with_models

FAST = Evaluate(bootstrap=200, cluster_bootstrap=50, slice_queries=5)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Judged rows, systems and metrics; the student is worse than the champion on the tail only."""
    rng = np.random.default_rng(1)
    rows = some_rows(120, rng)
    of_query = {f"q{query}": ("tail", "head", "torso")[query % 3] for query in range(120)}
    types = ["drill" if int(query[1:]) < 60 else None for query, _, _ in rows]
    table = judged_table(rows, stratum=[of_query[query] for query, _, _ in rows], product_type=types)
    judged = Judged.read(judgements(tmp_path_factory.mktemp("judged"), table))
    systems = with_models(judged, rng)
    champion = (judged.target + rng.normal(0, 0.1, len(judged.target))).astype(np.float32)
    tail = np.array([of_query[query] == "tail" for query, _, _ in rows])
    student = np.where(tail, -champion, champion).astype(np.float32)
    systems |= {"student": System(student, np.clip(student, 0, 1)), "champion": System(champion)}
    metrics, by_query = compare_systems(judged, systems, FAST)
    return judged, systems, metrics, by_query


def rows_of(metrics, column):
    return [row for row in metrics["slices"]["rows"] if row["column"] == column]


def test_the_slices_of_a_column_make_up_the_whole(measured):
    judged, systems, metrics, _ = measured
    result = metrics["slices"]
    assert (result["min_queries"], set(result)) == (5, {"min_queries", "family", "rows", "left_out"})
    json.dumps(result, allow_nan=False)
    for column in ("stratum", "query_words"):
        rows = rows_of(metrics, column)
        left_out = [entry for entry in result["left_out"] if entry["column"] == column]
        assert sum(entry["queries"] for entry in [*rows, *left_out]) == len(judged.ranked)
    rows = rows_of(metrics, "stratum")
    assert [row["value"] for row in rows] == ["head", "tail", "torso"]
    assert sum(row["pairs"] for row in rows) == metrics["protocol"]["ranked_pairs"]
    queries = np.array([row["queries"] for row in rows])
    for name in systems:
        for metric in slices.METRICS:
            values = np.array([row["systems"][name][metric] for row in rows])
            assert (queries * values).sum() / queries.sum() == pytest.approx(metrics["systems"][name][metric])


def test_a_slice_that_became_worse_is_detected_and_the_others_are_not(measured):
    _, _, metrics, _ = measured
    worse = {
        (row["value"], comparison["metric"])
        for row in metrics["slices"]["rows"]
        for comparison in row["comparisons"]
        if row["column"] == "stratum"
        and comparison["baseline"] == "champion"
        and comparison["delta"] < 0
        and comparison["p_holm"] < 0.05
    }
    assert worse == {("tail", "ndcg_at_10"), ("tail", "pair_accuracy")}
    head = next(row for row in rows_of(metrics, "stratum") if row["value"] == "head")
    champion_rows = [comparison for comparison in head["comparisons"] if comparison["baseline"] == "champion"]
    assert [(comparison["delta"], comparison["p_value"], comparison["p_holm"]) for comparison in champion_rows] == [
        (0, 1, 1)
    ] * 2


def test_the_locale_that_became_worse_is_detected(measured, tmp_path):
    judged, systems, _, _ = measured
    spanish = judged.query < np.median(judged.query)
    locales = pa.array(np.where(spanish, "es", "us").tolist(), mask=judged.query == judged.ranked[0])
    index = judged.table.column_names.index("locale")
    localized = Judged.read(judgements(tmp_path, judged.table.set_column(index, "locale", locales)))
    champion = systems["champion"].score
    student = System(np.where(spanish, -champion, champion))
    config = FAST.model_copy(update={"slices": ("locale",)})
    metrics, _ = compare_systems(localized, {"student": student, "champion": systems["champion"]}, config)
    result = metrics["slices"]
    assert {
        row["value"]: [comparison["p_holm"] < 0.05 for comparison in row["comparisons"]] for row in result["rows"]
    } == {
        "es": [True, True],
        "us": [False, False],
    }
    assert sum(row["queries"] for row in result["rows"]) == len(localized.ranked) - 1
    assert result["left_out"] == [{"column": "locale", "value": slices.NO_VALUE, "queries": 1}]


def test_p_values_are_adjusted_over_all_slices_of_one_baseline_and_metric(measured):
    _, _, metrics, _ = measured
    rows = metrics["slices"]["rows"]
    assert {(comparison["baseline"], comparison["metric"]) for row in rows for comparison in row["comparisons"]} == {
        (baseline, metric) for baseline in ("bm25", "champion") for metric in slices.METRICS
    }
    for baseline in ("bm25", "champion"):
        for metric in slices.METRICS:
            family = [
                comparison
                for row in rows
                for comparison in row["comparisons"]
                if (comparison["baseline"], comparison["metric"]) == (baseline, metric)
            ]
            assert len(family) == len(rows) > 4
            expected = significance.holm(np.array([comparison["p_value"] for comparison in family]))
            assert [comparison["p_holm"] for comparison in family] == expected.tolist()
            assert all(
                comparison["p_holm"] >= comparison["p_value"]
                and comparison["ci_low"] <= comparison["delta"] <= comparison["ci_high"]
                for comparison in family
            )


def test_slices_that_are_too_small_and_queries_without_a_value_are_named_not_measured(measured):
    judged, systems, metrics, _ = measured
    ranked = len(judged.ranked)
    drills = rows_of(metrics, "product_type")
    assert [row["value"] for row in drills] == ["drill"]
    none = {"column": "product_type", "value": slices.NO_VALUE, "queries": ranked - drills[0]["queries"]}
    assert none in metrics["slices"]["left_out"]
    too_small, _ = compare_systems(judged, systems, FAST.model_copy(update={"slice_queries": ranked}))
    assert [row["column"] for row in too_small["slices"]["rows"]] == ["query_words"], "all queries have as many words"
    assert {entry["value"] for entry in too_small["slices"]["left_out"]} == {
        "head",
        "tail",
        "torso",
        "drill",
        slices.NO_VALUE,
    }


def test_many_slices_that_are_too_small_become_one_line():
    names, counts = np.array([f"type {number:02d}" for number in range(30)]), np.arange(30) + 1
    result = slices._too_small("product_type", names, counts, 0, 29)
    assert len(result) == slices.MAX_TOO_SMALL + 1 and result[0] == {
        "column": "product_type",
        "value": "type 27",
        "queries": 28,
    }
    assert result[-1] == {"column": "product_type", "value": "(8 more)", "queries": sum(range(1, 9))}


def test_the_most_frequent_value_of_the_relevant_products_counts(tmp_path):
    rows = [
        *[
            ("two drills", product, target)
            for product, target in (("a", 1.0), ("b", 1.0), ("c", 0.5), ("d", 0), ("e", 0))
        ],
        *[("a tie", product, 1.0 if product < "c" else 0.0) for product in "abc"],
        *[("none relevant", product, target) for product, target in (("a", 0.25), ("b", 0.0), ("c", 0.0))],
        *[("no value", product, target) for product, target in (("a", 1.0), ("b", 0.0))],
    ]
    kinds = ["drill", "drill", "saw", "lamp", "lamp", "saw", "lamp", None, "bulb", "lamp", "lamp", None, "lamp"]
    judged = Judged.read(judgements(tmp_path, judged_table([(q, p, float(t)) for q, p, t in rows], product_type=kinds)))
    result = dict(zip(judged.query_ids[judged.ranked], slices.values(judged, "product_type"), strict=True))
    assert result == {"two drills": "drill", "a tie": "lamp", "none relevant": "lamp", "no value": None}
    assert set(slices.values(judged, "raters")) == {"3"}
    assert set(slices.values(judged, "locale")) == {None}


@pytest.mark.parametrize(
    ("column", "query", "value"),
    [
        ("query_words", "sofa", "1"),
        ("query_words", "5/8 in. x 4ft", "5+"),
        ("query_words", "a b c d", "4"),
        ("query_characters", "lamp", "1-10"),
        ("query_characters", "x" * 11, "11-20"),
        ("query_characters", "x" * 40, "31-40"),
        ("query_characters", "x" * 41, "41+"),
        ("script", "красный диван", "cyrillic"),
        ("script", "12 34", "none"),
    ],
)
def test_values_that_are_made_of_the_query(tmp_path, column, query, value):
    table = judged_table([("q", "a", 0.0), ("q", "b", 1.0)], query=[query] * 2)
    assert slices.values(Judged.read(judgements(tmp_path, table)), column).tolist() == [value]


def test_columns_that_cannot_be_sliced_by_are_refused_by_name(measured):
    judged, systems, _, _ = measured
    for name in ("hue", "title", "query_id"):
        with pytest.raises(
            InputError, match=rf"evaluate\.slices: '{name}' is not a column .* expected some of"
        ) as refused:
            compare_systems(judged, systems, FAST.model_copy(update={"slices": (name,)}))
        assert all(column in str(refused.value) for column in slices.columns())
    with pytest.raises(ValidationError, match=re.escape("'stratum' is named more than once")):
        Evaluate(slices=("stratum", "script", "stratum"))


def test_no_slices_are_asked_for(measured):
    judged, systems, _, _ = measured
    metrics, _ = compare_systems(judged, systems, FAST.model_copy(update={"slices": ()}))
    assert metrics["slices"]["rows"] == metrics["slices"]["left_out"] == []


def test_one_worse_slice_among_many_is_detected(tmp_path):
    slice_count, queries = 60, 20
    rows = [(f"q{number:04}", f"p{index}", float(index)) for number in range(slice_count * queries) for index in (0, 1)]
    types = [f"type {int(query[1:]) // queries:03}" for query, _, _ in rows]
    judged = Judged.read(judgements(tmp_path, judged_table(rows, product_type=types)))
    champion = judged.target.astype(np.float32)
    broken = np.array(judged.table["product_type"].to_pylist()) == "type 007"
    systems = {"student": System(np.where(broken, -champion, champion)), "champion": System(champion)}
    config = FAST.model_copy(update={"slices": ("product_type",)})
    metrics, _ = compare_systems(judged, systems, config, [("student", "champion")])
    worse = [
        row["value"]
        for row in metrics["slices"]["rows"]
        for comparison in row["comparisons"]
        if comparison["metric"] == "ndcg_at_10" and comparison["delta"] < 0 and comparison["p_holm"] < 0.05
    ]
    assert len(metrics["slices"]["rows"]) == slice_count and worse == ["type 007"]
