"""Candidate mining: which products the teacher will score for which queries."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distilrank.config import Prepare
from distilrank.core import progress
from distilrank.core.errors import InputError
from distilrank.data import bm25
from distilrank.data.corpus import Corpus
from distilrank.data.impressions import Pairs, Shown
from distilrank.data.splits import HEAD, TAIL, TORSO, TRAIN, Split
from distilrank.modeling.bi_encoder import Retriever
from distilrank.modeling.neighbors import Neighbors

PROVENANCES = ("impression", "bm25", "disagreement", "popular", "random")
_VOTES = 10  # best BM25 hits that vote on the product type of a query without impressions


@dataclass(frozen=True)
class Mined(Pairs):
    """Candidates, grouped by query, a query's rows in the order of PROVENANCES."""

    provenance: np.ndarray
    impressions: np.ndarray
    clicks: np.ndarray


@dataclass(frozen=True)
class Embedded:
    """The embedding retriever and the embedded catalogue."""

    retriever: Retriever
    products: Neighbors


class Miner:
    """Mines candidates for the train-side queries of the training window.

    Each quota adds products that are not yet among the candidates, as far as the catalogue has any:

    * impressions: drawn without replacement, with probabilities that follow a product's impressions corrected for rank
      (`ImpressionStore.prepare`); hidden judgements count as impressions of unknown rank;
    * BM25: its best hits;
    * disagreement: the best hits of BM25 that are not in the first `retriever.depth` of the embedding retriever, and
      vice versa, in alternation, starting with the embedding retriever;
    * popular: the most clicked, then most shown, products of the query's most frequent product type among its
      impressions or, without any, among BM25's best hits;
    * random: any product.

    Without a log and without hidden judgements, candidates are mined for the judged train queries.

    Raises:
        InputError: the training window of the log has no train-side query.
    """

    def __init__(
        self, corpus: Corpus, split: Split, index: bm25.Index, embedded: Embedded | None, config: Prepare
    ) -> None:
        self.corpus, self.index, self.embedded, self.config = corpus, index, embedded, config
        corpus.log.prepare(corpus.side == TRAIN, corpus.judged.take(split.rows["unlabeled_train"]))
        self.queries = self._choose(split)
        self._tickets = _hashes(corpus.catalogue.column("product_id"))
        self._by_type, self._types = _popular(corpus) if config.from_popular else ({}, np.zeros(0, np.int64))
        self.seconds = {"bm25": 0.0, "embedding": 0.0}

    def _choose(self, split: Split) -> np.ndarray:
        """The queries to mine for, ascending: by quota of their stratum in hash order, then by frequency."""
        queries = self.corpus.log.queries()
        if not len(queries):
            if self.corpus.logged:
                raise InputError(
                    "log: the training window holds no query of the train side, expected some to mine candidates "
                    f"for{self.corpus.left_out}"
                )
            queries = split.queries["train"]
        config, position = self.config, self.corpus.position
        quotas = {HEAD: config.head_queries, TORSO: config.torso_queries, TAIL: config.tail_queries}
        stratum = self.corpus.stratum[queries]
        chosen = []
        for code, limit in quotas.items():
            members = queries[stratum == code]
            # By frequency, only a stratum's most frequent queries would be taken; hash order is a fair sample.
            chosen.append(members[np.argsort(position[members], kind="stable")][: limit or None])
        queries = np.concatenate(chosen)
        order = np.lexsort((position[queries], -self.corpus.impressions[queries]))
        return np.sort(queries[order[: config.log_queries or None]])

    def mine(self) -> Iterator[Mined]:
        """Yield the candidates of all queries, a chunk of queries at a time, in ascending order.

        Raises:
            InputError: no query has a candidate.
        """
        counter = progress.Counter("prepare", len(self.queries), "queries")
        count = 0
        for queries, shown in self.corpus.log.chunks(self.queries):
            mined = self._mine(queries, shown, counter)
            count += len(mined.query)
            yield mined
        if not count:
            raise InputError(f"no candidate for any of {len(self.queries)} queries; raise prepare.from_random")

    def _mine(self, queries: np.ndarray, shown: Shown, counter: progress.Counter) -> Mined:
        config, count = self.config, len(self.corpus.catalogue)
        ids = self.corpus.query_ids.take(pa.array(queries)).to_pylist()
        texts = self.corpus.queries.take(pa.array(queries)).to_pylist()
        seeds = np.array([int(key, 16) for key in ids], np.uint64)
        starts, ends = (np.searchsorted(shown.query, queries, side=side) for side in ("left", "right"))
        # An exponential race: the smallest of -log(u)/weight comes first (Efraimidis and Spirakis, IPL 97(5), 2006).
        # A pair's ticket depends on the pair alone, so new days do not reshuffle the sample.
        mixed = _mix(np.repeat(seeds, ends - starts) ^ self._tickets[shown.product], config.seed)
        race = -np.log((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54) / shown.weight
        order = np.lexsort((race, shown.query))
        near = self._neighbors(texts)
        depth = config.retriever.depth if near is not None else 0

        parts: list[np.ndarray] = []
        sizes = np.zeros((len(queries), len(PROVENANCES)), np.int64)
        for row, text in enumerate(texts):
            span = slice(starts[row], ends[row])
            taken = shown.product[order[span]][: config.from_impressions]
            depth_needed = max(config.from_bm25, config.per_query) + config.from_impressions
            began = time.perf_counter()
            hits = self.index.top(text, max(depth_needed, depth, _VOTES if config.from_popular else 0))
            self.seconds["bm25"] += time.perf_counter() - began
            # A separate generator per query: its draws do not depend on the other queries of the log.
            generator = np.random.default_rng([config.seed, int(ids[row], 16)])
            random_products = generator.choice(
                count, min(count, config.from_random + config.per_query + _most(config)), replace=False
            )
            offers = {
                "bm25": (hits, config.from_bm25),
                "disagreement": (_alternate(near[row], hits, depth) if near is not None else hits[:0],
                                 config.from_disagreement),
                "popular": (self._popular_of(shown.product[span], shown.weight[span], hits), config.from_popular),
                "random": (random_products, config.from_random),
            }  # fmt: skip
            picked = {name: [] for name in PROVENANCES} | {"impression": taken.tolist()}
            chosen = set(picked["impression"])  # for a dozen products, a set is faster than numpy

            def pick(name: str, most: int, offered: np.ndarray, picked=picked, chosen=chosen) -> None:
                for product in offered.tolist() if most > 0 else ():
                    if product not in chosen:
                        chosen.add(product)
                        picked[name].append(product)
                        most -= 1
                        if not most:
                            return

            for name, (offered, most) in offers.items():
                pick(name, most, offered)
            if config.per_query:
                for name in ("bm25", "random"):
                    pick(name, config.per_query - len(chosen), offers[name][0])
            products = [product for name in PROVENANCES for product in picked[name]][: config.per_query or None]
            lengths = np.minimum(np.cumsum([len(picked[name]) for name in PROVENANCES]), len(products))
            sizes[row] = np.diff(lengths, prepend=0)
            parts.append(np.array(products, np.int64))
            counter.add(1)

        query, product = np.repeat(queries, sizes.sum(axis=1)), np.concatenate([np.zeros(0, np.int64), *parts])
        pair = shown.query * np.int64(count) + shown.product
        key = query * np.int64(count) + product
        row_of_shown = np.searchsorted(pair, key)
        was_shown = np.append(pair, -1)[row_of_shown] == key
        return Mined(
            query=query,
            product=product,
            provenance=np.repeat(np.tile(np.arange(len(PROVENANCES)), len(queries)), sizes.ravel()),
            impressions=np.append(shown.impressions, 0)[row_of_shown] * was_shown,
            clicks=np.append(shown.clicks, 0)[row_of_shown] * was_shown,
        )

    def _neighbors(self, texts: list[str]) -> np.ndarray | None:
        if not self.config.from_disagreement or self.embedded is None:
            return None
        began = time.perf_counter()
        places, _ = self.embedded.products.top(self.embedded.retriever.embed(texts), self.config.retriever.depth)
        self.seconds["embedding"] += time.perf_counter() - began
        return places

    def _popular_of(self, products: np.ndarray, weight: np.ndarray, hits: np.ndarray) -> np.ndarray:
        """The popular products of a query's type, best first, with a reserve for those already chosen."""
        if not self.config.from_popular:
            return hits[:0]
        types = self._types[products] if len(products) else self._types[hits[:_VOTES]]
        votes = weight if len(products) else np.ones(len(types))
        votes, types = votes[types >= 0], types[types >= 0]
        if not len(types):
            return hits[:0]
        best = int(np.bincount(types, weights=votes).argmax())
        return self._by_type[best][: self.config.from_popular + _most(self.config)]


def _most(config: Prepare) -> int:
    """Largest number of candidates of a query before `per_query` fills it up."""
    return sum(getattr(config, name) for name in Prepare.model_fields if name.startswith("from_"))


def _alternate(near: np.ndarray, hits: np.ndarray, depth: int) -> np.ndarray:
    """The products that only one of two rankings has in its first `depth`, alternating, best first."""
    hits = hits[:depth]
    only_near, only_hits = near[~np.isin(near, hits)], hits[~np.isin(hits, near)]
    shared = min(len(only_near), len(only_hits))
    in_turn = np.column_stack([only_near[:shared], only_hits[:shared]]).ravel()
    return np.concatenate([in_turn, only_near[shared:], only_hits[shared:]])


def _popular(corpus: Corpus) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """The products of each type with impressions, best first, and the type of each product (-1: none)."""
    column = corpus.catalogue.column("product_type").combine_chunks().dictionary_encode()
    types = column.indices.fill_null(-1).to_numpy().astype(np.int64)
    clicks, shown = corpus.log.popularity(len(types))
    products = np.flatnonzero((types >= 0) & (shown > 0))
    products = products[np.lexsort((products, -shown[products], -clicks[products], types[products]))]
    bounds = np.flatnonzero(np.diff(types[products])) + 1
    groups = np.split(products, bounds) if len(products) else []
    return dict.fromkeys(range(-1, types.max(initial=-1) + 1), products[:0]) | {
        int(types[group[0]]): group for group in groups
    }, types


def _hashes(ids: pa.ChunkedArray) -> np.ndarray:
    """A 64-bit hash of each text."""
    return np.fromiter(
        (int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") for key in ids.to_pylist()),
        np.uint64,
        len(ids),
    )


def _mix(values: np.ndarray, seed: int) -> np.ndarray:
    """Scramble 64-bit values (SplitMix64; Steele, Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
