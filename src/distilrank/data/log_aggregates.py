"""Aggregate a part of a search log by day in DuckDB: scrub queries, resolve searches, count.

`log_store` documents the tables that are written.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from distilrank.core import normalize
from distilrank.core.problems import Problem, Problems
from distilrank.data import sql
from distilrank.data.privacy import Scrubber
from distilrank.data.sources.base import Part

UNTIMED = "none"
"""The day of rows without a time."""

TABLES = ("events", "mapped", "found", "searches", "resolved", "people", "who", "clients", "elsewhere", "row_ids")
"""Tables that reading a part may leave in the database."""

_REPEATED = 0.1
"""Share of duplicate rows from which they are reported: people seldom do the same thing twice in one second."""
_LEAST_REPEATED = 10  # rows; fewer are no evidence
_COMPARED = 1 << 20  # approximate number of rows that are compared with one another
_MAX_POSITION = 1000  # deeper ranks count as this one
_LONGEST = 500  # characters of a query; longer ones were pasted by accident, and are slow to scrub
_LEFT_OUT = {
    "unknown": "rows of a search without a query record",
    "blank": "rows whose query is blank or consists of personal data only",
    "long": f"rows whose query has more than {_LONGEST} characters",
}


@dataclass(frozen=True)
class PartAggregates:
    """The aggregates of one part."""

    folder: Path
    name: str
    days: dict[str, int]
    """Rows read of each day."""
    facts: dict[str, Any]
    """Counts of what was scrubbed and of how searches were resolved."""
    problems: list[Problem]

    def files(self, table: str, start: str, end: str) -> list[str]:
        """Return the Parquet files of `table` for the days from `start`, before `end`; all days if both are empty."""
        paths: list[str] = []
        for folder in sorted((self.folder / table).glob("day=*")):
            day = folder.name.removeprefix("day=")
            if not end or start <= day < end:
                paths += [str(path) for path in sorted(folder.glob("*.parquet"))]
        return paths


class Reading:
    """A part that is being read concurrently with others."""

    def __init__(self, part: Part, key: str, days: dict[str, int], near: list[Reading], before: list[Reading]) -> None:
        self.part, self.key, self.days, self.near, self.before = part, key, days, near, before
        self.searches: Future[int] = Future()
        """Number of searches with query records in the part; set long before the part is done."""
        self.done: Future[tuple[PartAggregates, Problems]]

    def names(self) -> list[str]:
        """Earlier parts with the same or adjacent days."""
        return sorted(other.key for other in self.near)

    def searches_nearby(self) -> list[str]:
        """Return the files of searches of the nearby parts; waits for those that have any."""
        with_searches = [other for other in self.near if other.searches.result()]
        return [str(other.done.result()[0].folder / "searches.parquet") for other in with_searches]

    def rows_before(self) -> list[str]:
        """Return the row-id files of the earlier parts that may contain rows of this one; waits for them."""
        files = [other.done.result()[0].folder / "rows.parquet" for other in self.before]
        return [str(file) for file in files if file.exists()]


def aggregate(
    connection: duckdb.DuckDBPyConnection,
    reading: Reading,
    folder: Path,
    min_clients: int,
    scrubber: Scrubber | None,
    language: str,
    key: bytes,
    problems: Problems,
) -> dict[str, Any]:
    """Write the aggregates of the table `events` to `folder`.

    Args:
        connection: with the table `events`, which is dropped.
        reading: the part, and the parts that it may wait for.
        folder: an empty folder for the tables.
        min_clients: largest number of clients to store per query and per pair.
        scrubber: removes personal data from queries; None: queries are stored as typed.
        language: `prepare.language`, if it affects normal forms.
        key: key of the hashes of clients, searches and rows.
        problems: receives what was left out.

    Returns:
        Counts: what was scrubbed, what became of searches.
    """
    name = reading.part.name
    _define_keyed(connection, key)
    _leave_out_repeated(connection, reading, folder, problems)
    checksum = _compare_rows(connection, name, problems)
    _map_queries(connection, scrubber, language)
    searches = _write_searches(connection, folder)
    reading.searches.set_result(searches)
    _find_searches_elsewhere(connection, reading)
    connection.execute(
        f"""CREATE TEMP TABLE resolved AS SELECT e."at"::DATE AS day, e.product_id,
            CASE WHEN e.query IS NULL THEN s.id ELSE m.id END AS id,
            CASE WHEN e.position > {_MAX_POSITION} THEN {_MAX_POSITION} ELSE e.position END AS position,
            e.shown, e.clicked, e.client
        FROM events e LEFT JOIN mapped m ON m.query = e.query LEFT JOIN searches s ON s.search = e.search"""
    )
    connection.execute("DROP TABLE events")
    left_out = _count_left_out(connection)
    for reason, what in _LEFT_OUT.items():
        problems.add(name, what, rows=left_out.get(reason, 0), fatal=False)
    _keep_clients(connection, min_clients)
    _write_tables(connection, folder, min_clients)
    kinds = connection.execute("SELECT kind, sum(rows), count(*) FROM found GROUP BY kind").fetchall()
    return {
        "rows": checksum,
        "unknown_searches": left_out.get("unknown", 0),
        "looked_in": reading.names(),
        "searches": searches,
        "scrubbed": {kind: {"rows": int(rows), "queries": queries} for kind, rows, queries in sorted(kinds)},
    }


def _hash_of(value: str) -> str:
    """SQL expression of the keyed hash of a search."""
    return _number(f"keyed('search' || {value})", "UBIGINT")


def _write_searches(connection: duckdb.DuckDBPyConnection, folder: Path) -> int:
    """Create and write `searches`, the first query of each search of the part; return their number."""
    connection.execute(
        """CREATE TEMP TABLE searches AS SELECT search, first.id AS id, first."at" AS "at" FROM (
            SELECT e.search, min({'blank': m.text IS NULL, 'at': coalesce(e."at", TIMESTAMP '1970-01-01'),
                'query': e.query, 'id': m.id}) AS first
            FROM events e JOIN mapped m USING (query) WHERE e.search IS NOT NULL GROUP BY e.search)"""
    )
    (count,) = connection.execute("SELECT count(*) FROM searches").fetchall()[0]
    if count:
        connection.execute(
            f"""COPY (SELECT {_hash_of("search")} AS search, query_id, text, why, "at"
                FROM searches JOIN mapped USING (id))
            TO {sql.quoted(folder / "searches.parquet")} (FORMAT parquet, COMPRESSION zstd)"""
        )
    return count


def _find_searches_elsewhere(connection: duckdb.DuckDBPyConnection, reading: Reading) -> None:
    """Add to `searches` and `mapped` the searches whose query is only in other parts."""
    (waiting,) = connection.execute(
        """SELECT count(*) FROM events e ANTI JOIN searches s USING (search)
        WHERE e.query IS NULL AND e.search IS NOT NULL"""
    ).fetchall()[0]
    files = reading.searches_nearby() if waiting else []
    if not files:
        return
    connection.execute(
        f"""CREATE TEMP TABLE elsewhere AS
        SELECT search, first, (SELECT count(*) FROM mapped) + row_number() OVER () AS id FROM (
            SELECT u.search, min({{'blank': o.text IS NULL, 'at': o."at", 'query_id': o.query_id, 'text': o.text,
                'why': o.why}}) AS first
            FROM (SELECT DISTINCT e.search FROM events e ANTI JOIN searches s USING (search)
                WHERE e.query IS NULL AND e.search IS NOT NULL) u
            JOIN read_parquet({sql.file_list(files)}, hive_partitioning = false) o
                ON o.search = {_hash_of("u.search")} GROUP BY u.search)"""
    )
    connection.execute("INSERT INTO mapped SELECT NULL, id, first.query_id, first.text, first.why FROM elsewhere")
    connection.execute('INSERT INTO searches SELECT search, id, first."at" FROM elsewhere')


def _count_left_out(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Count the rows of `resolved` without a query by reason, a key of _LEFT_OUT."""
    return dict(
        connection.execute(
            """SELECT CASE WHEN r.id IS NULL THEN 'unknown' ELSE m.why END AS reason, count(*)
            FROM resolved r LEFT JOIN mapped m USING (id)
            WHERE r.id IS NULL OR (m.why IS NOT NULL AND r.product_id IS NOT NULL) GROUP BY reason"""
        ).fetchall()
    )


