"""Impression counts per (query, product) in the training and newest windows.

They are kept in DuckDB, so that memory does not grow with the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from distilrank.core.arrays import systematic_sample

CHUNK = 4096
"""Queries that are read at a time."""

_UNIT = 1000  # weights are integers, so that their sums do not depend on the order of addition
_LARGEST = (
    100 * _UNIT
)  # the weight of a rank that a hundredth of the lists reaches; rarer ranks would dominate the rest


@dataclass(frozen=True)
class Pairs:
    """Query-product pairs, one per row, as indices into Corpus.query_ids and Corpus.catalogue."""

    query: np.ndarray
    product: np.ndarray

    def take(self, rows: np.ndarray) -> Pairs:
        """The pairs at `rows` (indices or a mask)."""
        return Pairs(self.query[rows], self.product[rows])


@dataclass(frozen=True)
class Shown(Pairs):
    """Pairs of some queries with their counts in the training window, ascending by query, then product."""

    impressions: np.ndarray
    clicks: np.ndarray
    weight: np.ndarray
    """Impressions corrected for rank, as if every rank were seen equally often (`ImpressionStore.prepare`)."""


@dataclass(frozen=True)
class Impressions(Pairs):
    """Single impressions of pairs, one per row."""

    position: np.ndarray
    """Rank, 1 is the top; NaN where unknown."""
    clicked: np.ndarray
    """1 where it was clicked, else 0."""


class ImpressionStore:
    """Impressions of the training window and of the newest traffic.

    Args:
        connection: with the table `impressions`: query, product (indices), position, shown, clicked, newest (bool).
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def _column(self, statement: str, size: int) -> np.ndarray:
        """A sum by index, int64, shape (size,), from a statement that selects indices and sums."""
        index, value = self._connection.execute(statement).fetchnumpy().values()
        column = np.zeros(size, np.int64)
        column[np.asarray(index, np.int64)] = np.asarray(value, np.int64)
        return column

    def by_query(self, newest: bool, queries: int) -> np.ndarray:
        """Impressions of each query in one window, int64, shape (queries,)."""
        return self._column(
            f"SELECT query, sum(shown) FROM impressions WHERE newest = {newest} GROUP BY query", queries
        )

    def totals(self, newest: bool) -> tuple[int, int]:
        """Impressions and clicks of one window."""
        statement = (
            f"SELECT coalesce(sum(shown), 0), coalesce(sum(clicked), 0) FROM impressions WHERE newest = {newest}"
        )
        shown, clicked = self._connection.execute(statement).fetchall()[0]
        return int(shown), int(clicked)

    def prepare(self, train: np.ndarray, hidden_pairs: Pairs) -> None:
        """Create the pool of candidates: the training window of the train queries, and hidden judgements.

        An impression is weighted by the inverse propensity of its rank: how many times less often that rank is shown
        than the most shown one, at most 100. A product on the second page thus counts as if every shopper had turned
        the page. Unknown ranks have weight 1. A hidden judgement counts as one impression of unknown rank.

        Args:
            train: whether each query is on the train side, shape (queries,).
            hidden_pairs: judged pairs whose ratings are ignored.
        """
        self._connection.register("train_side", pa.table({"query": np.flatnonzero(train).astype(np.int32)}))
        self._connection.register(
            "hidden",
            pa.table({"query": hidden_pairs.query.astype(np.int32), "product": hidden_pairs.product.astype(np.int32)}),
        )
        self._connection.execute("SET preserve_insertion_order = true")  # keeps the table sorted by query
        self._connection.execute(
            f"""CREATE TABLE pool AS
            WITH ranks AS (SELECT position, sum(shown) AS total FROM impressions
                WHERE NOT newest AND position IS NOT NULL GROUP BY position),
            weights AS (SELECT position,
                least({_LARGEST}, {_UNIT} * (SELECT max(total) FROM ranks) // total)::BIGINT AS weight FROM ranks),
            shown AS (SELECT i.query, i.product, i.shown, i.clicked,
                    i.shown * coalesce(w.weight, {_UNIT}) AS weight
                FROM impressions i SEMI JOIN train_side USING (query) LEFT JOIN weights w USING (position)
                WHERE NOT i.newest
                UNION ALL SELECT query, product, 1, 0, {_UNIT} FROM hidden)
            SELECT query, product, sum(shown)::BIGINT AS shown, sum(clicked)::BIGINT AS clicked,
                sum(weight)::BIGINT AS weight
            FROM shown GROUP BY query, product ORDER BY query, product"""
        )
        self._connection.execute("SET preserve_insertion_order = false")

    def queries(self) -> np.ndarray:
        """The queries of the pool, ascending."""
        columns = self._connection.execute("SELECT DISTINCT query FROM pool ORDER BY query").fetchnumpy()
        return np.asarray(columns["query"], np.int64)

    def chunks(self, queries: np.ndarray) -> Iterator[tuple[np.ndarray, Shown]]:
        """Yield `queries` (ascending) in chunks of CHUNK, each with the pairs that were shown for them."""
        for start in range(0, len(queries), CHUNK):
            chunk = queries[start : start + CHUNK]
            self._connection.register("chunk", pa.table({"query": chunk.astype(np.int32)}))
            columns = self._connection.execute(
                """SELECT query, product, shown, clicked, weight FROM pool SEMI JOIN chunk USING (query)
                WHERE query BETWEEN ? AND ? ORDER BY query, product""",  # the bounds skip most of the table
                [int(chunk[0]), int(chunk[-1])],
            ).fetchnumpy()
            query, product, shown, clicks, weight = (np.asarray(column, np.int64) for column in columns.values())
            yield chunk, Shown(query, product, shown, clicks, weight / _UNIT)

    def popularity(self, products: int) -> tuple[np.ndarray, np.ndarray]:
        """Clicks and impressions of each product in the pool, int64, shape (products,) each."""
        statement = "SELECT product, sum({}) FROM pool GROUP BY product"
        return self._column(statement.format("clicked"), products), self._column(statement.format("shown"), products)

    def sample(
        self,
        newest: bool | None,
        size: int,
        generator: np.random.Generator,
        stratum: np.ndarray,
        queries: np.ndarray | None = None,
    ) -> Impressions:
        """Draw a systematic sample of at most `size` impressions, sorted by stratum, query, product and rank.

        Impressions that agree in all four are interchangeable.

        Args:
            newest: True: from the newest traffic; False: from the training window; None: from both.
            size: how many to draw.
            generator: random generator for the start of the sample.
            stratum: stratum of each query.
            queries: queries to sample from; None: all.
        """
        where = "true" if newest is None else f"newest = {newest}"
        queries = np.arange(len(stratum)) if queries is None else queries
        self._connection.register(
            "chosen", pa.table({"query": queries.astype(np.int32), "stratum": stratum[queries].astype(np.int8)})
        )
        self._connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE sampled AS SELECT c.stratum, query, product, position,
                sum(shown)::BIGINT AS shown, sum(clicked)::BIGINT AS clicked
            FROM impressions JOIN chosen c USING (query) WHERE {where} GROUP BY ALL"""
        )
        (total,) = self._connection.execute("SELECT coalesce(sum(shown), 0)::BIGINT FROM sampled").fetchall()[0]
        sampled = systematic_sample(total, size, generator)
        batches: list[list[np.ndarray]] = [[np.empty(0, np.int64)] * 2 + [np.empty(0, np.float32)] * 2]
        before = 0
        reader = self._connection.sql(
            """SELECT query, product, position::FLOAT AS position, shown, clicked FROM sampled
            ORDER BY stratum, query, product, position"""
        ).to_arrow_reader(1 << 17)
        for batch in reader:
            query, product, position, shown, clicked = (
                column.to_numpy(zero_copy_only=False) for column in batch.columns
            )
            ends = before + np.cumsum(shown)
            in_batch = sampled[(sampled >= before) & (sampled < ends[-1])]
            rows = np.searchsorted(ends, in_batch, side="right")
            clicks = (
                in_batch - (ends - shown)[rows] < clicked[rows]
            )  # the first impressions of a cell are its clicked ones
            batches.append(
                [
                    query[rows].astype(np.int64),
                    product[rows].astype(np.int64),
                    position[rows].astype(np.float32),
                    clicks.astype(np.float32),
                ]
            )
            before = ends[-1]
        return Impressions(*(np.concatenate(columns) for columns in zip(*batches, strict=True)))
