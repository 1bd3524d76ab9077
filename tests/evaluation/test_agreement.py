"""Agreement of two systems, and the distribution of scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from distilrank.evaluation.agreement import agreement, distribution
from distilrank.evaluation.judged import Judged, System
from tests.judged_samples import judged_table, judgements, some_rows


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    rows = [*some_rows(40, np.random.default_rng(1)), ("single", "a", 1.0)]
    return Judged.read(judgements(tmp_path_factory.mktemp("judged"), judged_table(rows)))


def test_agreement_is_that_of_scipy(judged):
    rng = np.random.default_rng(2)
    teacher = System(rng.normal(0, 1, len(judged.query)).astype(np.float32))
    score = (teacher.score + rng.normal(0, 1, len(judged.query))).round(1).astype(np.float32)
    student = System(score, rng.random(len(score)).astype(np.float32))
    result = agreement(judged, teacher, student)
    assert result["pairs"] == len(judged.query)
    assert result["pearson"] == pytest.approx(stats.pearsonr(teacher.score, score).statistic)
    assert result["spearman"] == pytest.approx(stats.spearmanr(teacher.score, score).statistic)
    probability = 1 / (1 + np.exp(-teacher.score.astype(float)))
    assert result["mean_difference"] == pytest.approx(np.abs(probability - student.probability).mean())
    same_first = []
    for query in range(len(judged.query_ids)):
        rows = np.flatnonzero(judged.query == query)
        if len(rows) > 1:
            first = [max(rows, key=lambda row: (system.score[row], judged.tie[row])) for system in (teacher, student)]
            same_first.append(first[0] == first[1])
    assert len(same_first) == 40 and result["top_1"] == pytest.approx(np.mean(same_first))


def test_a_system_agrees_with_itself_and_not_with_its_opposite(judged):
    score = np.random.default_rng(3).permutation(len(judged.query)).astype(np.float32)
    itself = agreement(judged, System(score), System(score))
    assert [itself[key] for key in ("pearson", "spearman", "kendall", "top_1")] == pytest.approx([1] * 4)
    assert itself["mean_difference"] == 0
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
