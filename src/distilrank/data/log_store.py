"""Search logs as day aggregates: every part of a log is read once, scrubbed, counted and kept; windows add up days.

What is kept of a part: how often each product was shown and clicked at each rank for each query, how each query was
typed, and up to `min_clients` keyed hashes of the clients behind each query and each of its products, all by
UTC day. Personal data in queries, ids of clients and of searches go no further. All work is DuckDB's, which spills to
disk, so memory does not follow the size of a log.

Hashes of clients and searches are HMAC-SHA256 under a key from a Secret (`CLIENT_KEY`), so that a reader of the store
cannot try ids on it; without a Secret the key is the file `salt` beside them.

A store is a folder:
    salt                    random key of the hashes, unless CLIENT_KEY is set
    key.json                what proves the key to be the one that the hashes were made with
    files/NAME.json         what is known of a part that has not changed since: its digest, its days
    parts/KEY/              aggregates of one part under one reading; part.json is written last
        pairs/day=DAY/      query_id, product_id, position, shown, clicked
        queries/day=DAY/    query_id, text, typed
        clients/day=DAY/    query_id, client
        pair_clients/day=DAY/   query_id, product_id, client, clicked
        searches.parquet    hash of each search and its query, for parts that name searches only
        rows.parquet        hash of each row's id, where rows have ids, for parts that deliver a row again
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from distilrank.config import Privacy
from distilrank.core import artifacts, hardware, normalize, progress, schemas
from distilrank.core.errors import InputError
from distilrank.core.problems import Problem, Problems
from distilrank.core.scratch import scratch_folder
from distilrank.data import privacy as scrubbing
from distilrank.data import sql
from distilrank.data.privacy import Scrubber
from distilrank.data.sources.base import Log, Part

FORMAT = 3
"""Goes up with any change of what is kept of the same part, scrubbing included."""

READING_CODE = (
    Path(str(normalize.__file__)),
    *sorted(Path(str(scrubbing.__file__)).parent.glob("*.py")),
)
"""The files whose code decides what is kept of a query: a change of their bytes reads every part again."""

UNTIMED = "none"
"""The day of rows without a time."""

MEMORY_MIB = 160
"""What a database may hold before it spills: it fills what it gets, and more made nothing faster."""

CLIENT_KEY = "DISTILRANK_CLIENT_KEY"
"""The environment variable that holds the key of the hashes; of pods, from a Secret in `cluster.secrets`."""
_KEY_CHARACTERS = 32  # at least: 128 bits in hexadecimal
_MOST_WORKERS = 4  # each holds MEMORY_MIB, and scrubbing keeps no more busy
_TABLES = ("events", "mapped", "found", "searches", "resolved", "people", "who", "clients", "told_elsewhere", "row_ids")
_REPEATED = 0.1
"""Share of rows like another from which on it is said: people do the same thing in the same second, but not often."""
_LEAST_REPEATED = 10  # rows; fewer are no sign of anything
_COMPARED = 1 << 20  # rows, about, that are compared with one another
_MAX_POSITION = 1000  # deeper ones count as this one
_LONGEST = 500  # characters of a query; what is longer was pasted by accident, and takes long to scrub
_LEFT_OUT = {
    "unknown": "rows of a search that no query record tells of",
    "blank": "rows whose query is blank, or nothing but personal data",
    "long": f"rows whose query has more than {_LONGEST} characters",
}


@contextlib.contextmanager
def connect(base: Path, share: int = 1) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB database in a file of its own below `base`, deleted afterwards, with bounded memory.

    Args:
        base: a scratch folder (`scratch.scratch_folder`): DuckDB writes what it holds there in the clear.
        share: how many such databases work at once; each gets its part of the threads.

    Raises:
        InputError: as for `check_path`.
    """
    check_path(base)
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as folder:
        connection = duckdb.connect(f"{folder}/work.duckdb")
        try:
            connection.execute(f"SET memory_limit = '{MEMORY_MIB}MiB'")
            connection.execute(f"SET temp_directory = {sql.quoted(folder)}")
            connection.execute(f"SET threads = {max(hardware.cores() // share, 1)}")
            connection.execute("SET preserve_insertion_order = false")
            connection.execute("SET enable_progress_bar = false")
            connection.execute("SET TimeZone = 'UTC'")
            yield connection
        finally:
            connection.close()