def _write_tables(connection: duckdb.DuckDBPyConnection, folder: Path, min_clients: int) -> None:
    """Write each table of the part to a folder, by day."""
    day = f"coalesce(strftime(day, '%Y-%m-%d'), '{UNTIMED}') AS day"
    selections = {
        "pairs": f"""SELECT {day}, query_id, product_id, position, sum(shown)::INTEGER AS shown,
                sum(clicked)::INTEGER AS clicked
            FROM (SELECT day, id, product_id, position, sum(shown) AS shown, sum(clicked) AS clicked FROM resolved
                WHERE product_id IS NOT NULL AND shown + clicked > 0 GROUP BY day, id, product_id, position)
            JOIN mapped USING (id) WHERE query_id IS NOT NULL GROUP BY ALL""",
        "queries": f"""SELECT {day}, query_id, text, sum(typed)::INTEGER AS typed
            FROM (SELECT day, id, count(*) AS typed FROM resolved GROUP BY day, id)
            JOIN mapped USING (id) WHERE query_id IS NOT NULL GROUP BY ALL""",
        "clients": f"SELECT {day}, query_id, client FROM clients",
        "pair_clients": f"SELECT {day}, query_id, product_id, client, clicked FROM ({_pair_clients(min_clients)})",
    }
    if min_clients == 1:  # they are never read
        del selections["pair_clients"]
    for table, selection in selections.items():
        (folder / table).mkdir()
        connection.execute(
            f"""COPY ({selection}) TO {sql.quoted(folder / table)}
            (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (day))"""
        )


