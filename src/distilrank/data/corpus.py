"""Catalogue, judgements and log under one numbering of queries and products: what all of preparation works on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilrank.config import Prepare, Privacy
from distilrank.core import arrays, languages, normalize, progress, schemas
from distilrank.core.errors import InputError
from distilrank.core.problems import EXAMPLES, Problems
from distilrank.data import raters, sql
from distilrank.data.catalogue import Catalogue, bare_ids
from distilrank.data.impressions import ImpressionStore, Pairs
from distilrank.data.log_store import Kept, LogStore, make_scrubber
from distilrank.data.sources.base import NO_IMPRESSIONS, Log, Source
from distilrank.data.splits import TAIL, hash_position, sides, strata

_UNKNOWN_CLIENTS = "does not tell who searched"
_NOT_LEFT_OUT = (_UNKNOWN_CLIENTS, "kept, ")
_REASONS = 3


@dataclass(frozen=True)
class Corpus:
    """What the source gave, checked, with queries and products as places; queries ascend by their ids."""

    catalogue: Catalogue
    query_ids: pa.StringArray
    queries: pa.StringArray
    """Each query as most often typed, white space collapsed."""
    position: np.ndarray
    """Place of each query in hash order, in [0, 1)."""
    side: np.ndarray
    """TRAIN, DEV or TEST of each query, judged or not."""
    judged: Pairs
    """Distinct, ascending."""
    ratings: np.ndarray
    targets: np.ndarray
    gains: np.ndarray
    raters: np.ndarray
    locales: pa.StringArray
    """Null where unknown."""
    languages: list[str]
    """Of each product, a key of `languages.LANGUAGES`."""
    log: ImpressionStore
    """Without impressions if there is no log."""
    logged: bool
    """Whether there is a log."""
    timed: bool
    """Whether it has a window of newest traffic."""
    impressions: np.ndarray
    """Of each query, in the training window (all of a log without time)."""
    newest: np.ndarray
    """Likewise in the newest traffic."""
    stratum: np.ndarray
    """Place in STRATA of each query."""
    merged: dict[str, int]
    agreement: dict[str, Any] | None
    """How the raters of a pair agree, as in the profile's `rater_agreement`; None where a pair has one rating."""
    privacy: dict[str, Any]
    """What was scrubbed and dropped, in counts; `judged`: judged queries that held each kind of personal data."""
    rows: dict[str, int]
    left_out: str
    """Why rows of the log were left out, the reason of most rows first, to be added to a message; empty: none were."""


def read(
    source: Source,
    config: Prepare,
    reference_start: str,
    newest_start: str,
    newest_end: str,
    *,
    connection: duckdb.DuckDBPyConnection,
    scratch: Path,
    problems: Problems,
) -> Corpus:
    """Read and check what `source` has; the window's bounds are those of `prepare.prepare`.

    Judged rows with the same query as typed, product, rating and rater are one, unless raters without a name rate
    pairs together. Spellings with one normal form are one query. Several ratings of a product become one as the source
    says; where it refuses them, spellings may still bring several: their mean weighted by raters counts. Of several
    locales the one that most rows have counts (of equally frequent ones the first by code point). Impressions of
    products that the catalogue lacks, of queries with too few clients, or outside both windows, are left out and
    counted.

    Args:
        connection: an empty database for the log (`logstore.connect`); it must outlive the corpus.
        scratch: folder for what does not fit memory, likewise.
        problems: gets all that is wrong and all that was left out.

    Raises:
        InputError: a table does not fit its schema, or judges what the catalogue lacks.
    """
    kept: list[Kept] = []
    log = source.log()
    if log is not None:  # first, while the catalogue does not take up memory beside it
        problems.extend(log.problems, once=True)
        if log.people and least_clients(log, config) < config.privacy.min_clients:
            problems.add(
                "log",
                f"{_UNKNOWN_CLIENTS}, so rare queries are kept; name the column in data.columns.client to drop "
                f"those of fewer than {config.privacy.min_clients} clients",
                fatal=False,
            )
        store = LogStore(Path(config.log_cache_dir) if config.log_cache_dir else scratch / "log", config.language)
        kept = store.ingest(log, config.privacy, reference_start[:10], newest_end[:10], problems)
        if kept and not any(part.files("pairs", "", "") for part in kept):
            told = next((problem.line() for problem in problems if problem.what.startswith(NO_IMPRESSIONS)), "")
            told = f"; {told}" if told else _left_out(log, problems)
            rows = sum(sum(part.days.values()) for part in kept)
            raise InputError(f"log: no impressions among its {rows} rows, expected some{told}")
    with progress.timed("prepare", "read the catalogue"):
        catalogue = Catalogue(source.products(problems), scratch, problems)
    with progress.timed("prepare", "read the judgements"):
        table = schemas.conform(source.judgements(problems), schemas.JUDGEMENTS, "judgements")
        table = _of_known_products(table, catalogue, problems)
        table, personal = _scrub(table, config.privacy, problems)
    return _assemble(
        source, config, (reference_start[:10], newest_start[:10], newest_end[:10]), catalogue, table, log, kept,
        connection, problems, personal,
    )  # fmt: skip


