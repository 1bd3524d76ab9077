"""The queries on which two systems differ most."""

from __future__ import annotations

import numpy as np
import pytest

from distilrank.evaluation.examples import extremes
from distilrank.evaluation.judged import Judged
from distilrank.evaluation.systems import compare_systems
from tests.judged_samples import SMALL, judged_table, judgements, some_rows, with_models


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    rows = [*some_rows(40, np.random.default_rng(1)), ("single", "a", 1.0)]
    return Judged.read(judgements(tmp_path_factory.mktemp("judged"), judged_table(rows)))


def test_examples_are_the_largest_gains_and_losses_as_texts(judged):
    systems = with_models(judged, np.random.default_rng(5))
    results, by_query = compare_systems(judged, systems, SMALL)
    result = results["examples"]
    assert (result["baseline"], result["metric"]) == ("bm25", "ndcg_at_10")
    deltas = by_query["student"]["ndcg_at_10"] - by_query["bm25"]["ndcg_at_10"]
    assert [example["delta"] for example in result["best"]] == sorted(deltas, reverse=True)[:5]
    assert [example["delta"] for example in result["worst"]] == [delta for delta in sorted(deltas)[:5] if delta < 0]
    texts = judged.table.to_pylist()
    for example in [*result["best"], *result["worst"]]:
        rows = [row for row in range(len(texts)) if texts[row]["query"] == example["query"]]
        for role, name in (("student", "student"), ("baseline", "bm25")):
            order = sorted(rows, key=lambda row: (-systems[name].score[row], -judged.tie[row]))[:3]
            assert example[role] == [
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
    result = extremes(judged, systems, by_query, "student", "student")
    assert result["best"] == result["worst"] == []
