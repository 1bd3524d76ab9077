"""Write the candidates to shards of about equal labeling cost."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilrank.core import schemas
from distilrank.core.schemas import STRATA
from distilrank.data.candidates import PROVENANCES, Mined, Miner
from distilrank.data.corpus import Corpus
from distilrank.data.impressions import Pairs
from distilrank.data.profile import CandidateStats
from distilrank.modeling.bi_encoder import TokenCounter

ROWS_AT_ONCE = 1 << 14
"""Number of pairs that are written at a time, with their descriptions."""

_MAX_DESCRIPTION_TOKENS = 256  # largest part of a description that any teacher reads
_MAX_DESCRIPTION_BYTES = 4 * _MAX_DESCRIPTION_TOKENS  # a token has about four
_SAMPLED_PRODUCTS = 1000  # sample on which characters per token are estimated


def write(
    corpus: Corpus, miner: Miner, tokens: TokenCounter, max_shards: int, folder: Path, stats: CandidateStats
) -> list[dict[str, Any]]:
    """Mine the candidates and write them, each query to the shard with the fewest tokens so far.

    Args:
        corpus: the queries and products of the candidates.
        miner: mines the candidates.
        tokens: counts tokens, the estimate of a shard's cost.
        max_shards: number of shards; fewer are written if fewer queries have candidates.
        folder: folder for NAME.parquet of each shard.
        stats: counts the candidates.

    Returns:
        name, rows, queries and tokens of each shard.
    """
    count = max(min(max_shards, len(miner.queries)), 1)
    balancer = ShardBalancer(count)
    estimate = TokenEstimate(corpus, tokens)
    shards: list[dict[str, Any]] = [
        {"name": f"shard-{number:05d}", "rows": 0, "queries": 0, "tokens": 0} for number in range(count)
    ]
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(schemas.Writer(folder / f"{shard['name']}.parquet", schemas.CANDIDATES))
            for shard in shards
        ]
        for mined in miner.mine():
            stats.add(mined)
            lengths = estimate.count(mined)
            shard_of_row = balancer.assign(mined.query, lengths)
            order = corpus.order_by_product_id(mined)
            for number, (shard, writer) in enumerate(zip(shards, writers, strict=True)):
                rows = order[shard_of_row[order] == number]
                shard["queries"] += len(np.unique(mined.query[rows]))
                shard["tokens"] += int(lengths[rows].sum())
                for start in range(0, len(rows), ROWS_AT_ONCE):
                    writer.write(_to_table(corpus, mined, rows[start : start + ROWS_AT_ONCE]))
        for shard, writer in zip(shards, writers, strict=True):
            shard["rows"] = writer.rows
    for shard in shards:
        if not shard["rows"]:  # fewer queries have candidates than there are shards
            (folder / f"{shard['name']}.parquet").unlink()
    return [shard for shard in shards if shard["rows"]]


def to_names(codes: np.ndarray, names: tuple[str, ...]) -> pa.Array:
    """The name of each code."""
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), list(names)).cast(pa.string())


def _to_table(corpus: Corpus, mined: Mined, rows: np.ndarray) -> pa.Table:
    pairs = mined.take(rows)
    return pa.table(
        {
            **corpus.pair_columns(pairs),
            "provenance": to_names(mined.provenance[rows], PROVENANCES),
            "impressions": mined.impressions[rows],
            "clicks": mined.clicks[rows],
            "stratum": to_names(corpus.stratum[pairs.query], STRATA),
        }
    )


class TokenEstimate:
    """Estimates the tokens of pairs from their characters.

    Tokenizing every text takes longer than mining the candidates. So characters are counted, and the number of
    characters per token is estimated on a sample of the products.
    """

    def __init__(self, corpus: Corpus, tokens: TokenCounter) -> None:
        self.corpus = corpus
        count = len(corpus.catalogue)
        sample = np.unique(np.linspace(0, count - 1, min(count, _SAMPLED_PRODUCTS), dtype=np.int64))
        descriptions = pc.fill_null(corpus.catalogue.take(sample)["description"], "").to_pylist()
        in_descriptions = tokens.count([text[:_MAX_DESCRIPTION_BYTES] for text in descriptions])
        in_titles = tokens.count(corpus.catalogue.texts(sample))
        total = (in_titles + np.minimum(in_descriptions, _MAX_DESCRIPTION_TOKENS)).sum()
        self._per_character = float(total / max(self._count_characters(sample).sum(), 1))
        self._characters = np.full(count, -1, np.int32)  # per product; -1: not counted yet

    def _count_characters(self, products: np.ndarray) -> np.ndarray:
        return self.corpus.catalogue.characters(products, longest=_MAX_DESCRIPTION_BYTES)

    def count(self, pairs: Pairs) -> np.ndarray:
        """Estimated tokens of query and product of each pair, int64, shape (pairs,)."""
        new = np.unique(pairs.product[self._characters[pairs.product] < 0])
        self._characters[new] = self._count_characters(new)
        queries, query = np.unique(pairs.query, return_inverse=True)
        in_query = pc.utf8_length(self.corpus.queries.take(pa.array(queries))).to_numpy()
        return np.ceil((in_query[query] + self._characters[pairs.product]) * self._per_character).astype(np.int64)


class ShardBalancer:
    """Assigns each query to the shard with the fewest tokens so far."""

    def __init__(self, shards: int) -> None:
        self.tokens = np.zeros(shards, np.int64)

    def assign(self, query: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the shard of each row; rows of one query are adjacent and stay together.

        Args:
            query: query of each row, grouped.
            tokens: tokens of each row.
        """
        starts = np.flatnonzero(np.diff(query, prepend=-1))
        totals = np.add.reduceat(tokens, starts) if len(starts) else tokens
        shard = np.empty(len(starts), np.int64)
        for row, total in enumerate(totals):
            shard[row] = self.tokens.argmin()
            self.tokens[shard[row]] += total
        return np.repeat(shard, np.diff(np.append(starts, len(query))))