def _left_out(log: Log | None, problems: Problems) -> str:
    """See `Corpus.left_out`."""
    places = {"log", *(part.name for part in (log.parts if log else ()))}
    rows: Counter[str] = Counter()
    for problem in problems:
        if problem.where in places and not problem.fatal and not problem.what.startswith(_NOT_LEFT_OUT):
            rows[problem.what.removeprefix("left out, ")] += problem.rows
    reasons = [f"{what} ({count} rows)" for what, count in rows.most_common(_REASONS)]
    return f"; left out: {'; '.join(reasons)}" if reasons else ""


def _scrub(table: pa.Table, privacy: Privacy, problems: Problems) -> tuple[pa.Table, dict[str, int]]:
    """The judgements as the configuration keeps them, and how many of their queries hold each kind of personal data.

    Judged queries are only looked at unless `scrub_judgements` is set: a query that loses a part is another one and may
    fall on another side of the split.
    """
    if not (privacy.scrub or privacy.scrub_judgements):
        return table, {}
    scrubber = make_scrubber(privacy)
    encoded = table["query"].combine_chunks().dictionary_encode()
    scrubbed = [scrubber(text) for text in encoded.dictionary.to_pylist()]
    kinds = Counter(kind for query in scrubbed for kind in set(query.kinds))
    personal = pa.array([bool(query.kinds) for query in scrubbed], pa.bool_()).take(encoded.indices)
    if not privacy.scrub_judgements:
        what = (
            "kept, queries with what looks like personal data (" + ", ".join(sorted(kinds)) + "); set "
            "prepare.privacy.scrub_judgements to remove it, or correct the judgements"
        )
        problems.add("judgements", what, rows=pc.sum(personal).as_py() or 0, fatal=False)
        return table, dict(sorted(kinds.items()))
    texts = pa.array([query.text for query in scrubbed], pa.string()).take(encoded.indices)
    left = pa.array([not normalize.is_blank(query.text) for query in scrubbed], pa.bool_()).take(encoded.indices)
    what = "left out, rows whose query is nothing but personal data"
    problems.add("judgements", what, rows=len(left) - (pc.sum(left).as_py() or 0), fatal=False)
    table = table.set_column(table.column_names.index("query"), table.schema.field("query"), texts)
    return table.filter(left), dict(sorted(kinds.items()))


def least_clients(log: Log, config: Prepare) -> int:
    """How many clients must have typed a query for it to be kept; 1 where the log cannot tell.

    Raises:
        InputError: the log cannot tell, and the configuration refuses such logs.
    """
    privacy = config.privacy
    if log.people and not log.clients and privacy.min_clients > 1 and privacy.unknown_clients == "refuse":
        raise InputError(
            f"prepare.privacy.min_clients is {privacy.min_clients}, but the log does not tell who searched: name the "
            "column in data.columns.client, or set prepare.privacy.unknown_clients to keep"
        )
    return privacy.min_clients if log.people and log.clients else 1


def _why_all(log: Log | None, config: Prepare) -> str:
    """Why queries of a single client are kept; empty if they are not."""
    if log is None:
        return "no_log"
    if not log.people:
        return "made_up"
    if config.privacy.min_clients == 1:
        return "configured"
    return "" if log.clients else "unknown_clients"


