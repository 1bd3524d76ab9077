"""Catalogue, judgements and log joined on shared integer ids; the input of every later step of `prepare`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilrank.config import Prepare
from distilrank.core import arrays, languages, normalize, progress, schemas
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data import judgements, log_tables
from distilrank.data.bm25 import Index
from distilrank.data.catalogue import Catalogue
from distilrank.data.impressions import ImpressionStore, Pairs
from distilrank.data.log_aggregates import PartAggregates
from distilrank.data.log_store import LogStore
from distilrank.data.sources.base import NO_IMPRESSIONS, Log, Source
from distilrank.data.splits import TAIL, hash_position, sides, strata
from distilrank.data.window import LogWindow

_UNKNOWN_CLIENTS = "has no client ids"
_NOT_LEFT_OUT = (_UNKNOWN_CLIENTS, "kept, ")
_NAMED_REASONS = 3


@dataclass(frozen=True)
class Corpus:
    """Checked data of a source. Queries are numbered in the order of their ids, products in that of the catalogue."""

    catalogue: Catalogue
    query_ids: pa.StringArray
    queries: pa.StringArray
    """Each query as most often typed, white space collapsed."""
    position: np.ndarray
    """Each query's position in hash order, in [0, 1)."""
    side: np.ndarray
    """TRAIN, DEV or TEST of each query, judged or not."""
    judged: Pairs
    """Judged pairs, ascending; the next five arrays have a value for each."""
    ratings: np.ndarray
    """On the source's scale."""
    targets: np.ndarray
    """Soft targets in [0, 1]."""
    gains: np.ndarray
    """In [0, 1]; the soft targets, unless the source defines separate gains."""
    raters: np.ndarray
    """Number of raters behind each rating."""
    locales: pa.StringArray
    """Null where unknown."""
    languages: list[str]
    """Language of each product, a key of `languages.LANGUAGES`."""
    log: ImpressionStore
    """Empty if there is no log."""
    logged: bool
    """Whether there is a log."""
    timed: bool
    """Whether the log has times, and so a window of newest traffic."""
    impressions: np.ndarray
    """Impressions of each query in the training window (in the whole log if it has no times)."""
    newest: np.ndarray
    """Impressions of each query in the newest traffic."""
    stratum: np.ndarray
    """Index in STRATA of each query."""
    merged: dict[str, int]
    """Number of rows that were merged into another, by reason."""
    agreement: dict[str, Any] | None
    """How far the raters of a pair agree, as in the profile's `rater_agreement`; None where a pair has one rating."""
    privacy: dict[str, Any]
    """Counts of what was scrubbed and dropped; `judged`: judged queries that contained each kind of personal data."""
    rows: dict[str, int]
    """Rows read from the catalogue, the judgements and the log."""
    left_out: str
    """Reasons for which rows of the log were left out, most frequent first, to append to a message; may be empty."""

    def texts(self, queries: np.ndarray) -> list[str]:
        """The texts of queries."""
        return self.queries.take(pa.array(queries)).to_pylist()

    def pair_columns(self, pairs: Pairs) -> dict[str, Any]:
        """The columns of schemas.PAIR for each of `pairs`."""
        rows = pa.array(pairs.query)
        return {
            "query_id": self.query_ids.take(rows),
            "query": self.queries.take(rows),
            **self.catalogue.take(pairs.product),
        }

    def bm25_scores(self, index: Index, pairs: Pairs) -> np.ndarray:
        """BM25 of each of `pairs`, float32, shape (pairs,); `index` is over the catalogue."""
        queries, query = np.unique(pairs.query, return_inverse=True)
        return index.scores(self.texts(queries), query, pairs.product)

    def order_by_product_id(self, pairs: Pairs) -> np.ndarray:
        """The order of `pairs` by query id, then product id; int64, shape (pairs,)."""
        keys = self.catalogue.column("product_id").take(pa.array(pairs.product))
        table = pa.table({"query": pairs.query, "product_id": keys})
        return pc.sort_indices(table, [("query", "ascending"), ("product_id", "ascending")]).to_numpy()


