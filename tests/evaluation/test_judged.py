"""Reading judged pairs: what is checked, and how a test set is identified."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distilrank.core.errors import InputError
from distilrank.evaluation.judged import Judged
from distilrank.evaluation.systems import compare_systems, score_baselines
from tests.judged_samples import SMALL, judged_table, judgements, some_rows, with_models


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


def test_a_test_set_is_known_by_its_queries_not_by_its_targets(tmp_path):
    rows = [(f"q{query}", f"p{product}", product / 2) for query in range(30) for product in range(3)]
    judged = Judged.read(judgements(tmp_path / "one", judged_table(rows)))
    touched = [(*rows[0][:2], 0.00001), *rows[1:]]
    other = Judged.read(judgements(tmp_path / "two", judged_table(touched)))
    assert judged.digest != other.digest and judged.sketch == other.sketch
    # Queries that nothing ranks would thin the overlap out.
    padded = Judged.read(
        judgements(tmp_path / "three", judged_table([*rows, *((f"r{number}", "p", 0) for number in range(90))]))
    )
    assert padded.sketch == judged.sketch and len(padded.query_ids) == 120
    results, _ = compare_systems(judged, score_baselines(judged, SMALL), SMALL)
    assert results["test_set"]["sketch"] == judged.sketch
    assert (results["protocol"]["slices"], results["protocol"]["slice_queries"]) == (list(SMALL.slices), 20)


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


def test_the_digest_is_of_the_judgements_whatever_their_order_or_titles(tmp_path):
    rows = some_rows(10, np.random.default_rng(7))
    judged = Judged.read(judgements(tmp_path / "one", judged_table(rows)))
    turned = judged_table(rows[::-1], title=["another"] * len(rows))
    assert Judged.read(judgements(tmp_path / "two", turned)).digest == judged.digest
    changed = [(query, product, target if number else 0.25) for number, (query, product, target) in enumerate(rows)]
    assert Judged.read(judgements(tmp_path / "three", judged_table(changed))).digest != judged.digest
    systems = with_models(judged, np.random.default_rng(8))
    test_set = compare_systems(judged, systems, SMALL)[0]["test_set"]
    expected = {"digest": judged.digest, "queries": 10, "pairs": len(rows), "judgements": len(rows), "draw": 0}
    assert test_set == expected | {"sketch": test_set["sketch"]} and len(judged.digest) == 64


def test_judgements_of_all_splits_are_counted(tmp_path):
    rows = some_rows(10, np.random.default_rng(9))
    for split in ("train", "dev"):
        judgements(tmp_path / split, judged_table(rows))
        (tmp_path / split / "test.parquet").rename(tmp_path / f"{split}.parquet")
    whole = Judged.read(judgements(tmp_path, judged_table(rows)))
    assert (whole.judgements, len(whole.query)) == (3 * len(rows), len(rows))
    assert Judged.read(tmp_path / "dev.parquet").digest == whole.digest