def _of_known_products(table: pa.Table, catalogue: Catalogue, problems: Problems) -> pa.Table:
    known = pc.is_in(table["product_id"], value_set=catalogue.keys)
    strangers = pc.unique(table["product_id"].filter(pc.invert(known)))
    if len(strangers):
        problems.add(
            "judgements",
            f"products that are not in the catalogue{_hint(strangers, catalogue)}",
            rows=table.num_rows - pc.sum(known).as_py(),
            examples=[f"product {key!r}" for key in strangers[:EXAMPLES].to_pylist()],
        )
        table = table.filter(known)
    return table


def _hint(strangers: pa.Array, catalogue: Catalogue) -> str:
    """What to say if ids would match without leading zeros or as whole numbers."""
    bare = pa.array(set(bare_ids(catalogue.keys).to_pylist()), pa.string())
    alike = pc.sum(pc.is_in(bare_ids(strangers), value_set=bare)).as_py() or 0
    return f"; {alike} of {len(strangers)} differ from one by leading zeros or type alone: keep ids as text" * bool(
        alike
    )


def _assemble(
    source: Source,
    config: Prepare,
    bounds: tuple[str, str, str],
    catalogue: Catalogue,
    table: pa.Table,
    log: Log | None,
    kept: list[Kept],
    connection: duckdb.DuckDBPyConnection,
    problems: Problems,
    personal: dict[str, int],
) -> Corpus:
    timed = bool(bounds[1])
    privacy = _log_tables(connection, kept, bounds, config, log, catalogue, problems)
    encoded = table["query"].combine_chunks().dictionary_encode()
    spelling, spellings = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    keys = [normalize.query_id(text, config.language) for text in spellings]
    judged_texts = pa.table(
        {
            "query_id": pa.array(keys, pa.string()),
            "text": pa.array([" ".join(text.split()) for text in spellings], pa.string()),
            "typed": np.bincount(spelling, minlength=len(spellings)),
        }
    )
    connection.register("judged_texts", judged_texts)
    connection.execute(
        """CREATE TABLE places AS SELECT query_id, text, (row_number() OVER (ORDER BY query_id) - 1)::INTEGER AS place,
            spellings
        FROM (SELECT query_id, text, count(*) OVER (PARTITION BY query_id) AS spellings,
                row_number() OVER (PARTITION BY query_id ORDER BY typed DESC, text) AS rank
            FROM (SELECT query_id, text, sum(typed) AS typed FROM
                    (SELECT * FROM judged_texts UNION ALL
                     SELECT query_id, text, typed FROM typed SEMI JOIN known USING (query_id))
                GROUP BY query_id, text))
        WHERE rank = 1"""
    )
    found = connection.sql("SELECT query_id, text, spellings FROM places ORDER BY place").to_arrow_table()
    query_ids, queries = (found[name].combine_chunks().cast(pa.string()) for name in ("query_id", "text"))
    connection.execute(
        """CREATE TABLE impressions AS
        SELECT l.place AS query, k.product, k.position, k.shown, k.clicked, k.newest
        FROM known k JOIN places l USING (query_id)"""
    )
    connection.execute("DROP TABLE known")
    pool = ImpressionStore(connection)

    ids = query_ids.to_pylist()
    if config.plurals == "apart":
        position = np.array([hash_position(key, config.salt) for key in ids])
    else:
        texts = queries.to_pylist()
        split_keys = [normalize.split_key(text, config.plurals, config.language) for text in texts]
        position = np.array([hash_position(key, config.salt) for key in split_keys])
    query_of = pc.index_in(pa.array(keys, pa.string()), value_set=query_ids).to_numpy()
    product = pc.index_in(table["product_id"], value_set=catalogue.keys).to_numpy()
    query = query_of[spelling] if len(spelling) else spelling
    judged, ratings, gains, counts, locales, merged, agreement = _merge(
        spelling, query, product, table, len(catalogue), source.rating_conflicts, config.seed
    )
    merged["spellings"] = int(pc.sum(found["spellings"]).as_py() or 0) - len(ids)
    merged["products_told_twice"] = catalogue.rows - len(catalogue)
    targets = soft_targets(ratings, source.rating_range)
    impressions, newest = (pool.by_query(which, len(ids)) for which in (False, True))
    return Corpus(
        catalogue=catalogue,
        query_ids=query_ids,
        queries=queries,
        position=position,
        side=sides(position, config),
        judged=judged,
        ratings=ratings,
        targets=targets,
        gains=np.where(np.isnan(gains), targets, gains).astype(np.float32),
        raters=counts,
        locales=locales,
        languages=_languages(judged.product, locales, len(catalogue), config),
        log=pool,
        logged=log is not None,
        timed=timed,
        impressions=impressions,
        newest=newest,
        stratum=strata(impressions) if log is not None else np.full(len(ids), TAIL),
        merged=merged,
        agreement=agreement,
        privacy={**privacy, "scrub_judgements": config.privacy.scrub_judgements, "judged": personal},
        rows={
            "products": catalogue.rows,
            "judgements": table.num_rows,
            "log": sum(sum(part.days.values()) for part in kept),
        },
        left_out=_left_out(log, problems),
    )


