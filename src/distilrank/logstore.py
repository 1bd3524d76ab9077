"""Search logs as day aggregates: every part of a log is read once, scrubbed, counted and kept; windows add up days.

What is kept of a part: how often each product was shown and clicked at each rank for each query, how each query was
typed, and up to `min_clients` salted hashes of the clients that typed it, all by UTC day. Personal data in queries,
ids of clients and of searches go no further. All work is DuckDB's, which spills to disk, so memory does not follow the
size of a log.

A store is a folder:
    salt                    random, so that hashes tell nothing outside of it
    files/NAME.json         what is known of a part that has not changed since: its digest, its days
    parts/KEY/              aggregates of one part under one reading; part.json is written last
        pairs/day=DAY/      query_id, product_id, position, shown, clicked
        queries/day=DAY/    query_id, text, typed
        clients/day=DAY/    query_id, client
        searches.parquet    hash of each search and its query, for parts that name searches only
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from distilrank import artifacts, hardware, normalise, progress, records
from distilrank.config import Privacy
from distilrank.privacy import Scrubber
from distilrank.problems import Problem, Problems
from distilrank.sources import Log, Part

FORMAT = 1
"""Goes up with any change of what is kept of the same part, scrubbing included."""

UNTIMED = "none"
"""The day of rows without a time."""

MEMORY_MIB = 192
"""What a database may hold before it spills: it fills what it gets, and more made nothing faster."""

_TABLES = ("events", "mapped", "found", "searches", "resolved")
_MAX_POSITION = 1000  # deeper ones count as this one
_LONGEST = 500  # characters of a query; what is longer was pasted by accident, and takes long to scrub
_LEFT_OUT = {
    "unknown": "rows of a search that no query record tells of",
    "blank": "rows whose query is blank, or nothing but personal data",
    "long": f"rows whose query has more than {_LONGEST} characters",
}


@contextlib.contextmanager
def connect(scratch: Path, share: int = 1) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB database in a file of its own below `scratch`, deleted afterwards, with bounded memory.

    Args:
        share: how many such databases work at once; each gets its part of the threads.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".duckdb-") as folder:
        connection = duckdb.connect(str(Path(folder) / "work.duckdb"))
        try:
            connection.execute(f"SET memory_limit = '{MEMORY_MIB}MiB'")
            connection.execute(f"SET temp_directory = '{_quoted(folder)}'")
            connection.execute(f"SET threads = {max(hardware.cores() // share, 1)}")
            connection.execute("SET preserve_insertion_order = false")
            connection.execute("SET enable_progress_bar = false")
            connection.execute("SET TimeZone = 'UTC'")
            yield connection
        finally:
            connection.close()


def _quoted(value: object) -> str:
    return str(value).replace("'", "''")


def create_events(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the empty table `events` that parts append to."""
    types = {
        pa.timestamp("us"): "TIMESTAMP",
        pa.string(): "VARCHAR",
        pa.int32(): "INTEGER",
    }
    columns = ", ".join(f'"{field.name}" {types[field.type]}' for field in records.EVENTS)  # "at" is a keyword
    connection.execute(f"CREATE TABLE events ({columns})")


@dataclass(frozen=True)
class Kept:
    """The aggregates of one part."""

    folder: Path
    name: str
    days: dict[str, int]
    """Rows read of each day."""
    facts: dict[str, Any]
    """Counts: what was scrubbed, what became of searches."""
    problems: list[Problem]

    def files(self, table: str, start: str, end: str) -> list[str]:
        """The Parquet files of `table` with the days from `start` to before `end`; all days if both are empty."""
        found = []
        for folder in sorted((self.folder / table).glob("day=*")):
            day = folder.name.removeprefix("day=")
            if not end or start <= day < end:
                found += [str(path) for path in sorted(folder.glob("*.parquet"))]
        return found


