"""Lists of the student: the same however they come, within budget, and unpadded where they can be."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrank.modeling import batching
from distilrank.modeling.encoding import Tokens
from distilrank.student.dataset import Chunk, ListwiseDataset


def chunk(queries: list[int], start: int, judged: bool = False) -> Chunk:
    """A row's tokens tell its query and its place."""
    ids = [[query + 1, start + row + 1] + [7] * (query % 3) for row, query in enumerate(queries)]
    names = [f"q{query}" for query in queries]
    types = [[0] + [1] * (len(row) - 1) for row in ids]
    target = np.arange(start, start + len(queries), dtype=np.float64)
    return Chunk(names, [f"query {name}" for name in names], Tokens.of(names, ids, types), target, target + 1, judged)


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 6), st.booleans())
def test_lists_are_the_same_however_they_are_chunked(
    tmp_path_factory, sizes: list[int], step: int, judged: bool
) -> None:
    queries = np.repeat(np.arange(len(sizes)), sizes).tolist()
    folder = tmp_path_factory.mktemp("lists")
    chunks = [chunk(queries[start : start + step], start) for start in range(0, len(queries), step)]
    chunks += [chunk(queries, len(queries), True)] if judged else []
    lists = ListwiseDataset(iter(chunks), folder)
    assert len(lists) == len(sizes) * (1 + judged)
    assert lists.sizes.tolist() == sizes * (1 + judged)
    assert lists.is_judged.tolist() == [False] * len(sizes) + [True] * len(sizes) * judged
    assert lists.queries == [f"query q{query}" for query in range(len(sizes))] * (1 + judged)
    assert lists.targets.tolist() == list(range(len(queries) * (1 + judged)))
    assert (lists.weights == lists.targets + 1).all()
    for number in range(len(lists)):
        for row in lists.rows(np.array([number])):
            assert lists.tokens.row(row)[:2].tolist() == [number % len(sizes) + 1, row + 1]
            assert lists.tokens.queries[row] == number
    assert isinstance(lists.tokens.ids, np.memmap) and lists.tokens.types[0] == 0 and lists.tokens.types[1] == 1


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(4, 60), st.booleans(), st.sampled_from([0.0, 0.2, 0.5, 0.8]))
def test_an_epoch_holds_each_list_within_budget(
    tmp_path_factory, sizes: list[int], budget: int, packed: bool, share: float
) -> None:
    queries = np.repeat(np.arange(len(sizes)), sizes).tolist()
    lists = ListwiseDataset(iter([chunk(queries, 0), chunk([0, 0, 1], 99, True)]), tmp_path_factory.mktemp("lists"))
    batches = lists.batches(budget, share, packed, np.random.default_rng(0))
    lengths = lists.tokens.lengths
    for batch in batches:
        rows = lists.rows(batch)
        tokens = lengths[rows].sum() if packed else lengths[rows].max() * len(rows)
        assert tokens <= budget or len(batch) == 1
    drawn = np.concatenate(batches)
    labeled, judged = drawn[~lists.is_judged[drawn]], drawn[lists.is_judged[drawn]]
    assert sorted(labeled.tolist()) == list(range(len(sizes)))
    if share:
        assert abs(len(judged) - share / (1 - share) * len(labeled)) <= 1
        counts = np.bincount(judged, minlength=len(lists))[-2:]
        assert counts.max() - counts.min() <= 1
    else:
        assert sorted(judged.tolist()) == [len(sizes), len(sizes) + 1]


def test_packed_batches_pad_nothing() -> None:
    lengths = np.random.default_rng(0).integers(3, 40, 500)
    packed = batching.sequential_batches(np.arange(500), lengths, 256)
    padded = batching.pack_by_tokens(np.arange(500), lengths, np.ones(500, int), 256)
    assert len(packed) < 0.8 * len(padded)