def _log_tables(
    connection: duckdb.DuckDBPyConnection,
    kept: list[Kept],
    bounds: tuple[str, str, str],
    config: Prepare,
    log: Log | None,
    catalogue: Catalogue,
    problems: Problems,
) -> dict[str, Any]:
    """Make `typed` (query_id, text, typed) and `known` (the pairs that may be used); return what was dropped."""
    start, middle, end = bounds

    def parquet(table: str, columns: str) -> str:
        files = [path for part in kept for path in part.files(table, start, end)]
        if files:
            # DuckDB would take a `day=` from anywhere in the path, above the store too.
            day = "regexp_extract(filename, '/day=([^/]*)/[^/]*$', 1)"
            rows = f"read_parquet({sql.file_list(files)}, filename = true, hive_partitioning = false)"
            return f"(SELECT *, {day} AS day FROM {rows})"
        return f"(SELECT {columns} WHERE false)"

    pairs = parquet("pairs", "'' AS day, '' AS query_id, '' AS product_id, 1 AS position, 1 AS shown, 1 AS clicked")
    typed = parquet("queries", "'' AS day, '' AS query_id, '' AS text, 1 AS typed")
    clients = parquet("clients", "'' AS day, '' AS query_id, 1 AS client")
    people = parquet("pair_clients", "'' AS day, '' AS query_id, '' AS product_id, 1 AS client, false AS clicked")
    connection.register("products", pa.table({"product_id": catalogue.keys, "product": np.arange(len(catalogue))}))
    enough = least_clients(log, config) if log is not None else 1
    connection.execute(f"CREATE TABLE typed AS SELECT query_id, text, sum(typed) AS typed FROM {typed} GROUP BY ALL")
    connection.execute(
        f"""CREATE TABLE rare AS SELECT DISTINCT query_id FROM typed ANTI JOIN (
            SELECT query_id FROM {clients} GROUP BY query_id HAVING count(DISTINCT client) >= {enough}
        ) USING (query_id) WHERE {enough} > 1"""
    )
    connection.execute(
        f"""CREATE TABLE crowd AS SELECT query_id, product_id, count(*) FILTER (clicked) AS clickers
        FROM (SELECT query_id, product_id, client, bool_or(clicked) AS clicked FROM {people} GROUP BY ALL)
        WHERE {enough} > 1 GROUP BY ALL HAVING count(*) >= {enough}"""
    )
    connection.execute(
        f"""CREATE TABLE of_window AS SELECT query_id, product_id, position, sum(shown)::INTEGER AS shown,
            sum(clicked)::INTEGER AS clicked, {f"day >= '{middle}'" if middle else "false"} AS newest
        FROM {pairs} GROUP BY ALL"""
    )
    greater = "greatest(sum(shown), sum(clicked))"  # impressions of a pair: not every click has one in the log
    count = f"""SELECT count(DISTINCT query_id), count(DISTINCT (query_id, product_id)), coalesce(sum(shown), 0)::BIGINT
        FROM (SELECT query_id, product_id, {greater} AS shown FROM {{}} GROUP BY query_id, product_id, newest)"""
    (rare_queries, _, rare_rows) = connection.execute(
        count.format("of_window SEMI JOIN rare USING (query_id)")
    ).fetchall()[0]
    connection.execute("CREATE TABLE allowed AS SELECT * FROM of_window ANTI JOIN rare USING (query_id)")
    connection.execute("DROP TABLE of_window")
    few_pairs, few_rows, hidden_clicks = _leave_out_few(connection, enough, count) if enough > 1 else (0, 0, 0)
    # Not every click has its impression in the log, and not always at the same rank: who clicked has seen.
    connection.execute(
        """INSERT INTO allowed SELECT query_id, product_id, NULL, (sum(clicked) - sum(shown))::INTEGER, 0, newest
        FROM allowed GROUP BY query_id, product_id, newest HAVING sum(clicked) > sum(shown)"""
    )
    strangers = connection.sql(
        """SELECT product_id, sum(shown)::BIGINT AS shown FROM allowed ANTI JOIN products USING (product_id)
        GROUP BY product_id ORDER BY shown DESC, product_id"""
    ).to_arrow_table()
    connection.execute(
        """CREATE TABLE known AS SELECT a.query_id, p.product::INTEGER AS product, a.position, a.shown, a.clicked,
            a.newest FROM allowed a JOIN products p USING (product_id)"""
    )
    connection.execute("DROP TABLE allowed")
    problems.add("log", f"impressions of queries with fewer than {enough} clients", rows=rare_rows, fatal=False)
    what = f"impressions of products that a query showed to fewer than {enough} clients"
    problems.add("log", what, rows=few_rows, fatal=False)
    problems.add("log", f"clicks on products that fewer than {enough} clients clicked", rows=hidden_clicks, fatal=False)
    if strangers.num_rows:
        keys = strangers["product_id"].combine_chunks().cast(pa.string())
        problems.add(
            "log",
            f"impressions of products that are not in the catalogue{_hint(keys, catalogue)}",
            rows=pc.sum(strangers["shown"]).as_py(),
            examples=[f"product {key!r}" for key in keys[:EXAMPLES].to_pylist()],
            fatal=False,
        )
    # A file of the day before alone is there for its searches.
    reaching = [part for part in kept if not all(day < start for day in part.days)]
    outside = sum(rows for part in reaching for day, rows in part.days.items() if end and not start <= day < end)
    problems.add("log", "rows outside the log window, in files that reach into it", rows=outside, fatal=False)
    scrubbed: dict[str, dict[str, int]] = {}
    for part in kept:
        for kind, counts in part.facts["scrubbed"].items():
            total = scrubbed.setdefault(kind, {"rows": 0, "queries": 0})
            for name, value in counts.items():
                total[name] += value
    return {
        "scrub": config.privacy.scrub,
        "min_clients": enough,
        "kept_all": _why_all(log, config),
        "dropped_queries": rare_queries,
        "dropped_impressions": rare_rows,
        "dropped_pairs": few_pairs,
        "dropped_pair_impressions": few_rows,
        "hidden_clicks": hidden_clicks,
        "scrubbed": scrubbed,
    }