def _leave_out_repeated(
    connection: duckdb.DuckDBPyConnection, reading: Reading, folder: Path, problems: Problems
) -> None:
    """Delete events that repeat the row id of an earlier event, in this or an earlier part; store hashes of the ids."""
    if not connection.execute("SELECT count(row_id) FROM events").fetchall()[0][0]:
        return
    connection.execute(
        f"""CREATE TEMP TABLE row_ids AS SELECT {_number("keyed('row' || row_id)", "UBIGINT")} AS id,
            min(rowid) AS first FROM events WHERE row_id IS NOT NULL GROUP BY id"""
    )
    before = reading.rows_before()
    if before:
        files = f"read_parquet({sql.file_list(before)}, hive_partitioning = false)"
        connection.execute(f"DELETE FROM row_ids WHERE id IN (SELECT id FROM {files})")
    (deleted,) = connection.execute(
        "DELETE FROM events WHERE row_id IS NOT NULL AND rowid NOT IN (SELECT first FROM row_ids)"
    ).fetchall()[0]
    what = "left out, rows with the row id of an earlier one"
    problems.add(reading.part.name, what, rows=deleted, fatal=False)
    connection.execute(
        f"""COPY (SELECT id FROM row_ids) TO {sql.quoted(folder / "rows.parquet")}
        (FORMAT parquet, COMPRESSION zstd)"""
    )


