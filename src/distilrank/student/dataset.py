"""Training lists of the student, one per query, labeled by the teacher or judged by people.

Token ids are memory-mapped, so labels may be larger than memory. They are read once, chunk by chunk; about 30 bytes a
pair stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from distilrank.modeling import batching
from distilrank.modeling.encoding import Tokens


class Chunk(NamedTuple):
    """Some rows of a table, those of a query adjacent, with their targets and weights."""

    query_ids: list[str]
    queries: list[str]
    tokens: Tokens
    targets: np.ndarray
    """Shape (rows,)."""
    weights: np.ndarray
    """Shape (rows,)."""
    judged: bool
    """Whether people judged these rows; otherwise the teacher labeled them."""

    @classmethod
    def from_table(
        cls, table: pa.Table, tokens: Tokens, targets: np.ndarray, weights: np.ndarray, *, judged: bool
    ) -> Chunk:
        """A chunk of the rows of `table`, which has the columns `query_id` and `query`."""
        query_ids, queries = (table.column(name).to_pylist() for name in ("query_id", "query"))
        return cls(query_ids, queries, tokens, targets, weights, judged)


class ListwiseDataset:
    """Lists of products, one per query; a query that is both labeled and judged makes two lists.

    Attributes:
        tokens: tokens of all pairs; its `queries` are list indices.
        targets: float32, shape (pairs,).
        weights: float32, shape (pairs,).
        starts: index of the first pair of each list, and the end of the last list: int64, shape (lists + 1,).
        is_judged: whether people judged each list, bool, shape (lists,).
        queries: text of each list's query, for messages.

    Example:
        >>> import tempfile
        >>> chunk = Chunk(
        ...     ["q1", "q1"], ["sofa", "sofa"], Tokens.of(["q1", "q1"], [[5, 6], [5, 7, 8]]),
        ...     np.array([1.0, 0.0]), np.ones(2), judged=False,
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dataset = ListwiseDataset([chunk], Path(folder))
        ...     len(dataset), dataset.sizes.tolist(), dataset.rows(np.array([0])).tolist()
        (1, [2], [0, 1])
    """

    def __init__(self, chunks: Iterable[Chunk], folder: Path) -> None:
        """
        Args:
            chunks: of any size; a list may continue in the next chunk.
            folder: where token ids are written; it must outlive this object.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lengths, targets, weights, list_indices = [], [], [], []
        is_judged: list[bool] = []
        self.queries: list[str] = []
        previous = None
        with (folder / "ids").open("wb") as ids_file, (folder / "types").open("wb") as types_file:
            for chunk in chunks:
                chunk.tokens.ids.tofile(ids_file)
                if chunk.tokens.types is not None:
                    chunk.tokens.types.tofile(types_file)
                indices = np.empty(len(chunk.tokens), np.int64)
                for row, (query_id, query) in enumerate(zip(chunk.query_ids, chunk.queries, strict=True)):
                    if (query_id, chunk.judged) != previous:
                        previous = query_id, chunk.judged
                        self.queries.append(query)
                        is_judged.append(chunk.judged)
                    indices[row] = len(is_judged) - 1
                lengths.append(chunk.tokens.lengths)
                targets.append(chunk.targets.astype(np.float32))
                weights.append(chunk.weights.astype(np.float32))
                list_indices.append(indices)
        self.targets, self.weights = np.concatenate(targets), np.concatenate(weights)
        list_of_pair = np.concatenate(list_indices)
        self.is_judged = np.array(is_judged)
        self.starts = np.searchsorted(list_of_pair, np.arange(len(is_judged) + 1))
        self.tokens = Tokens(
            np.memmap(folder / "ids", np.int32, mode="r"),
            np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
            list_of_pair,
            np.memmap(folder / "types", np.int8, mode="r") if (folder / "types").stat().st_size else None,
        )

    def __len__(self) -> int:
        return len(self.is_judged)

    @property
    def sizes(self) -> np.ndarray:
        """Number of products of each list, shape (lists,)."""
        return np.diff(self.starts)

    def rows(self, lists: np.ndarray) -> np.ndarray:
        """Indices of the pairs of `lists`, list by list."""
        return np.concatenate([np.arange(self.starts[index], self.starts[index + 1]) for index in lists])

    def batches(self, budget: int, judged_share: float, packed: bool, rng: np.random.Generator) -> list[np.ndarray]:
        """The batches of one epoch in random order, each an array of list indices.

        Args:
            budget: most tokens of a batch; padding counts unless `packed`.
            judged_share: share of an epoch's lists that are judged, reached by repeating or omitting some; 0: each
                list once.
            packed: whether the model computes without padding.
            rng: source of the order.
        """
        sample = self._sample(judged_share, rng)
        if packed:
            tokens = np.diff(self.tokens.starts[self.starts])
            return batching.sequential_batches(rng.permutation(sample), tokens, budget)
        longest = np.maximum.reduceat(self.tokens.lengths, self.starts[:-1])
        batches = batching.shuffled_batches(longest[sample], self.sizes[sample], budget, rng)
        return [sample[batch] for batch in batches]

    def _sample(self, judged_share: float, rng: np.random.Generator) -> np.ndarray:
        """The lists of one epoch: all labeled ones, and judged ones by `judged_share`."""
        judged, labeled = np.flatnonzero(self.is_judged), np.flatnonzero(~self.is_judged)
        if not judged_share or not len(judged) or not len(labeled):
            return np.arange(len(self))
        count = max(round(judged_share / (1 - judged_share) * len(labeled)), 1)
        repeats, rest = divmod(count, len(judged))
        return np.concatenate([labeled, np.tile(judged, repeats), rng.choice(judged, rest, replace=False)])