def _leave_out_few(connection: duckdb.DuckDBPyConnection, enough: int, count: str) -> tuple[int, int, int]:
    """Take out of `allowed` the pairs that are not in `crowd`, and of the others the clicks of too few clients.

    A pair's clients are counted over both windows, as a query's are: with a bound for each window the shorter one would
    lose more clicks and more of the low ranks, which would look like drift.

    Returns:
        Pairs, their impressions, and clicks that were taken out.
    """
    (_, pairs, rows) = connection.execute(
        count.format("allowed ANTI JOIN crowd USING (query_id, product_id)")
    ).fetchall()[0]
    connection.execute("ALTER TABLE allowed RENAME TO asked")
    (clicks,) = connection.execute(
        f"""SELECT coalesce(sum(clicked), 0)::BIGINT FROM asked JOIN crowd USING (query_id, product_id)
        WHERE clickers < {enough}"""
    ).fetchall()[0]
    connection.execute(
        f"""CREATE TABLE allowed AS SELECT * FROM (
            SELECT query_id, product_id, position, shown,
                CASE WHEN clickers < {enough} THEN 0 ELSE clicked END AS clicked, newest
            FROM asked JOIN crowd USING (query_id, product_id))
        WHERE shown + clicked > 0"""
    )
    connection.execute("DROP TABLE asked")
    return pairs, rows, clicks