class LogStore:
    """A store in `folder`, made if missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("files", "parts"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._salt = self._read_salt()

    def _read_salt(self) -> str:
        path = self.folder / "salt"
        if not path.exists():
            partial = path.with_name(f".salt.{os.getpid()}.partial")
            partial.touch(mode=0o600)
            partial.write_text(secrets.token_hex(16), encoding="ascii")
            with contextlib.suppress(FileExistsError):  # of two runs that begin at once, one makes it
                os.link(partial, path)
            partial.unlink()
        return path.read_text(encoding="ascii")

    # What is there ------------------------------------------------------------------------------------------------

    def summary(self, part: Part) -> dict[str, Any]:
        """Digest and days of `part`, remembered until it changes: {"key", "digest", "days": {day: rows}}."""
        path = self.folder / "files" / f"{artifacts.digest_bytes(part.name.encode())[:32]}.json"
        key = part.key()
        if path.exists():
            known = artifacts.read_json(path)
            if known["key"] == key:
                return known
        days = {_day(day): rows for day, rows in sorted(part.days().items(), key=lambda item: str(item[0]))}
        found = {"key": key, "digest": part.digest(), "days": days}
        artifacts.write_json(path, found)
        return found

    def summaries(self, log: Log) -> list[dict[str, Any]]:
        """`summary` of each part of `log`."""
        with ThreadPoolExecutor(hardware.cores()) as pool:
            return list(pool.map(self.summary, log.parts))

    def digests(self, log: Log, start: str, end: str) -> list[str]:
        """Digests of the parts that have rows in the window, in their order; of all parts if the window is empty."""
        return [
            found["digest"]
            for found in self.summaries(log)
            if not end or any(start <= day < end for day in found["days"])
        ]

    # Reading ------------------------------------------------------------------------------------------------------

    def ingest(self, log: Log, privacy: Privacy, start: str, end: str, problems: Problems) -> list[Kept]:
        """Read the parts of `log` with rows in the window that the store does not have yet; return them all.

        Args:
            log: its parts in an order in which those that tell of searches come first.
            privacy: what of a query is kept.
            start, end: days (YYYY-MM-DD), the end exclusive; both empty: everything.
            problems: gets what the parts' rows were left out for, also those of parts read earlier.
        """
        summaries = self.summaries(log)
        wanted = [
            (part, found)
            for part, found in zip(log.parts, summaries, strict=True)
            if not end or any(start <= day < end for day in found["days"])
        ]
        counter = progress.Counter("prepare", sum(sum(found["days"].values()) for _, found in wanted), "log rows")
        readings: list[_Reading] = []
        for part, found in wanted:
            settings = [FORMAT, found["digest"], log.settings, privacy.model_dump(mode="json")]
            folder = self.folder / "parts" / artifacts.digest_json(settings)[:32]
            near = [earlier for earlier in readings if _near(earlier.days, found["days"])]
            readings.append(_Reading(part, folder, found["days"], near))
        scrubber = Scrubber(privacy.phone_regions) if privacy.scrub else None
        kept: list[Kept] = []
        with _Workers(self.folder, len(readings)) as workers:

            def read(reading: _Reading) -> tuple[Kept, Problems]:
                known = _open(reading.folder)
                if known and not _may_find_more(known, reading.near):
                    reading.searches.set_result(known.facts["searches"])
                    return known, Problems()
                found = Problems(collect=problems.collect)
                return self._read(reading, privacy, scrubber, workers.connection(), found), found

            # A part waits for earlier ones only; those are begun first, so that no two wait for each other.
            for reading in readings:
                reading.done = workers.submit(_settle, reading, read)
            for reading in readings:
                known, seen = reading.done.result()
                counter.add(sum(reading.days.values()))
                if seen.fatal:  # a part that a run would stop at is not kept
                    problems.extend(seen)
                    continue
                kept.append(known)
                problems.extend(known.problems)
        return kept

    def _read(
        self,
        reading: _Reading,
        privacy: Privacy,
        scrubber: Scrubber | None,
        connection: duckdb.DuckDBPyConnection,
        found: Problems,
    ) -> Kept:
        part, target = reading.part, reading.folder
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        facts: dict[str, Any] = {}
        try:
            create_events(connection)
            part.load(connection, found)
            if not found.fatal:
                facts = _aggregate(connection, reading, partial, privacy, scrubber, self._salt, found)
                listed = [problem.to_json() for problem in found]
                artifacts.write_json(
                    partial / "part.json", {"name": part.name, "days": reading.days, "facts": facts, "problems": listed}
                )
                shutil.rmtree(target, ignore_errors=True)
                partial.replace(target)
        finally:
            for table in _TABLES:
                connection.execute(f"DROP TABLE IF EXISTS {table}")
            shutil.rmtree(partial, ignore_errors=True)
        return Kept(target, part.name, reading.days, facts, list(found))


class _Reading:
    """A part that is being read, beside others."""

    def __init__(self, part: Part, folder: Path, days: dict[str, int], near: list[_Reading]) -> None:
        self.part, self.folder, self.days, self.near = part, folder, days, near
        self.searches: Future[int] = Future()
        """How many searches the part tells of; known long before the part is done."""
        self.done: Future[tuple[Kept, Problems]]

    def searches_nearby(self) -> list[str]:
        """The files in which earlier parts around the same days tell of searches; waits for those that do."""
        found = []
        for other in self.near:
            if other.folder != self.folder and other.searches.result():
                other.done.result()
                found.append(str(other.folder / "searches.parquet"))
        return found


def _settle(reading: _Reading, read: Callable[[_Reading], tuple[Kept, Problems]]) -> tuple[Kept, Problems]:
    """Read a part, and let nobody wait for its searches if that fails."""
    try:
        return read(reading)
    finally:
        if not reading.searches.done():
            reading.searches.set_result(0)


class _Workers:
    """Threads that read parts, each with a database of its own: files of one day are too small to keep two cores busy.

    Args:
        scratch: folder for the databases.
        most: how many parts there are.
    """

    def __init__(self, scratch: Path, most: int) -> None:
        self._scratch, self._share = scratch, max(min(hardware.cores(), most), 1)
        self._own, self._stack, self._lock = threading.local(), contextlib.ExitStack(), threading.Lock()
        self._pool = ThreadPoolExecutor(self._share)
        self.submit = self._pool.submit

    def __enter__(self) -> _Workers:
        return self

    def connection(self) -> duckdb.DuckDBPyConnection:
        """The database of this thread."""
        if not hasattr(self._own, "connection"):
            with self._lock:
                self._own.connection = self._stack.enter_context(connect(self._scratch, self._share))
        return self._own.connection

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._stack.close()


def _open(folder: Path) -> Kept | None:
    if not (folder / "part.json").exists():
        return None
    found = artifacts.read_json(folder / "part.json")
    listed = [Problem(**value | {"examples": tuple(value["examples"])}) for value in found["problems"]]
    return Kept(folder, found["name"], found["days"], found["facts"], listed)


def _may_find_more(kept: Kept, near: Sequence[_Reading]) -> bool:
    """Whether searches that were unknown may be told by parts that have come since."""
    return bool(kept.facts["unknown_searches"]) and _names(near) != kept.facts["looked_in"]


def _names(near: Sequence[_Reading]) -> list[str]:
    return sorted(other.folder.name for other in near)


def _day(day: date | None) -> str:
    return UNTIMED if day is None else day.isoformat()


def _near(left: Iterable[str], right: Iterable[str]) -> bool:
    """Whether two sets of days touch: a search late in the evening is clicked on after midnight."""
    ordinals = [[date.fromisoformat(day).toordinal() for day in days if day != UNTIMED] for days in (left, right)]
    if not all(ordinals):
        return True
    (first, last), (begin, end) = ((min(days), max(days)) for days in ordinals)
    return first <= end + 1 and begin <= last + 1


def _aggregate(
    connection: duckdb.DuckDBPyConnection,
    reading: _Reading,
    folder: Path,
    privacy: Privacy,
    scrubber: Scrubber | None,
    salt: str,
    problems: Problems,
) -> dict[str, Any]:
    """Write the aggregates of the table `events` to `folder` and return the facts about it."""
    _map_queries(connection, scrubber)
    salted = f"md5_number_lower('{_quoted(salt)}' || {{}})"
    connection.execute(
        """CREATE TABLE searches AS
        SELECT e.search, arg_min(m.query_id, coalesce(e."at", TIMESTAMP '1970-01-01')) AS query_id,
            arg_min(m.text, coalesce(e."at", TIMESTAMP '1970-01-01')) AS text,
            CASE WHEN count(m.text) = 0 THEN min(m.why) END AS why
        FROM events e JOIN mapped m USING (query) WHERE e.search IS NOT NULL GROUP BY e.search"""
    )
    (told,) = connection.execute("SELECT count(*) FROM searches").fetchall()[0]
    if told:
        connection.execute(
            f"""COPY (SELECT {salted.format("search")} AS search, query_id, text, why FROM searches)
            TO '{_quoted(folder / "searches.parquet")}' (FORMAT parquet, COMPRESSION zstd)"""
        )
    reading.searches.set_result(told)
    (waiting,) = connection.execute(
        """SELECT count(*) FROM events e ANTI JOIN searches s USING (search)
        WHERE e.query IS NULL AND e.search IS NOT NULL"""
    ).fetchall()[0]
    others = reading.searches_nearby() if waiting else []
    if others:
        connection.execute(
            f"""INSERT INTO searches SELECT u.search, any_value(o.query_id), any_value(o.text), any_value(o.why)
            FROM (SELECT DISTINCT e.search FROM events e ANTI JOIN searches s USING (search)
                WHERE e.query IS NULL AND e.search IS NOT NULL) u
            JOIN read_parquet({others}) o ON o.search = {salted.format("u.search")} GROUP BY u.search"""
        )
    connection.execute(
        f"""CREATE TABLE resolved AS SELECT
            coalesce(strftime(e."at", '%Y-%m-%d'), '{UNTIMED}') AS day,
            CASE WHEN e.query IS NULL THEN s.query_id ELSE m.query_id END AS query_id,
            CASE WHEN e.query IS NULL THEN s.text ELSE m.text END AS text,
            CASE WHEN e.query IS NULL AND s.search IS NULL THEN 'unknown' WHEN e.query IS NULL THEN s.why ELSE m.why END
                AS why,
            e.product_id,
            CASE WHEN e.position > {_MAX_POSITION} THEN {_MAX_POSITION} ELSE e.position END AS position,
            e.shown, e.clicked,
            {salted.format("e.client")} AS client
        FROM events e LEFT JOIN mapped m ON m.query = e.query LEFT JOIN searches s ON s.search = e.search"""
    )
    connection.execute("DROP TABLE events")
    by_reason = connection.execute(
        """SELECT why, count(*) FROM resolved
        WHERE why = 'unknown' OR (why IS NOT NULL AND product_id IS NOT NULL) GROUP BY why"""
    ).fetchall()
    left_out: dict[str, int] = dict(by_reason)
    for why, what in _LEFT_OUT.items():
        problems.add(reading.part.name, what, rows=left_out.get(why, 0), fatal=False)
    selections = {
        "pairs": """SELECT day, query_id, product_id, position,
                greatest(sum(shown), sum(clicked))::INTEGER AS shown, sum(clicked)::INTEGER AS clicked
            FROM resolved WHERE query_id IS NOT NULL AND product_id IS NOT NULL AND shown + clicked > 0
            GROUP BY day, query_id, product_id, position""",
        "queries": """SELECT day, query_id, text, count(*)::INTEGER AS typed
            FROM resolved WHERE query_id IS NOT NULL GROUP BY day, query_id, text""",
        # As many hashes as the bound asks for prove that it is reached, on this day and in any window around it.
        "clients": f"""SELECT day, query_id, unnest(min(client, {privacy.min_clients})) AS client FROM (
                SELECT DISTINCT day, query_id, client FROM resolved WHERE query_id IS NOT NULL AND client IS NOT NULL
            ) GROUP BY day, query_id""",
    }
    for table, selection in selections.items():
        (folder / table).mkdir()
        connection.execute(
            f"""COPY ({selection}) TO '{_quoted(folder / table)}'
            (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (day))"""
        )
    kinds = connection.execute("SELECT kind, sum(rows), count(*) FROM found GROUP BY kind").fetchall()
    return {
        "unknown_searches": left_out.get("unknown", 0),
        "looked_in": _names(reading.near),
        "searches": told,
        "scrubbed": {kind: {"rows": int(rows), "queries": queries} for kind, rows, queries in sorted(kinds)},
    }


def _map_queries(connection: duckdb.DuckDBPyConnection, scrubber: Scrubber | None) -> None:
    """Make `mapped` (query as typed, query_id and text as kept, or why nothing is) and `found` (kinds)."""
    connection.execute("CREATE TABLE mapped (query VARCHAR, query_id VARCHAR, text VARCHAR, why VARCHAR)")
    connection.execute("CREATE TABLE found (kind VARCHAR, rows BIGINT)")
    typed = "SELECT query, count(*) FROM events WHERE query IS NOT NULL GROUP BY query"
    reader = connection.cursor().sql(typed).to_arrow_reader(1 << 16)  # a cursor: the loop inserts meanwhile
    for batch in reader:
        queries, rows = (column.to_pylist() for column in batch.columns)
        texts: list[str | None] = []
        reasons: list[str | None] = []
        kinds: list[tuple[str, int]] = []
        for query, count in zip(queries, rows, strict=True):
            text, why = query, None
            if len(query) > _LONGEST:
                text, why = "", "long"
            elif scrubber is not None:
                scrubbed = scrubber(query)
                text = scrubbed.text
                kinds += [(kind, count) for kind in scrubbed.kinds]
            text = " ".join(text.split())
            if not text.isascii() and not normalise.normal_form(text):
                text = ""  # nothing but characters that nobody sees
            texts.append(text or None)
            reasons.append(None if text else why or "blank")
        keys = [normalise.query_id(text) if text else None for text in texts]
        table = pa.table(
            [batch.column(0), *(pa.array(values, pa.string()) for values in (keys, texts, reasons))],
            names=["query", "query_id", "text", "why"],
        )
        connection.register("batch_of_queries", table)
        connection.execute("INSERT INTO mapped SELECT * FROM batch_of_queries")
        connection.unregister("batch_of_queries")
        if kinds:
            connection.executemany("INSERT INTO found VALUES (?, ?)", kinds)