def read(
    source: Source,
    config: Prepare,
    window: LogWindow,
    *,
    connection: duckdb.DuckDBPyConnection,
    scratch: Path,
    problems: Problems,
) -> Corpus:
    """Read and check the data of `source`.

    Judged rows with the same query as typed, product, rating and rater are merged, unless anonymous raters rate pairs
    together. Spellings with the same normal form are one query. Several ratings of a pair are combined by the rule of
    the source; where it refuses them, different spellings may still bring several, whose mean weighted by raters is
    taken. The locale of a pair is its most frequent one (ties: the first by code point). Impressions of products that
    the catalogue lacks, of queries with too few clients, or outside both windows are left out and counted.

    Args:
        source: judgements, catalogue and log.
        config: settings of preparation.
        window: the windows to read of the log.
        connection: an empty database for the log (`log_store.connect`); it must outlive the corpus.
        scratch: folder for data that does not fit into memory; it must outlive the corpus too.
        problems: receives everything that is wrong and everything that was left out.

    Raises:
        InputError: a table does not fit its schema, or a judged product is not in the catalogue.
    """
    log = source.log()
    # The log first, while the catalogue is not in memory yet.
    parts = _read_log(log, config, window, scratch, problems) if log is not None else []
    with progress.timed("prepare", "read the catalogue"):
        catalogue = Catalogue(source.products(problems), scratch, problems)
    with progress.timed("prepare", "read the judgements"):
        table = schemas.conform(source.judgements(problems), schemas.JUDGEMENTS, "judgements")
        table = judgements.keep_known_products(table, catalogue, problems)
        table, personal = judgements.scrub(table, config.privacy, problems)
    privacy = log_tables.create_tables(connection, parts, log, window, catalogue, config, problems)
    spellings = _Spellings(table, config.language)
    query_ids, queries, merged_spellings = _number_queries(connection, spellings)
    merged = judgements.merge(
        table,
        spelling=spellings.of_row,
        query=spellings.indices_in(query_ids),
        product=pc.index_in(table["product_id"], value_set=catalogue.keys).to_numpy(),
        products=len(catalogue),
        rule=source.rating_conflicts,
        seed=config.seed,
    )
    position = _hash_positions(query_ids, queries, config)
    targets = judgements.soft_targets(merged.ratings, source.rating_range)
    store = ImpressionStore(connection)
    impressions, newest = (store.by_query(is_newest, len(query_ids)) for is_newest in (False, True))
    return Corpus(
        catalogue=catalogue,
        query_ids=query_ids,
        queries=queries,
        position=position,
        side=sides(position, config),
        judged=merged.pairs,
        ratings=merged.ratings,
        targets=targets,
        gains=np.where(np.isnan(merged.gains), targets, merged.gains).astype(np.float32),
        raters=merged.raters,
        locales=merged.locales,
        languages=_languages(merged.pairs.product, merged.locales, len(catalogue), config),
        log=store,
        logged=log is not None,
        timed=window.is_timed,
        impressions=impressions,
        newest=newest,
        stratum=strata(impressions) if log is not None else np.full(len(query_ids), TAIL),
        merged={
            **merged.merged,
            "spellings": merged_spellings,
            "repeated_products": catalogue.rows - len(catalogue),
        },
        agreement=merged.agreement,
        privacy={**privacy, "scrub_judgements": config.privacy.scrub_judgements, "judged": personal},
        rows={
            "products": catalogue.rows,
            "judgements": table.num_rows,
            "log": sum(sum(part.days.values()) for part in parts),
        },
        left_out=_left_out(log, problems),
    )


def _read_log(log: Log, config: Prepare, window: LogWindow, scratch: Path, problems: Problems) -> list[PartAggregates]:
    """The day aggregates of the log's parts that overlap the windows."""
    problems.extend(log.problems, once=True)
    if log.people and log_tables.required_clients(log, config) < config.privacy.min_clients:
        problems.add(
            "log",
            f"{_UNKNOWN_CLIENTS}, so rare queries are kept; name the column in data.columns.client to drop "
            f"those of fewer than {config.privacy.min_clients} clients",
            fatal=False,
        )
    store = LogStore(Path(config.log_cache_dir) if config.log_cache_dir else scratch / "log", config.language)
    parts = store.ingest(log, config.privacy, window.first_day, window.end_day, problems)
    if parts and not any(part.files("pairs", "", "") for part in parts):
        reason = next((problem.line() for problem in problems if problem.what.startswith(NO_IMPRESSIONS)), "")
        reason = f"; {reason}" if reason else _left_out(log, problems)
        rows = sum(sum(part.days.values()) for part in parts)
        raise InputError(f"log: no impressions among its {rows} rows, expected some{reason}")
    return parts


