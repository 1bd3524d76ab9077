"""Exact nearest neighbors by cosine, in blocks that fit into memory."""

from __future__ import annotations

import numpy as np

BLOCK = 1 << 24  # numbers in a block of vectors and in a block of scores: 64 MiB each
SLACK = 1e-5  # above the error of a float32 dot product of unit vectors, about 1e-6 for a thousand dimensions


class Neighbors:
    """Exact search by cosine.

    Args:
        vectors: float32 or float16, shape (n, d), of any length; may be memory-mapped, a search reads it once.

    Example:
        >>> indices, cosines = Neighbors(np.array([[1, 0], [0, 2], [3, 3]])).top(np.array([[0, 1]]), 2)
        >>> indices.tolist(), cosines.round(2).tolist()
        ([[1, 2]], [[1.0, 0.7099999785423279]])
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def top(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest vectors to each query, best first; ties go to the lowest index.

        Scores are rounded from float64, so that neither they nor the order depend on the sizes of blocks. Memory beyond
        the result is bounded. A vector of zeros has the cosine 0.

        Args:
            queries: shape (q, d).
            count: most vectors per query.

        Returns:
            Their indices, int64, and cosines, float32, both of shape (q, min(count, n)).
        """
        total, dimension = self._vectors.shape
        count = min(count, total)
        indices = np.full((len(queries), count), -1, np.int64)
        scores = np.full((len(queries), count), -np.inf, np.float32)
        if not count:
            return indices, scores
        queries = normalize(queries)
        rows = max(min(BLOCK // dimension, total), 1)
        for start in range(0, total, rows):
            block = normalize(self._vectors[start : start + rows])
            for first in range(0, len(queries), BLOCK // rows):
                rough = queries[first : first + BLOCK // rows] @ block.T
                for row, approximate in enumerate(rough, first):
                    near = _candidates(approximate, count, scores[row, -1])
                    exact = (block[near].astype(np.float64) * queries[row]).sum(axis=1)
                    merged = np.concatenate([scores[row], exact.astype(np.float32)])
                    order = np.argsort(-merged, kind="stable")[:count]
                    indices[row] = np.concatenate([indices[row], start + near])[order]
                    scores[row] = merged[order]
        return indices, scores


def _candidates(approximate: np.ndarray, count: int, least: float) -> np.ndarray:
    """Indices that may be among the best `count` and above `least`, given the error of a float32 product."""
    near = np.flatnonzero(approximate > least - SLACK)
    if len(near) <= count:
        return near
    return near[approximate[near] >= np.partition(approximate[near], -count)[-count] - SLACK]


def normalize(vectors: np.ndarray) -> np.ndarray:
    """`vectors` as float32 of length 1, shape (n, d); zeros stay zeros."""
    vectors = vectors.astype(np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    return np.divide(vectors, lengths, out=vectors, where=lengths > 0)
