"""A source's tables as arrays of places, merged and checked: what all of preparation works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilrank import normalise, progress, records
from distilrank.config import Prepare
from distilrank.errors import InputError
from distilrank.sources import Source
from distilrank.splits import TAIL, hash_position, sides, strata


@dataclass(frozen=True)
class Pairs:
    """Query-product pairs as places in Corpus.query_ids and Corpus.products, a row each."""

    query: np.ndarray
    product: np.ndarray

    def take(self, rows: np.ndarray) -> Pairs:
        """The pairs at `rows` (places or a mask)."""
        return Pairs(self.query[rows], self.product[rows])


@dataclass(frozen=True)
class Log:
    """Impressions, a row each."""

    pairs: Pairs
    exposure: np.ndarray
    """1/log2(1 + rank), 1 where the rank is unknown."""
    clicked: np.ndarray

    def take(self, rows: np.ndarray) -> Log:
        """The impressions at `rows` (places or a mask)."""
        return Log(self.pairs.take(rows), self.exposure[rows], self.clicked[rows])


@dataclass(frozen=True)
class Corpus:
    """What the source gave, checked, with queries and products as places; queries ascend by their ids."""

    products: pa.Table
    query_ids: list[str]
    queries: list[str]
    """Each query as most often typed, white space collapsed."""
    position: np.ndarray
    """Place of each query in hash order, in [0, 1)."""
    side: np.ndarray
    """TRAIN, DEV or TEST of each query, judged or not."""
    judged: Pairs
    """Distinct, ascending."""
    ratings: np.ndarray
    targets: np.ndarray
    raters: np.ndarray
    log: Log | None
    """The training window, or all of a log without time; None if there is no log."""
    newest: Log | None
    """The newest traffic; None if the log has no time."""
    stratum: np.ndarray
    """Place in STRATA of each query."""
    merged: dict[str, int]
    dropped: list[dict[str, Any]]
    rows: dict[str, int]


def read(source: Source, config: Prepare, reference_start: str, newest_start: str, newest_end: str) -> Corpus:
    """Read and check the tables of `source`; the window's bounds are those of `prepare.prepare`.

    Judged rows with the same query as typed, product and rating are one. Spellings with one normal form are one
    query; where they bring several ratings of a product, the mean weighted by raters counts. Impressions of products
    that the catalogue no longer has, or outside both windows, are left out and counted in `dropped`.

    Raises:
        InputError: a table does not fit its schema, or judges what the catalogue lacks.
    """
    products = records.conform(source.products(), records.PRODUCTS, "catalogue").combine_chunks()
    keys = products["product_id"].combine_chunks()
    if not len(keys) or pc.count_distinct(keys).as_py() != len(keys):
        raise InputError(f"catalogue: {len(keys)} products, expected some, each with a product_id of its own")
    table = records.conform(source.judgements(), records.JUDGEMENTS, "judgements")
    impressions = source.impressions()
    rows = {"products": len(keys), "judgements": table.num_rows, "impressions": 0}
    dropped: list[dict[str, Any]] = []
    window = np.zeros(0, np.int8)
    if impressions is not None:
        impressions = records.conform(impressions, records.IMPRESSIONS, "log")
        rows["impressions"] = impressions.num_rows
        known = pc.is_in(impressions["product_id"], value_set=keys)
        impressions = _keep(impressions, known, "the product is not in the catalogue", dropped)
        inside = _window(impressions["timestamp"], reference_start, newest_start, newest_end)
        impressions = _keep(impressions, pa.array(inside >= 0), "outside the log window", dropped)
        window = inside[inside >= 0]

    typed = table["query"].chunks + (impressions["query"].chunks if impressions is not None else [])
    encoded = pa.chunked_array(typed, pa.string()).dictionary_encode().combine_chunks()
    spelling, spellings = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    query_ids, query_of = np.unique([normalise.query_id(text) for text in spellings], return_inverse=True)
    queries = _most_typed(spellings, query_of, np.bincount(spelling, minlength=len(spellings)))
    query = query_of[spelling]
    ids = query_ids.tolist()
    position = np.array([hash_position(key, config.salt) for key in ids])

    product = pc.index_in(table["product_id"], value_set=keys)
    if product.null_count:
        stranger = table["product_id"].filter(product.is_null())[0].as_py()
        raise InputError(f"judgements: product {stranger!r} is not in the catalogue")
    judged, ratings, raters, merged = _merge(
        spelling[: table.num_rows], query[: table.num_rows], product.to_numpy(), table, len(keys)
    )
    merged["spellings"] = len(spellings) - len(ids)

    log = newest = None
    stratum = np.full(len(ids), TAIL)
    if impressions is not None:
        everything = _log(impressions, query[table.num_rows :], keys)
        log = everything.take(window == 0)
        newest = everything.take(window == 1) if newest_start else None
        stratum = strata(np.bincount(log.pairs.query, minlength=len(ids)))
    return Corpus(
        products=products,
        query_ids=ids,
        queries=queries,
        position=position,
        side=sides(position, config.dev_share, config.test_share),
        judged=judged,
        ratings=ratings,
        targets=soft_targets(ratings, source.rating_range),
        raters=raters,
        log=log,
        newest=newest,
        stratum=stratum,
        merged=merged,
        dropped=dropped,
        rows=rows,
    )


def _keep(table: pa.Table, mask: pa.ChunkedArray | pa.Array, why: str, dropped: list[dict[str, Any]]) -> pa.Table:
    kept = table.filter(mask)
    if kept.num_rows < table.num_rows:
        dropped.append({"rows": table.num_rows - kept.num_rows, "of": "impressions", "why": why})
        progress.announce("prepare", "note", f"{table.num_rows - kept.num_rows} impressions left out: {why}")
    return kept


def _window(times: pa.ChunkedArray, reference_start: str, newest_start: str, newest_end: str) -> np.ndarray:
    """For each impression 0 (training window), 1 (newest traffic) or -1 (neither); 0 for all of a log without time."""
    if not newest_start:
        return np.zeros(len(times), np.int8)
    start, middle, end = (_instant(text) for text in (reference_start, newest_start, newest_end))
    at = times.to_numpy().astype("datetime64[us]")
    window = np.full(len(at), -1, np.int8)
    window[(at >= start) & (at < middle)] = 0
    window[(at >= middle) & (at < end)] = 1
    return window


def _instant(text: str) -> np.datetime64:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"window bound {text!r}: expected an ISO 8601 time") from None
    time = time.astimezone(UTC) if time.tzinfo else time
    return np.datetime64(time.replace(tzinfo=None), "us")


def _most_typed(spellings: Sequence[str], query_of: np.ndarray, counts: np.ndarray) -> list[str]:
    """For each query its most frequent spelling, the alphabetically first of several, white space collapsed."""
    alphabetic = np.argsort(np.argsort(np.array(spellings, dtype=object), kind="stable"))
    order = np.lexsort((alphabetic, -counts, query_of))
    first = np.unique(query_of[order], return_index=True)[1]
    return [" ".join(spellings[place].split()) for place in order[first]]


def _merge(
    spelling: np.ndarray, query: np.ndarray, product: np.ndarray, table: pa.Table, products: int
) -> tuple[Pairs, np.ndarray, np.ndarray, dict[str, int]]:
    """Make one row of each judged (query, product): pairs, ratings, raters, and how many rows became one why."""
    rating, raters = table["rating"].to_numpy(), table["raters"].to_numpy()
    # The same row twice is one judgement, of as many raters as its fuller copy says.
    order = np.lexsort((-raters, rating, product, spelling))
    repeated = np.zeros(len(order), bool)
    if len(order):
        columns = [column[order] for column in (spelling, product, rating)]
        repeated[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    rows = np.sort(order[~repeated])
    # Two spellings of a query, judged apart, are more raters of one pair.
    key = query[rows].astype(np.int64) * products + product[rows]
    pair, place = np.unique(key, return_inverse=True)
    weight = np.bincount(place, weights=raters[rows], minlength=len(pair))
    mean = np.bincount(place, weights=rating[rows] * raters[rows], minlength=len(pair)) / np.maximum(weight, 1)
    lowest, highest = np.full(len(pair), np.inf), np.full(len(pair), -np.inf)
    np.minimum.at(lowest, place, rating[rows])
    np.maximum.at(highest, place, rating[rows])
    agreed = lowest == highest
    merged = {
        "identical_judgements": len(order) - len(rows),
        "judgements_of_other_spellings": len(rows) - len(pair),
        "ratings_averaged_over_spellings": int((~agreed).sum()),
    }
    # Exact where raters agree: a mean of equal numbers need not be that number.
    return Pairs(pair // products, pair % products), np.where(agreed, lowest, mean), weight.astype(np.int32), merged


def _log(impressions: pa.Table, query: np.ndarray, keys: pa.Array) -> Log:
    product = pc.index_in(impressions["product_id"], value_set=keys).to_numpy()
    rank = pc.fill_null(impressions["position"], 1).to_numpy()
    clicked = pc.fill_null(impressions["clicked"], False).to_numpy()
    return Log(Pairs(query, product), 1 / np.log2(1.0 + rank), clicked)


def soft_targets(ratings: np.ndarray, rating_range: tuple[float, float]) -> np.ndarray:
    """Ratings as soft targets in [0, 1], float32.

    The threshold of relevance goes through here too, since .665 as a 32-bit float is not .665 as a 64-bit one.
    """
    lowest, highest = rating_range
    return ((ratings - lowest) / (highest - lowest)).astype(np.float32)