def _left_out(log: Log | None, problems: Problems) -> str:
    """See `Corpus.left_out`."""
    names = {"log", *(part.name for part in (log.parts if log else ()))}
    rows: Counter[str] = Counter()
    for problem in problems:
        if problem.where in names and not problem.fatal and not problem.what.startswith(_NOT_LEFT_OUT):
            rows[problem.what.removeprefix("left out, ")] += problem.rows
    reasons = [f"{what} ({count} rows)" for what, count in rows.most_common(_NAMED_REASONS)]
    return f"; left out: {'; '.join(reasons)}" if reasons else ""


class _Spellings:
    """The distinct queries of the judgements, as typed."""

    def __init__(self, table: pa.Table, language: str) -> None:
        encoded = table["query"].combine_chunks().dictionary_encode()
        self.of_row: np.ndarray = encoded.indices.to_numpy()
        """Index of each row's spelling, shape (rows,)."""
        self.texts: list[str] = encoded.dictionary.to_pylist()
        self.query_ids = [normalize.query_id(text, language) for text in self.texts]

    def table(self) -> pa.Table:
        """One row per spelling: query_id, text, and the number of judged rows with it."""
        return pa.table(
            {
                "query_id": pa.array(self.query_ids, pa.string()),
                "text": pa.array([" ".join(text.split()) for text in self.texts], pa.string()),
                "typed": np.bincount(self.of_row, minlength=len(self.texts)),
            }
        )

    def indices_in(self, query_ids: pa.StringArray) -> np.ndarray:
        """Index in `query_ids` of each row's query, shape (rows,)."""
        index = pc.index_in(pa.array(self.query_ids, pa.string()), value_set=query_ids).to_numpy()
        return index[self.of_row] if len(self.of_row) else self.of_row


def _number_queries(
    connection: duckdb.DuckDBPyConnection, spellings: _Spellings
) -> tuple[pa.StringArray, pa.StringArray, int]:
    """Number judged and logged queries by their ids, and create the table `impressions` from `usable`.

    Returns:
        The ids; each query as most often typed; the number of spellings merged into another.
    """
    connection.register("judged_texts", spellings.table())
    connection.execute(
        """CREATE TABLE numbered AS
        SELECT query_id, text, (row_number() OVER (ORDER BY query_id) - 1)::INTEGER AS number, spellings
        FROM (SELECT query_id, text, count(*) OVER (PARTITION BY query_id) AS spellings,
                row_number() OVER (PARTITION BY query_id ORDER BY typed DESC, text) AS rank
            FROM (SELECT query_id, text, sum(typed) AS typed FROM
                    (SELECT * FROM judged_texts UNION ALL
                     SELECT query_id, text, typed FROM typed SEMI JOIN usable USING (query_id))
                GROUP BY query_id, text))
        WHERE rank = 1"""
    )
    queries = connection.sql("SELECT query_id, text, spellings FROM numbered ORDER BY number").to_arrow_table()
    connection.execute(
        """CREATE TABLE impressions AS
        SELECT n.number AS query, u.product, u.position, u.shown, u.clicked, u.newest
        FROM usable u JOIN numbered n USING (query_id)"""
    )
    connection.execute("DROP TABLE usable")
    query_ids, texts = (queries[name].combine_chunks().cast(pa.string()) for name in ("query_id", "text"))
    return query_ids, texts, int(pc.sum(queries["spellings"]).as_py() or 0) - len(query_ids)


def _hash_positions(query_ids: pa.StringArray, queries: pa.StringArray, config: Prepare) -> np.ndarray:
    """Each query's position in hash order, in [0, 1); plurals share a position unless `plurals: apart`."""
    if config.plurals == "apart":
        keys = query_ids.to_pylist()
    else:
        keys = [normalize.split_key(text, config.plurals, config.language) for text in queries.to_pylist()]
    return np.array([hash_position(key, config.salt) for key in keys])


def _languages(product: np.ndarray, locales: pa.StringArray, products: int, config: Prepare) -> list[str]:
    """The language of each product: that of the most frequent locale of its judgements.

    Products without a known locale get the configured language or, if none is set, the language that all judgements
    share; if they have several, English.
    """
    language_of = {locale: languages.of_locale(locale) for locale in pc.unique(locales.drop_null()).to_pylist()}
    judged_languages = sorted({language for language in language_of.values() if language})
    default = config.language or (judged_languages[0] if len(judged_languages) == 1 else languages.DEFAULT)
    if not set(judged_languages) - {default}:
        return [default] * products
    locale_by_product = arrays.mode_by_group(product, locales, products).to_pylist()
    return [language_of.get(locale) or default for locale in locale_by_product]
