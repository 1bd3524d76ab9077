"""Exact nearest neighbors beside brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distilrank.modeling import neighbors
from distilrank.modeling.neighbors import Neighbors


def brute_force(vectors: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    units = [
        matrix.astype(np.float64) / np.linalg.norm(matrix.astype(np.float64), axis=1)[:, None]
        for matrix in (vectors, queries)
    ]
    scores = units[1] @ units[0].T
    places = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return places, np.take_along_axis(scores, places, axis=1)


@pytest.mark.parametrize("block", [64, 5000, 1 << 24])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_neighbors_are_those_of_brute_force(
    block: int, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "BLOCK", block)
    rng = np.random.default_rng(0)
    vectors = np.memmap(tmp_path / "vectors", kind, "w+", shape=(500, 16))
    vectors[:] = rng.standard_normal(vectors.shape)
    queries = rng.standard_normal((40, 16)).astype(np.float32)
    places, scores = Neighbors(vectors).top(queries, 10)
    expected_places, expected_scores = brute_force(vectors, queries, 10)
    assert places.dtype == np.int64 and scores.dtype == np.float32
    np.testing.assert_array_equal(places, expected_places)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_ties_go_to_the_lowest_index_however_the_work_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 30, 1000)  # each of 30 vectors some 33 times
    vectors = rng.standard_normal((30, 24)).astype(np.float32)
    queries = rng.standard_normal((20, 24)).astype(np.float32)
    ranks = np.argsort(brute_force(vectors, queries, 30)[0], axis=1)  # of each of the 30, by query
    expected = np.argsort(ranks[:, kind], axis=1, kind="stable")[:, :50]
    score_bytes = []
    for block in (1 << 24, 24 * 7, 24 * 100, 24 * 333):
        monkeypatch.setattr(neighbors, "BLOCK", block)
        for step in (1, 20):
            parts = [Neighbors(vectors[kind]).top(queries[start : start + step], 50) for start in range(0, 20, step)]
            places, scores = (np.concatenate(part) for part in zip(*parts))
            np.testing.assert_array_equal(places, expected)
            score_bytes.append(scores.tobytes())
    assert len(set(score_bytes)) == 1  # to the last bit


def test_search_at_its_edges() -> None:
    vectors = np.array([[0, 0], [3, 0], [0, -2]], np.float32)
    places, scores = Neighbors(vectors).top(np.array([[5, 0], [0, 0]], np.float32), 9)
    assert places.tolist() == [[1, 0, 2], [0, 1, 2]] and scores.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert Neighbors(vectors).top(vectors, 0)[0].shape == (3, 0)
    assert Neighbors(vectors).top(vectors[:0], 2)[1].shape == (0, 2)
    assert Neighbors(vectors[:0]).top(vectors, 2)[0].shape == (3, 0)