def _compare_rows(connection: duckdb.DuckDBPyConnection, name: str, problems: Problems) -> str:
    """Report many duplicate events; return a checksum of all events that does not depend on their order.

    Only events with a time of day and without an id are compared; without a time, many rows are equal.

    Returns:
        The checksum; empty if an event has no time, or if there are too few events for it to be meaningful.
    """
    (rows,) = connection.execute("SELECT count(*) FROM events").fetchall()[0]
    one_in = max(rows // _COMPARED, 1)  # by hash, which duplicate rows share
    timed, total, compared, repeated = connection.execute(
        f"""SELECT count(*) FILTER (timed), sum(row), count(row) FILTER (compared),
            count(row) FILTER (compared) - count(DISTINCT row) FILTER (compared)
        FROM (SELECT row, timed, timed AND NOT named AND row % {one_in} = 0 AS compared FROM (
            SELECT "at" <> date_trunc('day', "at") AS timed, row_id IS NOT NULL AS named,
                hash("at", search, query, product_id, position, shown, clicked, client) AS row FROM events))"""
    ).fetchall()[0]
    if repeated >= max(_REPEATED * compared, _LEAST_REPEATED):
        about = "" if one_in == 1 else "about "
        problems.add(
            name,
            f"kept, {about}{repeated / compared:.0%} of its rows repeat another one in all columns read: if they were "
            "delivered twice, name a column with the id of a row in data.columns.row_id",
            rows=repeated * one_in,
            fatal=False,
        )
    return str(total) if timed == rows >= _LEAST_REPEATED else ""


def _define_keyed(connection: duckdb.DuckDBPyConnection, key: bytes) -> None:
    """Create the macro `keyed(text)`: HMAC-SHA256 under the key, in hexadecimal (RFC 2104)."""
    block = hashlib.sha256(key).digest().ljust(64, b"\0")
    inner, outer = ("".join(f"\\x{byte ^ pad:02X}" for byte in block) for pad in (0x36, 0x5C))
    connection.execute(
        f"""CREATE OR REPLACE TEMP MACRO keyed(content) AS
        sha256('{outer}'::BLOB || unhex(sha256('{inner}'::BLOB || encode(content))))"""
    )


def _number(digest: str, type_name: str) -> str:
    """SQL expression of the first digits of a hexadecimal digest as a number."""
    digits = {"UBIGINT": 16, "UINTEGER": 8}[type_name]
    return f"('0x' || left({digest}, {digits}))::{type_name}"


def _pair_clients(min_clients: int) -> str:
    """Select, for each day, query and product, the smallest hashes of the clients who saw it and of those who clicked.

    At most `min_clients` of either kind are kept. 32 bits distinguish a handful of clients, and identify nobody.
    """
    hashed = _number("sha256(person || query_id || product_id)", "UINTEGER")
    return f"""SELECT * FROM (
            SELECT day, query_id, product_id, {hashed} AS client, max(clicked) > 0 AS clicked
            FROM (SELECT day, id, product_id, client, max(clicked) AS clicked FROM resolved
                WHERE client IS NOT NULL AND product_id IS NOT NULL AND shown + clicked > 0 GROUP BY ALL)
            JOIN people USING (client) JOIN mapped USING (id) WHERE query_id IS NOT NULL GROUP BY ALL)
        QUALIFY row_number() OVER (PARTITION BY day, query_id, product_id ORDER BY client) <= {min_clients} OR (clicked
            AND row_number() OVER (PARTITION BY day, query_id, product_id, clicked ORDER BY client) <= {min_clients})"""


def _keep_clients(connection: duckdb.DuckDBPyConnection, min_clients: int) -> None:
    """Create `clients`: for each day and query, the smallest hashes of at most `min_clients` clients who typed it.

    That many hashes prove that the minimum is reached, on this day and in any window around it. The query is part of
    the hashed text, so that the searches of one client cannot be linked.
    """
    connection.execute(
        """CREATE TEMP TABLE people AS SELECT client, keyed('client' || client) AS person
        FROM (SELECT DISTINCT client FROM resolved WHERE client IS NOT NULL)"""
    )
    # A hash derived from a keyed hash needs no key: `person` is just as secret and as long.
    connection.execute(
        f"""CREATE TEMP TABLE who AS SELECT DISTINCT day, query_id,
            {_number("sha256(person || query_id)", "UBIGINT")} AS client
        FROM (SELECT DISTINCT day, id, client FROM resolved WHERE client IS NOT NULL)
        JOIN people USING (client) JOIN mapped USING (id) WHERE query_id IS NOT NULL"""
    )
    connection.execute(
        "CREATE TEMP TABLE clients AS SELECT day, query_id, min(client) AS client FROM who GROUP BY day, query_id"
    )
    # One pass per hash, since DuckDB's aggregate of the n smallest values does not spill.
    for _ in range(min_clients - 1):
        connection.execute(
            """INSERT INTO clients SELECT w.day, w.query_id, min(w.client) FROM who w
            JOIN (SELECT day, query_id, max(client) AS last FROM clients GROUP BY day, query_id) c
                ON c.day IS NOT DISTINCT FROM w.day AND c.query_id = w.query_id AND w.client > c.last
            GROUP BY w.day, w.query_id"""
        )


def _map_queries(connection: duckdb.DuckDBPyConnection, scrubber: Scrubber | None, language: str) -> None:
    """Create `mapped` and `found`.

    `mapped` has each query as typed, its number, its query_id and text as stored, or the reason why it is left out.
    `found` counts the rows with each kind of personal data.
    """
    connection.execute("CREATE TABLE mapped (query VARCHAR, id BIGINT, query_id VARCHAR, text VARCHAR, why VARCHAR)")
    connection.execute("CREATE TABLE found (kind VARCHAR, rows BIGINT)")
    typed = "SELECT query, count(*) FROM events WHERE query IS NOT NULL GROUP BY query"
    reader = connection.cursor().sql(typed).to_arrow_reader(1 << 16)  # a separate cursor, since the loop inserts
    count = 0
    for batch in reader:
        queries, rows = (column.to_pylist() for column in batch.columns)
        texts: list[str | None] = []
        reasons: list[str | None] = []
        kinds: list[tuple[str, int]] = []
        for query, often in zip(queries, rows, strict=True):
            text, why = query, None
            if len(query) > _LONGEST:
                text, why = "", "long"
            elif scrubber is not None:
                scrubbed = scrubber(query)
                text = scrubbed.text
                kinds += [(kind, often) for kind in sorted(set(scrubbed.kinds))]
            text = " ".join(text.split())
            if normalize.is_blank(text):
                text = ""  # invisible characters only
            texts.append(text or None)
            reasons.append(None if text else why or "blank")
        keys = [normalize.query_id(text, language) if text else None for text in texts]
        table = pa.table(
            [
                batch.column(0),
                pa.array(range(count + 1, count + 1 + len(queries)), pa.int64()),
                *(pa.array(values, pa.string()) for values in (keys, texts, reasons)),
            ],
            names=["query", "id", "query_id", "text", "why"],
        )
        count += len(queries)
        connection.register("batch_of_queries", table)
        connection.execute("INSERT INTO mapped SELECT * FROM batch_of_queries")
        connection.unregister("batch_of_queries")
        if kinds:
            connection.executemany("INSERT INTO found VALUES (?, ?)", kinds)
