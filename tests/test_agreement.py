"""What is said of two systems side by side: agreement, spread, and the queries that tell them apart."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from distilrank.core.errors import InputError
from distilrank.evaluation import metrics
from distilrank.evaluation.agreement import agreement, distribution
from distilrank.evaluation.evaluate import compare_systems
from distilrank.evaluation.examples import extremes
from distilrank.evaluation.judged import Judged, System
from tests.test_relevance import SMALL, judged_table, judgements, some_rows, with_models


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    rows = [*some_rows(40, np.random.default_rng(1)), ("single", "a", 1.0)]
    return Judged.read(judgements(tmp_path_factory.mktemp("judged"), judged_table(rows)))


SCORES = st.lists(
    st.lists(st.tuples(*[st.sampled_from([-1.0, 0.0, 0.5, 2.0])] * 2), min_size=1, max_size=6), min_size=1, max_size=4
)


@given(SCORES)
def test_kendall_is_that_of_scipy(lists):
    query = np.repeat(np.arange(len(lists)), [len(rows) for rows in lists])
    first, second = np.array([row for rows in lists for row in rows]).T
    shuffled = np.random.default_rng(len(query)).permutation(len(query))
    found = metrics.kendall(query[shuffled], first[shuffled], second[shuffled])
    for number, value in enumerate(found):
        inside = query == number
        expected = stats.kendalltau(first[inside], second[inside]).statistic if inside.sum() > 1 else np.nan
        assert value == pytest.approx(expected, nan_ok=True)


def test_agreement_is_that_of_scipy(judged):
    rng = np.random.default_rng(2)
    teacher = System(rng.normal(0, 1, len(judged.query)).astype(np.float32))
    score = (teacher.score + rng.normal(0, 1, len(judged.query))).round(1).astype(np.float32)
    student = System(score, rng.random(len(score)).astype(np.float32))
    found = agreement(judged, teacher, student)
    assert found["pairs"] == len(judged.query)
    assert found["pearson"] == pytest.approx(stats.pearsonr(teacher.score, score).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(teacher.score, score).statistic)
    probability = 1 / (1 + np.exp(-teacher.score.astype(float)))
    assert found["mean_difference"] == pytest.approx(np.abs(probability - student.probability).mean())
    same = []
    for query in range(len(judged.query_ids)):
        rows = np.flatnonzero(judged.query == query)
        if len(rows) > 1:
            first = [max(rows, key=lambda row: (one.score[row], judged.tie[row])) for one in (teacher, student)]
            same.append(first[0] == first[1])
    assert len(same) == 40 and found["top_1"] == pytest.approx(np.mean(same))


def test_a_system_agrees_with_itself_and_not_with_its_opposite(judged):
    score = np.random.default_rng(3).permutation(len(judged.query)).astype(np.float32)
    same = agreement(judged, System(score), System(score))
    assert [same[key] for key in ("pearson", "spearman", "kendall", "top_1")] == pytest.approx([1] * 4)
    assert same["mean_difference"] == 0
    turned = agreement(judged, System(score), System(-score))
    assert [turned[key] for key in ("pearson", "spearman", "kendall")] == pytest.approx([-1] * 3)
    flat = agreement(judged, System(score), System(np.zeros_like(score)))
    assert flat["pearson"] is flat["spearman"] is flat["kendall"] is None
    json.dumps(flat, allow_nan=False)


def test_a_collapse_shows_in_the_distribution(judged):
    score = np.random.default_rng(4).normal(0, 2, len(judged.query)).astype(np.float32)
    spread = distribution(judged, System(score))
    assert spread["distinct"] == 1 and spread["standard_deviation"] == pytest.approx(score.std(), rel=1e-5)
    within = [
        score[judged.query == query].std()
        for query in range(len(judged.query_ids))
        if (judged.query == query).sum() > 1
    ]
    assert spread["within_query"] == pytest.approx(np.mean(within), rel=1e-5)
    by_query = distribution(judged, System(judged.query.astype(np.float32)))
    assert by_query["within_query"] == 0 < by_query["standard_deviation"]
    flat = distribution(judged, System(np.zeros_like(score)))
    assert (flat["standard_deviation"], flat["within_query"], flat["distinct"]) == (0, 0, 1 / len(score))


def test_examples_are_the_largest_gains_and_losses_as_texts(judged):
    systems = with_models(judged, np.random.default_rng(5))
    results, by_query = compare_systems(judged, systems, SMALL)
    found = results["examples"]
    assert (found["baseline"], found["metric"]) == ("bm25", "ndcg_at_10")
    deltas = by_query["student"]["ndcg_at_10"] - by_query["bm25"]["ndcg_at_10"]
    assert [one["delta"] for one in found["best"]] == sorted(deltas, reverse=True)[:5]
    assert [one["delta"] for one in found["worst"]] == [delta for delta in sorted(deltas)[:5] if delta < 0]
    texts = judged.table.to_pylist()
    for one in [*found["best"], *found["worst"]]:
        rows = [row for row in range(len(texts)) if texts[row]["query"] == one["query"]]
        for role, name in (("student", "student"), ("baseline", "bm25")):
            order = sorted(rows, key=lambda row: (-systems[name].score[row], -judged.tie[row]))[:3]
            assert one[role] == [
                {
                    "title": texts[row]["title"],
                    "target": pytest.approx(texts[row]["target"], abs=1e-6),
                    "score": float(systems[name].score[row]),
                }
                for row in order
            ]


def test_a_system_against_itself_has_no_example(judged):
    systems = with_models(judged, np.random.default_rng(6))
    _, by_query = compare_systems(judged, systems, SMALL)
    found = extremes(judged, systems, by_query, "student", "student")
    assert found["best"] == found["worst"] == []


# The test set -----------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_judgements_whatever_their_order_or_titles(tmp_path):
    rows = some_rows(10, np.random.default_rng(7))
    one = Judged.read(judgements(tmp_path / "one", judged_table(rows)))
    turned = judged_table(rows[::-1], title=["another"] * len(rows))
    assert Judged.read(judgements(tmp_path / "two", turned)).digest == one.digest
    changed = [(query, product, target if at else 0.25) for at, (query, product, target) in enumerate(rows)]
    assert Judged.read(judgements(tmp_path / "three", judged_table(changed))).digest != one.digest
    systems = with_models(one, np.random.default_rng(8))
    found = compare_systems(one, systems, SMALL)[0]["test_set"]
    expected = {"digest": one.digest, "queries": 10, "pairs": len(rows), "judgements": len(rows), "draw": 0}
    assert found == expected | {"sketch": found["sketch"]} and len(one.digest) == 64


def test_judgements_of_all_splits_are_counted(tmp_path):
    rows = some_rows(10, np.random.default_rng(9))
    for split in ("train", "dev"):
        judgements(tmp_path / split, judged_table(rows))
        (tmp_path / split / "test.parquet").rename(tmp_path / f"{split}.parquet")
    whole = Judged.read(judgements(tmp_path, judged_table(rows)))
    assert (whole.judgements, len(whole.query)) == (3 * len(rows), len(rows))
    assert Judged.read(tmp_path / "dev.parquet").digest == whole.digest


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("q", "a", 0.5), ("q", "b", 0.5), ("r", "a", 0.5)], "judgements without variance: all 3 gain 0.5"),
        ([("q", "a", 0.0), ("r", "b", 1.0)], r"none of 2 queries .* \(each has a single product\)"),
        ([("q", "a", 1.0)], r"none of 1 queries .* \(each has a single product\)"),
    ],
)
def test_judgements_without_variance_are_one_clear_line(tmp_path, rows, message):
    with pytest.raises(InputError, match=message) as refusal:
        Judged.read(judgements(tmp_path, judged_table(rows)))
    assert "test.parquet" in str(refusal.value) and "\n" not in str(refusal.value)
