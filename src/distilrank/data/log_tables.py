"""Usable impressions of a log as DuckDB tables, computed from the daily aggregates of its parts.

Rows that are left out (rare queries, products shown to or clicked by too few clients, unknown products) are counted.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilrank.config import Prepare
from distilrank.core.errors import InputError
from distilrank.core.problems import EXAMPLES, Problems
from distilrank.data import sql
from distilrank.data.catalogue import Catalogue
from distilrank.data.log_aggregates import PartAggregates
from distilrank.data.sources.base import Log
from distilrank.data.window import LogWindow

# Impressions of a pair: not every click has its impression in the log.
_COUNTS = """SELECT count(DISTINCT query_id), count(DISTINCT (query_id, product_id)), coalesce(sum(shown), 0)::BIGINT
    FROM (SELECT query_id, product_id, greatest(sum(shown), sum(clicked)) AS shown FROM {}
        GROUP BY query_id, product_id, newest)"""


def required_clients(log: Log, config: Prepare) -> int:
    """Return the minimum number of clients of a query; 1 if the log has no clients.

    Raises:
        InputError: the log has no client ids, and the configuration refuses such logs.
    """
    privacy = config.privacy
    if log.people and not log.clients and privacy.min_clients > 1 and privacy.unknown_clients == "refuse":
        raise InputError(
            f"prepare.privacy.min_clients is {privacy.min_clients}, but the log has no client ids: name the "
            "column in data.columns.client, or set prepare.privacy.unknown_clients to keep"
        )
    return privacy.min_clients if log.people and log.clients else 1


def create_tables(
    connection: duckdb.DuckDBPyConnection,
    parts: list[PartAggregates],
    log: Log | None,
    window: LogWindow,
    catalogue: Catalogue,
    config: Prepare,
    problems: Problems,
) -> dict[str, Any]:
    """Create the tables of queries as typed and of usable impressions.

    `typed`: query_id, text, typed (how often). `usable`: query_id, product (index in the catalogue), position, shown,
    clicked, newest (whether in the newest traffic). Without a log both are empty.

    Args:
        connection: an empty database.
        parts: the aggregates of the log's parts.
        log: the log; None: there is none.
        window: the windows to keep.
        catalogue: the products; impressions of other products are left out.
        config: minimum number of clients of a query and of a product.
        problems: receives what was left out, not fatal.

    Returns:
        Counts of what was left out for privacy, as in the profile's `privacy`.
    """
    min_clients = required_clients(log, config) if log is not None else 1
    _load(connection, parts, window)
    _find_rare(connection, parts, window, min_clients)
    rare_queries, _, rare_rows = connection.execute(
        _COUNTS.format("in_window SEMI JOIN rare USING (query_id)")
    ).fetchall()[0]
    connection.execute("CREATE TABLE allowed AS SELECT * FROM in_window ANTI JOIN rare USING (query_id)")
    connection.execute("DROP TABLE in_window")
    few_pairs, few_rows, hidden_clicks = _drop_rare_pairs(connection, min_clients) if min_clients > 1 else (0, 0, 0)
    # A click may lack its impression in the log, or have it at another rank; a clicked product was seen.
    connection.execute(
        """INSERT INTO allowed SELECT query_id, product_id, NULL, (sum(clicked) - sum(shown))::INTEGER, 0, newest
        FROM allowed GROUP BY query_id, product_id, newest HAVING sum(clicked) > sum(shown)"""
    )
    what = f"impressions of queries with fewer than {min_clients} clients"
    problems.add("log", what, rows=rare_rows, fatal=False)
    what = f"impressions of products that a query showed to fewer than {min_clients} clients"
    problems.add("log", what, rows=few_rows, fatal=False)
    what = f"clicks on products that fewer than {min_clients} clients clicked"
    problems.add("log", what, rows=hidden_clicks, fatal=False)
    _drop_unknown_products(connection, catalogue, problems)
    _note_outside(parts, window, problems)
    return {
        "scrub": config.privacy.scrub,
        "min_clients": min_clients,
        "kept_all": _why_all_are_kept(log, config),
        "dropped_queries": rare_queries,
        "dropped_impressions": rare_rows,
        "dropped_pairs": few_pairs,
        "dropped_pair_impressions": few_rows,
        "hidden_clicks": hidden_clicks,
        "scrubbed": _sum_scrubbed(parts),
    }


def _scan(parts: list[PartAggregates], window: LogWindow, table: str, empty: str) -> str:
    """Return a subquery of a table's rows in all parts within the windows, with their `day`.

    Args:
        table: name of the table's folder in each part.
        empty: its columns as typed values, for the case that no part has a file.
    """
    files = [path for part in parts for path in part.files(table, window.first_day, window.end_day)]
    if not files:
        return f"(SELECT {empty} WHERE false)"
    # DuckDB would accept a `day=` anywhere in the path, even above the store.
    day = "regexp_extract(filename, '/day=([^/]*)/[^/]*$', 1)"
    rows = f"read_parquet({sql.file_list(files)}, filename = true, hive_partitioning = false)"
    return f"(SELECT *, {day} AS day FROM {rows})"


def _load(connection: duckdb.DuckDBPyConnection, parts: list[PartAggregates], window: LogWindow) -> None:
    """Create `typed` and `in_window`, the impressions of all queries and products."""
    typed = _scan(parts, window, "queries", "'' AS day, '' AS query_id, '' AS text, 1 AS typed")
    connection.execute(f"CREATE TABLE typed AS SELECT query_id, text, sum(typed) AS typed FROM {typed} GROUP BY ALL")
    columns = "'' AS day, '' AS query_id, '' AS product_id, 1 AS position, 1 AS shown, 1 AS clicked"
    is_newest = f"day >= '{window.newest_day}'" if window.is_timed else "false"
    connection.execute(
        f"""CREATE TABLE in_window AS SELECT query_id, product_id, position, sum(shown)::INTEGER AS shown,
            sum(clicked)::INTEGER AS clicked, {is_newest} AS newest
        FROM {_scan(parts, window, "pairs", columns)} GROUP BY ALL"""
    )


def _find_rare(
    connection: duckdb.DuckDBPyConnection, parts: list[PartAggregates], window: LogWindow, min_clients: int
) -> None:
    """Create `rare`, the queries of too few clients, and `crowd`, the pairs of enough clients, with their clicks."""
    clients = _scan(parts, window, "clients", "'' AS day, '' AS query_id, 1 AS client")
    connection.execute(
        f"""CREATE TABLE rare AS SELECT DISTINCT query_id FROM typed ANTI JOIN (
            SELECT query_id FROM {clients} GROUP BY query_id HAVING count(DISTINCT client) >= {min_clients}
        ) USING (query_id) WHERE {min_clients} > 1"""
    )
    columns = "'' AS day, '' AS query_id, '' AS product_id, 1 AS client, false AS clicked"
    pair_clients = _scan(parts, window, "pair_clients", columns)
    connection.execute(
        f"""CREATE TABLE crowd AS SELECT query_id, product_id, count(*) FILTER (clicked) AS clickers
        FROM (SELECT query_id, product_id, client, bool_or(clicked) AS clicked FROM {pair_clients} GROUP BY ALL)
        WHERE {min_clients} > 1 GROUP BY ALL HAVING count(*) >= {min_clients}"""
    )


def _drop_rare_pairs(connection: duckdb.DuckDBPyConnection, min_clients: int) -> tuple[int, int, int]:
    """Remove from `allowed` the pairs that are not in `crowd`, and the clicks of too few clients on the others.

    The clients of a pair are counted over both windows, like those of a query: with a minimum per window, the shorter
    window would lose more clicks and more low ranks, which would look like drift.

    Returns:
        The removed pairs, their impressions, and the removed clicks.
    """
    (_, pairs, rows) = connection.execute(
        _COUNTS.format("allowed ANTI JOIN crowd USING (query_id, product_id)")
    ).fetchall()[0]
    connection.execute("ALTER TABLE allowed RENAME TO before")
    (clicks,) = connection.execute(
        f"""SELECT coalesce(sum(clicked), 0)::BIGINT FROM before JOIN crowd USING (query_id, product_id)
        WHERE clickers < {min_clients}"""
    ).fetchall()[0]
    connection.execute(
        f"""CREATE TABLE allowed AS SELECT * FROM (
            SELECT query_id, product_id, position, shown,
                CASE WHEN clickers < {min_clients} THEN 0 ELSE clicked END AS clicked, newest
            FROM before JOIN crowd USING (query_id, product_id))
        WHERE shown + clicked > 0"""
    )
    connection.execute("DROP TABLE before")
    return pairs, rows, clicks


def _drop_unknown_products(connection: duckdb.DuckDBPyConnection, catalogue: Catalogue, problems: Problems) -> None:
    """Create `usable` from `allowed`: products by index, without those that the catalogue lacks."""
    connection.register("products", pa.table({"product_id": catalogue.keys, "product": np.arange(len(catalogue))}))
    unknown = connection.sql(
        """SELECT product_id, sum(shown)::BIGINT AS shown FROM allowed ANTI JOIN products USING (product_id)
        GROUP BY product_id ORDER BY shown DESC, product_id"""
    ).to_arrow_table()
    connection.execute(
        """CREATE TABLE usable AS SELECT a.query_id, p.product::INTEGER AS product, a.position, a.shown, a.clicked,
            a.newest FROM allowed a JOIN products p USING (product_id)"""
    )
    connection.execute("DROP TABLE allowed")
    if unknown.num_rows:
        keys = unknown["product_id"].combine_chunks().cast(pa.string())
        problems.add(
            "log",
            f"impressions of products that are not in the catalogue{catalogue.hint_at_altered_ids(keys)}",
            rows=pc.sum(unknown["shown"]).as_py(),
            examples=[f"product {key!r}" for key in keys[:EXAMPLES].to_pylist()],
            fatal=False,
        )


def _note_outside(parts: list[PartAggregates], window: LogWindow, problems: Problems) -> None:
    """Report the rows outside the windows in parts that overlap them."""
    # A part that has only the day before was read for its searches.
    reaching = [part for part in parts if not all(day < window.first_day for day in part.days)]
    outside = sum(rows for part in reaching for day, rows in part.days.items() if not window.has_day(day))
    problems.add("log", "rows outside the log window, in files that overlap it", rows=outside, fatal=False)


def _sum_scrubbed(parts: list[PartAggregates]) -> dict[str, dict[str, int]]:
    """Count the rows and queries with personal data, by kind."""
    totals: dict[str, Counter[str]] = {}
    for part in parts:
        for kind, counts in part.facts["scrubbed"].items():
            totals.setdefault(kind, Counter({"rows": 0, "queries": 0})).update(counts)
    return {kind: dict(counts) for kind, counts in totals.items()}


def _why_all_are_kept(log: Log | None, config: Prepare) -> str:
    """Return why queries of a single client are kept; empty if they are not."""
    if log is None:
        return "no_log"
    if not log.people:
        return "made_up"
    if config.privacy.min_clients == 1:
        return "configured"
    return "" if log.clients else "unknown_clients"
