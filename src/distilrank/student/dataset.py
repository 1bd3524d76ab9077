"""What the student learns from: whole queries, teacher-labeled or human-judged, on disk as far as they are long.

Labels may be larger than memory. They are read once, a piece at a time; their tokens go to a file that is mapped, and
what stays in memory is some 30 bytes a pair.
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
    """Some rows of a table whose queries stand together, and what is to be learned of them."""

    query_id: list[str]
    query: list[str]
    tokens: Tokens
    target: np.ndarray
    """Shape (rows,)."""
    weight: np.ndarray
    """Shape (rows,)."""
    human: bool

    @classmethod
    def of(cls, table: pa.Table, tokens: Tokens, target: np.ndarray, weight: np.ndarray, human: bool) -> Chunk:
        """A piece from rows with `query_id` and `query`."""
        query_id, query = (table.column(name).to_pylist() for name in ("query_id", "query"))
        return cls(query_id, query, tokens, target, weight, human)


class ListwiseDataset:
    """Lists of products of one query each; a query that is both labeled and judged is two lists.

    Attributes:
        tokens: of all pairs; its `queries` are numbers of lists.
        target: float32, shape (pairs,).
        weight: float32, shape (pairs,).
        starts: first pair of each list, and the end of the last one: int64, shape (lists + 1,).
        human: whether people judged it, shape (lists,).
        queries: text of each list's query, for messages.
    """

    def __init__(self, pieces: Iterable[Chunk], folder: Path) -> None:
        """
        Args:
            pieces: in any sizes; a list may go on in the next piece.
            folder: for the tokens; it must outlive this object.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lengths, target, weight, number = [], [], [], []
        human: list[bool] = []
        self.queries: list[str] = []
        last = None
        with (folder / "ids").open("wb") as ids, (folder / "types").open("wb") as types:
            for piece in pieces:
                piece.tokens.ids.tofile(ids)
                if piece.tokens.types is not None:
                    piece.tokens.types.tofile(types)
                numbers = np.empty(len(piece.tokens), np.int64)
                for row, (key, text) in enumerate(zip(piece.query_id, piece.query, strict=True)):
                    if (key, piece.human) != last:
                        last = key, piece.human
                        self.queries.append(text)
                        human.append(piece.human)
                    numbers[row] = len(human) - 1
                lengths.append(piece.tokens.lengths)
                target.append(piece.target.astype(np.float32))
                weight.append(piece.weight.astype(np.float32))
                number.append(numbers)
        self.target, self.weight = np.concatenate(target), np.concatenate(weight)
        query = np.concatenate(number)
        self.human = np.array(human)
        self.starts = np.searchsorted(query, np.arange(len(human) + 1))
        begins = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        self.tokens = Tokens(
            np.memmap(folder / "ids", np.int32, mode="r"),
            begins,
            query,
            np.memmap(folder / "types", np.int8, mode="r") if (folder / "types").stat().st_size else None,
        )

    def __len__(self) -> int:
        return len(self.human)

    @property
    def sizes(self) -> np.ndarray:
        """Products of each list, shape (lists,)."""
        return np.diff(self.starts)

    def rows(self, lists: np.ndarray) -> np.ndarray:
        """The pairs of some lists, list by list."""
        return np.concatenate([np.arange(self.starts[one], self.starts[one + 1]) for one in lists])

    def batches(self, budget: int, human_share: float, packed: bool, rng: np.random.Generator) -> list[np.ndarray]:
        """The batches of one epoch in random order, each an array of lists.

        Args:
            budget: most tokens of a batch; padding counts unless `packed`.
            human_share: share of lists of an epoch that people judged, by repeating them or leaving some out;
                0: each list once.
            packed: whether the model computes without padding.
        """
        chosen = self._draw(human_share, rng)
        if packed:
            tokens = np.diff(self.tokens.starts[self.starts])
            order = rng.permutation(chosen)
            return batching.sequential_batches(order, tokens, budget)
        longest = np.maximum.reduceat(self.tokens.lengths, self.starts[:-1])
        units = batching.shuffled_batches(longest[chosen], self.sizes[chosen], budget, rng)
        return [chosen[batch] for batch in units]

    def _draw(self, human_share: float, rng: np.random.Generator) -> np.ndarray:
        judged, labeled = np.flatnonzero(self.human), np.flatnonzero(~self.human)
        if not human_share or not len(judged) or not len(labeled):
            return np.arange(len(self))
        wanted = max(round(human_share / (1 - human_share) * len(labeled)), 1)
        whole, rest = divmod(wanted, len(judged))
        return np.concatenate([labeled, np.tile(judged, whole), rng.choice(judged, rest, replace=False)])