def _merge(
    spelling: np.ndarray, query: np.ndarray, product: np.ndarray, table: pa.Table, products: int, rule: str, seed: int
) -> tuple[Pairs, np.ndarray, np.ndarray, np.ndarray, pa.StringArray, dict[str, int], dict[str, Any] | None]:
    """Make one row of each judged (query, product).

    Returns:
        Pairs, ratings, gains, raters, locales, how many rows became one why, and `Corpus.agreement`.
    """
    rating, stands_for = table["rating"].to_numpy(), table["raters"].to_numpy()
    gain = pc.fill_null(table["gain"], float("nan")).to_numpy()
    rater = pc.fill_null(table["rater"], -1).to_numpy()
    named = rater >= 0
    # The same row twice is one judgement, of as many raters as its fuller copy says; but where pairs are rated by
    # several people without a name, it may be two who agree.
    order = np.lexsort((-stands_for, rater, rating, product, spelling))
    repeated = np.zeros(len(order), bool)
    if len(order):
        columns = [column[order] for column in (spelling, product, rating, rater)]
        repeated[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
        repeated &= named[order] | (rule == "refuse")
    rows = np.sort(order[~repeated])
    pair, of_pair = np.unique(query.astype(np.int64) * products + product, return_inverse=True)
    # A rater counts once per pair, whatever the spelling; each row without a rater is one more of them.
    people = rater.max(initial=-1) + 1
    voice = np.where(named, of_pair * people + rater, len(pair) * people + np.arange(len(rater)))[rows]
    _, first, of_voice = np.unique(voice, return_index=True, return_inverse=True)
    voices = raters.reduce_ratings(rule, of_voice, rating[rows], stands_for[rows], len(first))
    kept = rows[first]
    place, weight = of_pair[kept], stands_for[kept]
    ratings = raters.reduce_ratings(rule, place, voices, weight, len(pair))
    count = np.bincount(place, weight, len(pair))
    gains = np.bincount(place, gain[kept] * weight, len(pair)) / np.maximum(count, 1)
    lowest, highest = raters.extremes(place, voices, len(pair))
    merged = {
        "identical_judgements": len(order) - len(rows),
        "judgements_of_other_spellings": len(np.unique(spelling.astype(np.int64) * products + product)) - len(pair),
        "ratings_averaged_over_spellings": int((lowest < highest).sum()) if rule == "refuse" else 0,
        "repeated_by_a_rater": len(rows) - len(kept),
    }
    agreement = None
    if named.any() or rule != "refuse":
        single = weight == 1
        agreement = {
            "rule": rule,
            "raters": len(np.unique(rater)) if named.all() else None,
            "ratings": len(kept),
            **raters.agreement(rule, place[single], voices[single], len(pair), seed),
        }
    pairs = Pairs(pair // products, pair % products)
    locales = arrays.mode_by_group(of_pair, table["locale"], len(pair))
    return pairs, ratings, gains, count.astype(np.int32), locales, merged, agreement


def _languages(product: np.ndarray, locales: pa.StringArray, products: int, config: Prepare) -> list[str]:
    """The language of each product: of the locale that most of its judgements have.

    Where no judgement has a locale that is known: the configured language; without one that of all judgements that have
    one, if it is the same, else English.
    """
    known = {locale: languages.of_locale(locale) for locale in pc.unique(locales.drop_null()).to_pylist()}
    found = sorted({language for language in known.values() if language})
    default = config.language or (found[0] if len(found) == 1 else languages.DEFAULT)
    if not set(found) - {default}:
        return [default] * products
    judged = arrays.mode_by_group(product, locales, products).to_pylist()
    return [known.get(locale) or default for locale in judged]


def soft_targets(ratings: np.ndarray, rating_range: tuple[float, float]) -> np.ndarray:
    """Ratings as soft targets in [0, 1], float32.

    The threshold of relevance goes through here too, since .665 as a 32-bit float is not .665 as a 64-bit one.
    """
    lowest, highest = rating_range
    return ((ratings - lowest) / (highest - lowest)).astype(np.float32)
