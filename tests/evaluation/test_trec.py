"""TREC files, with ir-measures as the referee."""

from __future__ import annotations

from urllib.parse import unquote

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrank.evaluation import trec
from distilrank.evaluation.judged import Judged, System
from distilrank.evaluation.outputs import write_trec
from distilrank.evaluation.systems import compare_systems, score_baselines
from tests.judged_samples import SMALL, judged_table, judgements

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
        **score_baselines(judged, SMALL),
        "tied": System(rng.integers(-1, 2, len(rows)).astype(np.float32)),
        "close": System(np.nextafter(np.float32(1), np.where(rng.random(len(rows)) < 0.5, 2, 1), dtype=np.float32)),
    }
    results, by_query = compare_systems(judged, systems, SMALL)
    write_trec(folder, judged, systems)

    qrels = list(ir_measures.read_trec_qrels(str(folder / "qrels.txt")))
    assert len({row.query_id for row in qrels}) == results["protocol"]["ranked_queries"]
    references = {
        "ndcg_at_5": ir_measures.nDCG @ 5,
        "ndcg_at_10": ir_measures.nDCG @ 10,
        "mrr": ir_measures.RR(rel=results["protocol"]["relevant_grade"]),
    }
    for name in systems:
        run = list(ir_measures.read_trec_run(str(folder / "runs" / f"{name}.run")))
        assert len(run) == len(qrels)
        expected = ir_measures.calc_aggregate(list(references.values()), qrels, run)
        for metric, reference in references.items():
            assert results["systems"][name][metric] == pytest.approx(expected[reference], abs=1e-9), (name, metric)
            assert by_query[name][metric].mean() == results["systems"][name][metric]


def test_run_files_rank_from_one_in_trec_eval_order(tmp_path):
    judged = Judged.read(
        judgements(tmp_path / "j", judged_table([("q 1", "a", 0), ("q 1", "c", 0.5), ("q 1", "b", 1)]))
    )
    write_trec(tmp_path, judged, {"flat": System(np.zeros(3, np.float32))})
    lines = [line.split() for line in (tmp_path / "runs" / "flat.run").read_text().splitlines()]
    assert {(line[0], line[1], line[5]) for line in lines} == {("q%201", "Q0", "flat")}
    assert {line[2]: line[3] for line in lines} == {"c": "1", "b": "2", "a": "3"}
    assert (tmp_path / "qrels.txt").read_text() == "q%201 0 a 0\nq%201 0 c 50\nq%201 0 b 100\n"