def check_path(folder: Path) -> None:
    """Refuse a folder in which DuckDB cannot keep a database, whatever the file system takes.

    Raises:
        InputError: its path holds a question mark or a backslash.
    """
    for character in "?\\":
        if character in str(folder.absolute()):  # DuckDB makes a path absolute itself
            raise InputError(
                f"{folder}: a {character!r} in the path of a folder for work files, which DuckDB cannot open: run "
                "from another folder, and name others in prepare.log_cache_dir and TMPDIR"
            )


def create_events(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the empty table `events` that parts append to."""
    types = {
        pa.timestamp("us"): "TIMESTAMP",
        pa.string(): "VARCHAR",
        pa.int32(): "INTEGER",
    }
    columns = ", ".join(f'"{field.name}" {types[field.type]}' for field in schemas.EVENTS)  # "at" is a keyword
    connection.execute(f"CREATE TABLE events ({columns})")


@dataclass(frozen=True)
class PartAggregates:
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

    def __init__(self, folder: Path, language: str = "") -> None:
        check_path(folder)
        self.folder = folder
        self.language = language if language in normalize.DOTLESS else ""  # for others a query has the same key
        for name in ("files", "parts"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        artifacts.remove_stale(folder / "parts")
        self._key = self._read_key()

    def _read_key(self) -> bytes:
        """The key of the hashes: another one than before would make two clients of one."""
        path, proof = self.folder / "salt", self.folder / "key.json"
        used = proof.exists() or any((self.folder / "parts").iterdir())  # before `path`: another run may make all three
        remedy = f"restore it, or delete {self.folder}, which is made again from the log"
        key, origin = os.environ.get(CLIENT_KEY), CLIENT_KEY
        if key is None:
            origin = str(path)
            if used and not path.exists():
                raise InputError(
                    f"{path}: missing, expected the key of the store's hashes of clients: set {CLIENT_KEY} if the key "
                    f"came from there, {remedy}"
                )
            if not path.exists():
                with artifacts.replacing(path, mode=0o600, keep_existing=True) as handle:  # of two runs, one makes it
                    handle.write(secrets.token_hex(32).encode())
            key = path.read_text(encoding="utf-8", errors="replace")
        key = key.strip()
        if len(key) < _KEY_CHARACTERS:
            how = "make one with `openssl rand -hex 32`" if origin == CLIENT_KEY else remedy
            raise InputError(f"{origin}: a key of {len(key)} characters, expected {_KEY_CHARACTERS} or more; {how}")
        digest = hmac.new(key.encode(), b"distilrank log store", "sha256").hexdigest()[:32]
        if not proof.exists():
            artifacts.write_json(proof, {"proof": digest})
        elif artifacts.read_json(proof).get("proof") != digest:
            raise InputError(
                f"{origin}: not the key that the hashes of clients in {self.folder} were made with, expected the same: "
                f"{remedy}"
            )
        return key.encode()

    # What is there ------------------------------------------------------------------------------------------------

    def summary(self, part: Part, settings: Any) -> dict[str, Any]:
        """Digest and days of `part`, remembered until it changes: {"key", "digest", "days": {day: rows}}.

        Args:
            settings: those of its log, which decide what is a time.
        """
        path = self.folder / "files" / f"{artifacts.digest_bytes(part.name.encode())[:32]}.json"
        key = artifacts.digest_json([FORMAT, settings, part.key()])
        if path.exists():
            known = artifacts.read_json(path)
            if known.get("key") == key:
                return known
        days = {_day(day): rows for day, rows in sorted(part.days().items(), key=lambda item: str(item[0]))}
        found = {"key": key, "digest": part.digest(), "days": days}
        artifacts.write_json(path, found)
        return found

    def summaries(self, log: Log) -> list[dict[str, Any]]:
        """`summary` of each part of `log`."""
        with ThreadPoolExecutor(hardware.cores()) as pool:
            return list(pool.map(lambda part: self.summary(part, log.settings), log.parts))

    def digests(self, log: Log, start: str, end: str) -> list[str]:
        """Digests of the parts that `ingest` looks at, in their order."""
        return [found["digest"] for found in self.summaries(log) if _matters(found["days"], start, end)]

    # Reading ------------------------------------------------------------------------------------------------------

    def ingest(self, log: Log, privacy: Privacy, start: str, end: str, problems: Problems) -> list[PartAggregates]:
        """Read the parts of `log` that matter to the window and that the store does not have yet; return them all.

        Those of the day before the window are read too, for the searches that its first clicks belong to. Parts with
        the same content, or the same rows in two formats, count once, as do rows with the id of an earlier one.

        Args:
            log: its parts in an order in which those that tell of searches come first.
            privacy: what of a query is kept.
            start, end: days (YYYY-MM-DD), the end exclusive; both empty: everything.
            problems: gets what the parts' rows were left out for, also those of parts read earlier.
        """
        wanted = [
            (part, found)
            for part, found in zip(log.parts, self.summaries(log), strict=True)
            if _matters(found["days"], start, end)
        ]
        counter = progress.Counter("prepare", sum(sum(found["days"].values()) for _, found in wanted), "log rows")
        reading_code = [duckdb.__version__]  # its hashes tell rows apart
        reading_code += map(artifacts.digest_file, READING_CODE)
        least = privacy.min_clients if log.people and log.clients else 1
        options = [least, privacy.scrub, *privacy.phone_regions, self.language]
        readings: dict[str, _Reading] = {}
        for part, found in wanted:
            content = [FORMAT, reading_code, found["digest"], log.settings, options]
            digest = artifacts.digest_json(content)
            if digest in readings:
                what = f"has the same content as {readings[digest].part.name}: counted once"
                problems.add(part.name, what, rows=sum(found["days"].values()), fatal=False)
                continue
            near = [earlier for earlier in readings.values() if _near(earlier.days, found["days"])]
            # A row comes again with its time, so in a part with the same day; what is kept then depends on both.
            before = [earlier for earlier in near if log.row_ids and earlier.days.keys() & found["days"].keys()]
            key = artifacts.digest_json([*content, [earlier.key for earlier in before]] if before else content)[:32]
            readings[digest] = _Reading(part, key, found["days"], near, before)
        scrubber = make_scrubber(privacy) if privacy.scrub else None
        kept: list[PartAggregates] = []
        twins: dict[tuple[str, str], PartAggregates] = {}
        with scratch_folder() as scratch, _Workers(scratch, len(readings)) as workers:

            def read(reading: _Reading) -> tuple[PartAggregates, Problems]:
                known = self._find(reading)
                if known:
                    reading.searches.set_result(known.facts["searches"])
                    return known, Problems()
                found = Problems(collect=problems.collect)
                return self._read(reading, least, scrubber, workers.connection(), found), found

            # A part waits for earlier ones only; those are begun first, so that no two wait for each other.
            for reading in readings.values():
                reading.done = workers.submit(_settle, reading, read)
            for reading in readings.values():
                known, seen = reading.done.result()
                counter.add(sum(reading.days.values()))
                if seen.fatal:  # a part that a run would stop at is not kept
                    problems.extend(seen)
                    continue
                rows = known.facts["rows"], str(known.days)
                if known.facts["rows"] and (twin := twins.setdefault(rows, known)) is not known:
                    what = f"has the same rows as {twin.name} in another form: counted once"
                    problems.add(known.name, what, rows=sum(known.days.values()), fatal=False)
                    continue
                kept.append(known)
                problems.extend(known.problems)
        return kept

    def _read(
        self,
        reading: _Reading,
        least: int,
        scrubber: Scrubber | None,
        connection: duckdb.DuckDBPyConnection,
        found: Problems,
    ) -> PartAggregates:
        part, target = reading.part, self.folder / "parts" / reading.key
        if _open(target):  # another run may be looking at it
            target = target.with_name(f"{reading.key}-{artifacts.digest_json(reading.names())[:8]}")
        facts: dict[str, Any] = {}
        with artifacts.folder_beside(target) as partial:
            try:
                create_events(connection)
                part.load(connection, found)
                if not found.fatal:
                    facts = _aggregate(connection, reading, partial, least, scrubber, self.language, self._key, found)
                    record = {
                        "name": part.name,
                        "days": reading.days,
                        "facts": facts,
                        "problems": [problem.to_json() for problem in found],
                        "files": _sizes(partial),
                    }
                    artifacts.write_json(partial / "part.json", record)
                    artifacts.settle(partial)
                    # Another run may have been faster.
                    artifacts.move_into_place(partial, target, keep=lambda: _open(target) is not None)
            finally:
                for table in _TABLES:
                    connection.execute(f"DROP TABLE IF EXISTS {table}")
        return PartAggregates(target, part.name, reading.days, facts, list(found))

    def _find(self, reading: _Reading) -> PartAggregates | None:
        """What is kept of a part, unless searches that were unknown may be told by parts that were not there then."""
        for folder in sorted((self.folder / "parts").glob(f"{reading.key}*")):
            known = _open(folder)
            if known and not (known.facts["unknown_searches"] and set(reading.names()) - set(known.facts["looked_in"])):
                return known
        return None


class _Reading:
    """A part that is being read, beside others."""

    def __init__(
        self, part: Part, key: str, days: dict[str, int], near: list[_Reading], before: list[_Reading]
    ) -> None:
        self.part, self.key, self.days, self.near, self.before = part, key, days, near, before
        self.searches: Future[int] = Future()
        """How many searches the part tells of; known long before the part is done."""
        self.done: Future[tuple[PartAggregates, Problems]]

    def names(self) -> list[str]:
        """The earlier parts around the same days."""
        return sorted(other.key for other in self.near)

    def searches_nearby(self) -> list[str]:
        """The files in which these tell of searches; waits for those that do."""
        tell = [other for other in self.near if other.searches.result()]
        return [str(other.done.result()[0].folder / "searches.parquet") for other in tell]

    def rows_before(self) -> list[str]:
        """The files of hashes of row ids of the earlier parts that may have delivered a row of this one; waits."""
        files = [other.done.result()[0].folder / "rows.parquet" for other in self.before]
        return [str(file) for file in files if file.exists()]


def _settle(
    reading: _Reading, read: Callable[[_Reading], tuple[PartAggregates, Problems]]
) -> tuple[PartAggregates, Problems]:
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
        self._scratch, self._share = scratch, max(min(hardware.cores(), most, _MOST_WORKERS), 1)
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


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*.parquet"))
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _open(folder: Path) -> PartAggregates | None:
    """What `folder` keeps of a part; None if it is not there as it was written."""
    if not (folder / "part.json").exists():
        return None
    found = artifacts.read_json(folder / "part.json")
    if found.keys() != {"name", "days", "facts", "problems", "files"} or found["files"] != _sizes(folder):
        return None
    listed = [Problem(**value | {"examples": tuple(value["examples"])}) for value in found["problems"]]
    return PartAggregates(folder, found["name"], found["days"], found["facts"], listed)


def make_scrubber(privacy: Privacy) -> Scrubber:
    """The scrubber that the configuration describes, whether or not it asks for it.

    Raises:
        InputError: a phone region that nobody knows.
    """
    try:
        return Scrubber(privacy.phone_regions)
    except ValueError as error:
        raise InputError(f"prepare.privacy.phone_regions: {error}") from None


def _matters(days: dict[str, int], start: str, end: str) -> bool:
    """Whether a part has rows in the window or on the day before it, or no time at all, which is to be said."""
    if not end or not days.keys() - {UNTIMED}:
        return True
    before = date.fromordinal(date.fromisoformat(start).toordinal() - 1).isoformat()
    return any(before <= day < end for day in days if day != UNTIMED)


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
    least: int,
    scrubber: Scrubber | None,
    language: str,
    key: bytes,
    problems: Problems,
) -> dict[str, Any]:
    """Write the aggregates of the table `events` to `folder` and return the facts about it."""
    _define_keyed(connection, key)
    _leave_out_repeated(connection, reading, folder, problems)
    checksum = _compare_rows(connection, reading.part.name, problems)
    _map_queries(connection, scrubber, language)
    hashed = _number("keyed('search' || {})", "UBIGINT")
    connection.execute(
        """CREATE TEMP TABLE searches AS SELECT search, told.id AS id, told."at" AS "at" FROM (
            SELECT e.search, min({'blank': m.text IS NULL, 'at': coalesce(e."at", TIMESTAMP '1970-01-01'),
                'query': e.query, 'id': m.id}) AS told
            FROM events e JOIN mapped m USING (query) WHERE e.search IS NOT NULL GROUP BY e.search)"""
    )
    (told,) = connection.execute("SELECT count(*) FROM searches").fetchall()[0]
    if told:
        connection.execute(
            f"""COPY (SELECT {hashed.format("search")} AS search, query_id, text, why, "at"
                FROM searches JOIN mapped USING (id))
            TO {sql.quoted(folder / "searches.parquet")} (FORMAT parquet, COMPRESSION zstd)"""
        )
    reading.searches.set_result(told)
    (waiting,) = connection.execute(
        """SELECT count(*) FROM events e ANTI JOIN searches s USING (search)
        WHERE e.query IS NULL AND e.search IS NOT NULL"""
    ).fetchall()[0]
    others = reading.searches_nearby() if waiting else []
    if others:
        connection.execute(
            f"""CREATE TEMP TABLE told_elsewhere AS
            SELECT search, told, (SELECT count(*) FROM mapped) + row_number() OVER () AS id FROM (
                SELECT u.search, min({{'blank': o.text IS NULL, 'at': o."at", 'query_id': o.query_id, 'text': o.text,
                    'why': o.why}}) AS told
                FROM (SELECT DISTINCT e.search FROM events e ANTI JOIN searches s USING (search)
                    WHERE e.query IS NULL AND e.search IS NOT NULL) u
                JOIN read_parquet({sql.file_list(others)}, hive_partitioning = false) o
                    ON o.search = {hashed.format("u.search")} GROUP BY u.search)"""
        )
        connection.execute("INSERT INTO mapped SELECT NULL, id, told.query_id, told.text, told.why FROM told_elsewhere")
        connection.execute('INSERT INTO searches SELECT search, id, told."at" FROM told_elsewhere')
    connection.execute(
        f"""CREATE TEMP TABLE resolved AS SELECT e."at"::DATE AS day, e.product_id,
            CASE WHEN e.query IS NULL THEN s.id ELSE m.id END AS id,
            CASE WHEN e.position > {_MAX_POSITION} THEN {_MAX_POSITION} ELSE e.position END AS position,
            e.shown, e.clicked, e.client
        FROM events e LEFT JOIN mapped m ON m.query = e.query LEFT JOIN searches s ON s.search = e.search"""
    )
    connection.execute("DROP TABLE events")
    left_out = dict(
        connection.execute(
            """SELECT CASE WHEN r.id IS NULL THEN 'unknown' ELSE m.why END AS reason, count(*)
            FROM resolved r LEFT JOIN mapped m USING (id)
            WHERE r.id IS NULL OR (m.why IS NOT NULL AND r.product_id IS NOT NULL) GROUP BY reason"""
        ).fetchall()
    )
    for why, what in _LEFT_OUT.items():
        problems.add(reading.part.name, what, rows=left_out.get(why, 0), fatal=False)
    _keep_clients(connection, least)
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
        "pair_clients": f"SELECT {day}, query_id, product_id, client, clicked FROM ({_pair_clients(least)})",
    }
    if least == 1:  # nobody will ask
        del selections["pair_clients"]
    for table, selection in selections.items():
        (folder / table).mkdir()
        connection.execute(
            f"""COPY ({selection}) TO {sql.quoted(folder / table)}
            (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (day))"""
        )
    kinds = connection.execute("SELECT kind, sum(rows), count(*) FROM found GROUP BY kind").fetchall()
    return {
        "rows": checksum,
        "unknown_searches": left_out.get("unknown", 0),
        "looked_in": reading.names(),
        "searches": told,
        "scrubbed": {kind: {"rows": int(rows), "queries": queries} for kind, rows, queries in sorted(kinds)},
    }


def _leave_out_repeated(
    connection: duckdb.DuckDBPyConnection, reading: _Reading, folder: Path, problems: Problems
) -> None:
    """Delete the events whose row id an earlier event has, in this part or before it; keep hashes of the ids."""
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
    """Note it if many events repeat another; return a checksum of them all, in any order.

    Of events that tell their time of day, and have no id, alone: without it many a row is like another.

    Returns:
        The checksum; empty where an event has no time, or where there are too few for it to mean much.
    """
    (rows,) = connection.execute("SELECT count(*) FROM events").fetchall()[0]
    one_in = max(rows // _COMPARED, 1)  # by their hashes, which repeated rows share
    timed, total, seen, repeated = connection.execute(
        f"""SELECT count(*) FILTER (timed), sum(row), count(row) FILTER (compared),
            count(row) FILTER (compared) - count(DISTINCT row) FILTER (compared)
        FROM (SELECT row, timed, timed AND NOT named AND row % {one_in} = 0 AS compared FROM (
            SELECT "at" <> date_trunc('day', "at") AS timed, row_id IS NOT NULL AS named,
                hash("at", search, query, product_id, position, shown, clicked, client) AS row FROM events))"""
    ).fetchall()[0]
    if repeated >= max(_REPEATED * seen, _LEAST_REPEATED):
        about = "" if one_in == 1 else "about "
        problems.add(
            name,
            f"kept, {about}{repeated / seen:.0%} of its rows repeat another in all that is read: if they were "
            "delivered twice, name a column with the id of a row in data.columns.row_id",
            rows=repeated * one_in,
            fatal=False,
        )
    return str(total) if timed == rows >= _LEAST_REPEATED else ""


def _define_keyed(connection: duckdb.DuckDBPyConnection, key: bytes) -> None:
    """Make the macro `keyed(text)`: HMAC-SHA256 under the key, in hexadecimal (RFC 2104)."""
    block = hashlib.sha256(key).digest().ljust(64, b"\0")
    inner, outer = ("".join(f"\\x{byte ^ pad:02X}" for byte in block) for pad in (0x36, 0x5C))
    connection.execute(
        f"""CREATE OR REPLACE TEMP MACRO keyed(content) AS
        sha256('{outer}'::BLOB || unhex(sha256('{inner}'::BLOB || encode(content))))"""
    )


def _number(digest: str, type_name: str) -> str:
    """The first digits of a hexadecimal digest as a number."""
    digits = {"UBIGINT": 16, "UINTEGER": 8}[type_name]
    return f"('0x' || left({digest}, {digits}))::{type_name}"


def _pair_clients(least: int) -> str:
    """For each day, query and product the smallest hashes of those to whom it was shown and of those who clicked.

    At most `least` of both kinds. 32 bits are enough to tell a handful apart, and are nobody's id.
    """
    hashed = _number("sha256(person || query_id || product_id)", "UINTEGER")
    return f"""SELECT * FROM (
            SELECT day, query_id, product_id, {hashed} AS client, max(clicked) > 0 AS clicked
            FROM (SELECT day, id, product_id, client, max(clicked) AS clicked FROM resolved
                WHERE client IS NOT NULL AND product_id IS NOT NULL AND shown + clicked > 0 GROUP BY ALL)
            JOIN people USING (client) JOIN mapped USING (id) WHERE query_id IS NOT NULL GROUP BY ALL)
        QUALIFY row_number() OVER (PARTITION BY day, query_id, product_id ORDER BY client) <= {least} OR (clicked
            AND row_number() OVER (PARTITION BY day, query_id, product_id, clicked ORDER BY client) <= {least})"""


def _keep_clients(connection: duckdb.DuckDBPyConnection, least: int) -> None:
    """Make `clients`: for each day and query the smallest hashes of those who typed it, at most `least`.

    As many as the bound asks for prove that it is reached, on this day and in any window around it. The query is part
    of what is hashed, so that nobody's searches can be put together.
    """
    connection.execute(
        """CREATE TEMP TABLE people AS SELECT client, keyed('client' || client) AS person
        FROM (SELECT DISTINCT client FROM resolved WHERE client IS NOT NULL)"""
    )
    # What is derived from a keyed hash needs no key: `person` is as secret, and as long.
    connection.execute(
        f"""CREATE TEMP TABLE who AS SELECT DISTINCT day, query_id,
            {_number("sha256(person || query_id)", "UBIGINT")} AS client
        FROM (SELECT DISTINCT day, id, client FROM resolved WHERE client IS NOT NULL)
        JOIN people USING (client) JOIN mapped USING (id) WHERE query_id IS NOT NULL"""
    )
    connection.execute(
        "CREATE TEMP TABLE clients AS SELECT day, query_id, min(client) AS client FROM who GROUP BY day, query_id"
    )
    # One pass for each hash: an aggregate of the smallest several does not spill.
    for _ in range(least - 1):
        connection.execute(
            """INSERT INTO clients SELECT w.day, w.query_id, min(w.client) FROM who w
            JOIN (SELECT day, query_id, max(client) AS last FROM clients GROUP BY day, query_id) c
                ON c.day IS NOT DISTINCT FROM w.day AND c.query_id = w.query_id AND w.client > c.last
            GROUP BY w.day, w.query_id"""
        )


def _map_queries(connection: duckdb.DuckDBPyConnection, scrubber: Scrubber | None, language: str) -> None:
    """Make `mapped` (query as typed, a number, query_id and text as kept, or why nothing is) and `found` (kinds)."""
    connection.execute("CREATE TABLE mapped (query VARCHAR, id BIGINT, query_id VARCHAR, text VARCHAR, why VARCHAR)")
    connection.execute("CREATE TABLE found (kind VARCHAR, rows BIGINT)")
    typed = "SELECT query, count(*) FROM events WHERE query IS NOT NULL GROUP BY query"
    reader = connection.cursor().sql(typed).to_arrow_reader(1 << 16)  # a cursor: the loop inserts meanwhile
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
                text = ""  # nothing but characters that nobody sees
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
