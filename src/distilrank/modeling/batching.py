"""Batches by token budget; units of similar length share a batch, which keeps padding low."""

from __future__ import annotations

import itertools

import numpy as np

CHUNK = 64  # batches whose units are sorted together in training: a trade-off of padding and randomness


def pack_by_tokens(order: np.ndarray, lengths: np.ndarray, rows: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut `order` into batches of at most `budget` tokens, padding included.

    Args:
        order: indices of units (pairs, or whole queries), shape (n,).
        lengths: tokens of the longest row of each unit.
        rows: rows of each unit.
        budget: most tokens of a batch; a unit beyond it makes a separate batch.
    """
    batches: list[np.ndarray] = []
    start = longest = count = 0
    for position, unit in enumerate(order):
        longest_then, count_then = max(longest, int(lengths[unit])), count + int(rows[unit])
        if position > start and longest_then * count_then > budget:
            batches.append(order[start:position])
            start, longest_then, count_then = position, int(lengths[unit]), int(rows[unit])
        longest, count = longest_then, count_then
    if len(order):
        batches.append(order[start:])
    return batches


def sequential_batches(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut `order` into batches of at most `budget` tokens without padding; a longer unit makes a separate batch.

    Args:
        order: indices of units, shape (n,).
        lengths: tokens of each unit.
        budget: most tokens of a batch.

    Example:
        >>> [batch.tolist() for batch in sequential_batches(np.arange(3), np.array([2, 3, 4]), budget=5)]
        [[0, 1], [2]]
    """
    ends = np.cumsum(lengths[order])
    cuts = [0]
    while cuts[-1] < len(order):
        done = ends[cuts[-1] - 1] if cuts[-1] else 0
        cuts.append(max(int(np.searchsorted(ends, done + budget, side="right")), cuts[-1] + 1))
    return [order[start:end] for start, end in itertools.pairwise(cuts)]


def random_batches(
    lengths: np.ndarray, budget: int, rng: np.random.Generator, groups: np.ndarray | None = None
) -> list[np.ndarray]:
    """Batches of one epoch in random order, for models that need no padding.

    Args:
        lengths: tokens of each row, shape (n,).
        budget: most tokens of a batch.
        groups: rows with the same number stay together, shape (n,); None: each row is drawn separately.
    """
    order = rng.permutation(len(lengths))
    if groups is not None and len(order):
        order = order[np.argsort(rng.permutation(groups.max() + 1)[groups[order]], kind="stable")]
    return sequential_batches(order, lengths, budget)


def by_length(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Batches of single rows, longest first (so that a batch that does not fit into memory fails early)."""
    order = np.argsort(-lengths, kind="stable")
    return pack_by_tokens(order, lengths, np.ones_like(lengths), budget)


def shuffled_batches(lengths: np.ndarray, rows: np.ndarray, budget: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Batches for one epoch in random order: shuffled, then sorted by length within chunks of CHUNK batches."""
    order = rng.permutation(len(lengths))
    if not len(order):
        return []
    mean_tokens = max(float((lengths * rows).mean()), 1.0)
    units = max(int(CHUNK * budget / mean_tokens), 1)
    chunks = [order[start : start + units] for start in range(0, len(order), units)]
    batches = [
        batch
        for chunk in chunks
        for batch in pack_by_tokens(chunk[np.argsort(lengths[chunk], kind="stable")], lengths, rows, budget)
    ]
    return [batches[index] for index in rng.permutation(len(batches))]
