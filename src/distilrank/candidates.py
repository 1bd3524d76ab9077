"""Which products the teacher will score for which queries, and how the work is shared out."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from distilrank import bm25, progress
from distilrank.config import Prepare
from distilrank.corpus import Corpus, Log, Pairs
from distilrank.errors import InputError
from distilrank.splits import TRAIN, Split

PROVENANCES = ("impression", "bm25", "random")


@dataclass(frozen=True)
class Mined(Pairs):
    """Candidates, grouped by query, a query's rows in the order of PROVENANCES."""

    provenance: np.ndarray
    impressions: np.ndarray
    clicks: np.ndarray


def mine(corpus: Corpus, split: Split, index: bm25.Index, config: Prepare) -> Mined:
    """Find candidates for each train-side query of the training window.

    First the products most shown for it (an impression at rank r counts 1/log2(1 + r), equals in seeded order), then
    the best of BM25 and last random products, each time such as are not among them yet; never more than the catalogue
    has. Hidden judgements count as impressions of unknown rank. Without any log, hidden judgements included, it is
    the judged train queries that candidates are found for.

    Raises:
        InputError: there is a log, but without a train-side query in the training window; or no candidate is found.
    """
    count = corpus.products.num_rows
    pool = _pool(corpus, split)
    pair, place = np.unique(pool.pairs.query * np.int64(count) + pool.pairs.product, return_inverse=True)
    shown = np.bincount(place, minlength=len(pair))
    clicks = np.bincount(place, weights=pool.clicked, minlength=len(pair)).astype(np.int64)
    exposure = np.bincount(place, weights=pool.exposure, minlength=len(pair))
    query, product = pair // count, pair % count

    ties = np.random.default_rng(config.seed).random(len(pair))
    order = np.lexsort((ties, -exposure, query))  # keeps queries together
    chosen = _log_queries(corpus, split, query, config.log_queries)
    starts, ends = np.searchsorted(query, chosen), np.searchsorted(query, chosen, side="right")

    counter = progress.Counter("prepare", len(chosen), "queries")
    found: list[np.ndarray] = []
    sizes = np.zeros((len(chosen), len(PROVENANCES)), np.int64)
    for row, at in enumerate(chosen):
        impressed = product[order[starts[row] : ends[row]][: config.from_impressions]]
        depth = config.from_bm25 + len(impressed) if config.from_bm25 else 0
        matched = index.top(corpus.queries[at], depth)
        matched = matched[~np.isin(matched, impressed)][: config.from_bm25]
        taken = np.concatenate([impressed, matched])
        # A generator for each query: what it draws does not depend on which other queries the log holds.
        draw = np.random.default_rng([config.seed, int(corpus.query_ids[at], 16)])
        drawn = draw.choice(count, min(count, config.from_random + len(taken)), replace=False)
        drawn = drawn[~np.isin(drawn, taken)][: config.from_random]
        found.append(np.concatenate([taken, drawn]))
        sizes[row] = len(impressed), len(matched), len(drawn)
        counter.add(1)

    of, what = np.repeat(chosen, sizes.sum(axis=1)), np.concatenate(found)
    if not len(what):
        raise InputError(f"no candidate for any of {len(chosen)} queries; raise prepare.from_random")
    key = of * np.int64(count) + what
    spot = np.searchsorted(pair, key)
    hit = np.append(pair, -1)[spot] == key
    return Mined(
        query=of,
        product=what,
        provenance=np.repeat(np.tile(np.arange(len(PROVENANCES)), len(chosen)), sizes.ravel()),
        impressions=np.append(shown, 0)[spot] * hit,
        clicks=np.append(clicks, 0)[spot] * hit,
    )


def _pool(corpus: Corpus, split: Split) -> Log:
    """What candidates may come from: the train side of the training window, and the hidden judgements."""
    hidden = corpus.judged.take(split.rows["hidden"])
    ones = np.ones(len(hidden.query))
    if corpus.log is None:
        return Log(hidden, ones, ones == 0)
    log = corpus.log.take(corpus.side[corpus.log.pairs.query] == TRAIN)
    pairs = Pairs(np.concatenate([log.pairs.query, hidden.query]), np.concatenate([log.pairs.product, hidden.product]))
    return Log(pairs, np.concatenate([log.exposure, ones]), np.concatenate([log.clicked, ones == 0]))


def _log_queries(corpus: Corpus, split: Split, pooled: np.ndarray, cap: int) -> np.ndarray:
    """The queries to mine for, ascending: all or the `cap` most frequent of the log, then by hash order."""
    queries = np.unique(pooled)
    if not len(queries):
        if corpus.log is not None:
            raise InputError(
                "log: the training window holds no query of the train side, expected some to mine candidates for"
            )
        queries = split.queries["train"]
    # Hidden judgements tell nothing of frequency.
    seen = np.zeros(len(corpus.query_ids), np.int64)
    if corpus.log is not None:
        seen += np.bincount(corpus.log.pairs.query, minlength=len(seen))
    order = np.lexsort((corpus.position[queries], -seen[queries]))
    return np.sort(queries[order[: cap or None]])


def into_shards(mined: Mined, count: int) -> list[np.ndarray]:
    """Rows of each shard, by query; whole queries, the largest first, each to the shard with the fewest rows."""
    queries, starts, sizes = np.unique(mined.query, return_index=True, return_counts=True)
    heap = [(0, shard) for shard in range(min(count, len(queries)))]
    members: list[list[int]] = [[] for _ in heap]
    for place in np.lexsort((queries, -sizes)):
        rows, shard = heapq.heappop(heap)
        members[shard].append(place)
        heapq.heappush(heap, (rows + int(sizes[place]), shard))
    # Places of queries ascend with their ids, so the order of places is that of ids.
    spans = [[np.arange(starts[place], starts[place] + sizes[place]) for place in sorted(shard)] for shard in members]
    return [np.concatenate(span) for span in spans]
