"""Comparison of two samples of traffic: what counts as drift, and what raises the alarm."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from distilrank.config import Drift
from distilrank.drift import columns
from distilrank.drift.compare import compare_windows
from tests.traffic_samples import TYPES, columns_by_name, traffic


def compare(reference: pa.Table, current: pa.Table, **settings: object) -> dict:
    """The entry of drift.json, without pages; scores from one distribution."""
    samples = (
        table.append_column("score", pa.array(np.random.default_rng(5 + seed).beta(2, 3, table.num_rows)))
        for seed, table in enumerate((reference, current))
    )
    return compare_windows(Drift(**settings), *samples, None).part


def test_small_samples_do_not_drift_by_chance() -> None:
    part = compare(traffic(150, 1), traffic(150, 2))
    above_effect = [column for column in part["columns"] if (column["value"] or 0) > Drift().numeric]
    assert above_effect and all(column["threshold"] == column["noise"] > column["value"] for column in above_effect)
    assert (part["share"], part["alarm"]) == (0, False)
    assert compare(traffic(150, 1), traffic(150, 2), chance=1)["share"] > 0


def test_large_samples_do_not_make_drift_of_a_trifle() -> None:
    reference = traffic(8000, 1)
    shifted = reference.set_column(
        reference.column_names.index("bm25"), "bm25", pa.array(np.asarray(reference["bm25"]) + 0.4)
    )
    column = columns_by_name(compare(reference, shifted))["bm25"]
    assert column["noise"] < column["value"] < column["threshold"] == Drift().numeric
    assert not column["drifted"]


def test_only_the_configured_groups_raise_the_alarm() -> None:
    clicks = traffic(1500, 2, clicked=np.random.default_rng(1).random(1500) < 0.4)
    part = compare(traffic(1500, 1), clicks)
    assert columns_by_name(part)["clicked"]["drifted"] and (part["alarm"], part["why"]) == (False, [])
    part = compare(traffic(1500, 1), clicks, alarm=("clicks",))
    assert (part["alarm"], part["drifted"], part["why"]) == (True, True, ["clicked"])
    assert compare(traffic(1500, 1), clicks, alarm=(), share=0.0)["alarm"]


@pytest.mark.parametrize("queries", [1, 2, 5, 6])
def test_a_handful_of_queries_is_no_evidence(queries: int) -> None:
    """Two samples of one period without common queries: any alarm is false."""
    rng = np.random.default_rng(6)
    alarms = 0
    for seed in range(30):
        samples = []
        for side in "ab":
            query = np.sort(np.arange(40) % queries)
            names = [f"{side}{number}" for number in query]
            texts = [TYPES[number] for number in rng.integers(0, len(TYPES), queries)[query]]
            words = rng.normal(9, 3, queries).round()[query]
            samples.append(traffic(40, seed, query_id=names, query=names, product_type=texts, title_words=words))
        part = compare(*samples)
        alarms += part["alarm"]
        assert ("none counts" in part["note"]) == (queries < columns.MIN_QUERIES)
    assert (
        alarms == 0 if queries < columns.MIN_QUERIES else alarms <= 6
    )  # of 1.5 expected, 6 are reached with p < 0.004
