"""Distances of columns, and the noise that chance single_alarms produces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from distilrank.drift import columns


def by_queries(queries: np.ndarray, each: int, value: np.ndarray) -> dict[str, np.ndarray]:
    """`each` rows of every query, all with the query's value."""
    return {"query": np.repeat(queries, each), "value": np.repeat(value, each).astype(float)}


def one_column(reference: dict[str, np.ndarray], current: dict[str, np.ndarray]) -> columns.Column:
    limits = columns.Limits(0.1, 0.1)
    samples = (reference["value"], current["value"]), (reference["query"], current["query"])
    values, queries = samples
    return columns.numeric_column(columns.ColumnSpec("value", "query", limits, queries), values)


def test_equal_distances_are_within_chance() -> None:
    """Two queries that change places, or both stay, are as far apart as before: half of all flips."""
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=(2, 50))
        samples = ({"query": np.full(50, side), "value": value} for side, value in enumerate(values))
        column = one_column(*samples)
        assert columns.noise_bounds([column], 0.05)["value"] > columns.distance(column)


def test_rows_of_one_query_are_not_independent_evidence() -> None:
    rng = np.random.default_rng(1)
    value = rng.normal(size=80)
    few = one_column(by_queries(np.arange(40), 50, value[:40]), by_queries(np.arange(40, 80), 50, value[40:]))
    assert columns.distance(few) > 0.1  # so that the effect single_alarms would call it drift
    assert columns.noise_bounds([few], 0.05)["value"] > columns.distance(few)
    rows = by_queries(np.arange(2000), 1, few.reference), by_queries(np.arange(2000, 4000), 1, few.current)
    many = one_column(*rows)
    assert columns.noise_bounds([many], 0.05)["value"] < 0.1 < columns.distance(many)


def test_a_query_as_frequent_in_both_samples_is_no_noise() -> None:
    rng = np.random.default_rng(2)
    value = rng.normal(size=40)
    column = one_column(by_queries(np.arange(40), 50, value), by_queries(np.arange(40), 50, value))
    assert columns.distance(column) == 0 and columns.noise_bounds([column], 0.05)["value"] == pytest.approx(0, abs=1e-6)


def test_false_alarms_of_whole_queries_keep_to_the_chance() -> None:
    """Three columns of 60 queries with 1 to 40 rows; the wider bound of all three holds for any of them."""
    rng = np.random.default_rng(3)
    alarms, single_alarms = 0, 0
    for _ in range(60):
        queries = [np.repeat(np.arange(60) + 60 * side, rng.integers(1, 40, 60)) for side in range(2)]
        sample_columns = []
        for name in "abc":
            values = rng.normal(size=120)
            samples = ({"query": query, "value": values[query]} for query in queries)
            sample_columns.append(replace(one_column(*samples), name=name))
        bounds = columns.noise_bounds(sample_columns, 0.1)
        single_bounds = {column.name: columns.noise_bounds([column], 0.1)[column.name] for column in sample_columns}
        assert all(bounds[name] > bound for name, bound in single_bounds.items())
        alarms += any(columns.distance(column) >= bounds[column.name] for column in sample_columns)
        single_alarms += columns.distance(sample_columns[0]) >= single_bounds["a"]
    assert alarms <= 14 and single_alarms >= 1  # of 6 expected, 14 are reached with probability 0.001


def test_a_new_category_of_many_queries_does_not_drown_in_a_frequent_one() -> None:
    rng = np.random.default_rng(4)
    counts = np.concatenate([[300], np.full(300, 3)])
    values = np.array(["a", "b", "c"], dtype=object)[rng.integers(0, 3, 301)]
    queries = np.repeat(np.arange(301), counts)
    before = np.repeat(values, counts)
    values[200:] = "new"
    after = np.repeat(values, counts)
    spec = columns.ColumnSpec("type", "product", columns.Limits(0.1, 0.1), (queries, queries + 500))
    column = columns.categorical_column(spec, (pa.chunked_array([before]), pa.chunked_array([after])))
    assert columns.noise_bounds([column], 0.05)["type"] < columns.distance(column)
