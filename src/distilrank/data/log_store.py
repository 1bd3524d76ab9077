"""Store of a search log as daily aggregates: each part is read, scrubbed and counted once; windows sum up days.

The aggregates of a part, by UTC day, are: how often each product was shown and clicked at each rank for each query, how
each query was typed, and up to `min_clients` keyed hashes of the clients behind each query and each of its products.
Personal data in queries and ids of clients and searches are not stored. DuckDB computes them and spills to disk, so
memory does not grow with the log.

Hashes of clients and searches are HMAC-SHA256 under a key from a Secret (`CLIENT_KEY`), so that a reader of the store
cannot test guessed ids; without a Secret, the key is in the file `salt` beside them.

A store is a folder:
    salt random key of the hashes, unless CLIENT_KEY is set
    key.json                proof that a key is the one that the hashes were made with
    files/NAME.json         digest and days of a part, valid until it changes
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
import hmac
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from distilrank.data.log_aggregates import TABLES, UNTIMED, PartAggregates, Reading, aggregate
from distilrank.data.privacy import Scrubber
from distilrank.data.sources.base import Log, Part

FORMAT = 3
"""Version of the store; increase it whenever the same part would be stored differently, scrubbing included."""

READING_CODE = (
    Path(str(normalize.__file__)),
    *sorted(Path(str(scrubbing.__file__)).parent.glob("*.py")),
)
"""The files whose code decides how a query is stored: if their bytes change, every part is read again."""

MEMORY_MIB = 160
"""Memory of a database before it spills to disk; more memory was not faster."""

CLIENT_KEY = "DISTILRANK_CLIENT_KEY"
"""The environment variable that holds the key of the hashes; of pods, from a Secret in `cluster.secrets`."""
_KEY_CHARACTERS = 32  # at least: 128 bits in hexadecimal
_MOST_WORKERS = 4  # each uses MEMORY_MIB, and scrubbing does not keep more of them busy


@contextlib.contextmanager
def connect(base: Path, share: int = 1) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB database with bounded memory in a separate file below `base`, which is deleted afterwards.

    Args:
        base: a scratch folder (`scratch.scratch_folder`): DuckDB writes its data there unencrypted.
        share: number of such databases that work concurrently; each gets its share of the threads.

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
    """Refuse a folder whose path DuckDB cannot open, even if the file system can.

    Raises:
        InputError: its path holds a question mark or a backslash.
    """
    for character in "?\\":
        if character in str(folder.absolute()):  # DuckDB makes paths absolute itself
            raise InputError(
                f"{folder}: a {character!r} in the path of a folder for work files, which DuckDB cannot open: run "
                "from another folder, and name others in prepare.log_cache_dir and TMPDIR"
            )


def create_events(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the empty table `events` that parts append to."""
    types = {
        pa.timestamp("us"): "TIMESTAMP",
        pa.string(): "VARCHAR",
        pa.int32(): "INTEGER",
    }
    columns = ", ".join(f'"{field.name}" {types[field.type]}' for field in schemas.EVENTS)  # "at" is a keyword
    connection.execute(f"CREATE TABLE events ({columns})")


class LogStore:
    """A store in `folder`, which is created if missing."""

    def __init__(self, folder: Path, language: str = "") -> None:
        check_path(folder)
        self.folder = folder
        self.language = language if language in normalize.DOTLESS else ""  # other languages do not change a query's key
        for name in ("files", "parts"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        artifacts.remove_stale(folder / "parts")
        self._key = self._read_key()

    def _read_key(self) -> bytes:
        """Return the key of the hashes; with another key than before, one client would count as two."""
        path, proof = self.folder / "salt", self.folder / "key.json"
        used = proof.exists() or any(
            (self.folder / "parts").iterdir()
        )  # before `path`: another run may be creating all three
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
                with artifacts.replacing(path, mode=0o600, keep_existing=True) as handle:  # of two runs, one creates it
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

    def summary(self, part: Part, settings: Any) -> dict[str, Any]:
        """Return digest and days of `part`, which are stored until it changes: {"key", "digest", "days": {day: rows}}.

        Args:
            settings: settings of its log, which decide what counts as a time.
        """
        path = self.folder / "files" / f"{artifacts.digest_bytes(part.name.encode())[:32]}.json"
        key = artifacts.digest_json([FORMAT, settings, part.key()])
        if path.exists():
            stored = artifacts.read_json(path)
            if stored.get("key") == key:
                return stored
        days = {_day(day): rows for day, rows in sorted(part.days().items(), key=lambda item: str(item[0]))}
        summary = {"key": key, "digest": part.digest(), "days": days}
        artifacts.write_json(path, summary)
        return summary

    def summaries(self, log: Log) -> list[dict[str, Any]]:
        """Return the `summary` of each part of `log`."""
        with ThreadPoolExecutor(hardware.cores()) as pool:
            return list(pool.map(lambda part: self.summary(part, log.settings), log.parts))

    def digests(self, log: Log, start: str, end: str) -> list[str]:
        """Return the digests of the parts that `ingest` reads, in their order."""
        return [summary["digest"] for summary in self.summaries(log) if _matters(summary["days"], start, end)]

    def ingest(self, log: Log, privacy: Privacy, start: str, end: str, problems: Problems) -> list[PartAggregates]:
        """Read the parts of `log` that matter to the window and are not stored yet; return all that matter.

        Parts of the day before the window are read too, since its first clicks may belong to searches of that day.
        Parts with the same content, or the same rows in two formats, count once, as do rows that repeat an id.

        Args:
            log: the log, with parts that hold searches before parts that hold events.
            privacy: what is scrubbed from queries, and how many clients a query needs.
            start, end: days (YYYY-MM-DD), the end exclusive; both empty: everything.
            problems: receives the reasons for which rows were left out, also of parts that were read earlier.
        """
        matching = [
            (part, summary)
            for part, summary in zip(log.parts, self.summaries(log), strict=True)
            if _matters(summary["days"], start, end)
        ]
        total = sum(sum(summary["days"].values()) for _, summary in matching)
        counter = progress.Counter("prepare", total, "log rows")
        reading_code = [duckdb.__version__]  # its hashes identify rows
        reading_code += map(artifacts.digest_file, READING_CODE)
        min_clients = privacy.min_clients if log.people and log.clients else 1
        options = [min_clients, privacy.scrub, *privacy.phone_regions, self.language]
        readings: dict[str, Reading] = {}
        for part, summary in matching:
            days = summary["days"]
            content = [FORMAT, reading_code, summary["digest"], log.settings, options]
            digest = artifacts.digest_json(content)
            if digest in readings:
                what = f"has the same content as {readings[digest].part.name}: counted once"
                problems.add(part.name, what, rows=sum(days.values()), fatal=False)
                continue
            near = [earlier for earlier in readings.values() if _near(earlier.days, days)]
            # A repeated row has the same time, so it is in a part with the same day; what is kept depends on both
            # parts.
            before = [earlier for earlier in near if log.row_ids and earlier.days.keys() & days.keys()]
            key = artifacts.digest_json([*content, [earlier.key for earlier in before]] if before else content)[:32]
            readings[digest] = Reading(part, key, days, near, before)
        scrubber = make_scrubber(privacy) if privacy.scrub else None
        parts: list[PartAggregates] = []
        twins: dict[tuple[str, str], PartAggregates] = {}
        with scratch_folder() as scratch, _Workers(scratch, len(readings)) as workers:

            def read(reading: Reading) -> tuple[PartAggregates, Problems]:
                stored = self._find(reading)
                if stored:
                    reading.searches.set_result(stored.facts["searches"])
                    return stored, Problems()
                new = Problems(collect=problems.collect)
                return self._read(reading, min_clients, scrubber, workers.connection(), new), new

            # A part waits only for earlier parts, which are started first, so there is no deadlock.
            for reading in readings.values():
                reading.done = workers.submit(_settle, reading, read)
            for reading in readings.values():
                aggregates, new = reading.done.result()
                counter.add(sum(reading.days.values()))
                if new.fatal:  # a part that stops a run is not stored
                    problems.extend(new)
                    continue
                rows = aggregates.facts["rows"], str(aggregates.days)
                if aggregates.facts["rows"] and (twin := twins.setdefault(rows, aggregates)) is not aggregates:
                    what = f"has the same rows as {twin.name} in another form: counted once"
                    problems.add(aggregates.name, what, rows=sum(aggregates.days.values()), fatal=False)
                    continue
                parts.append(aggregates)
                problems.extend(aggregates.problems)
        return parts

    def _read(
        self,
        reading: Reading,
        min_clients: int,
        scrubber: Scrubber | None,
        connection: duckdb.DuckDBPyConnection,
        part_problems: Problems,
    ) -> PartAggregates:
        part, target = reading.part, self.folder / "parts" / reading.key
        if _open(target):  # another run may be reading it
            target = target.with_name(f"{reading.key}-{artifacts.digest_json(reading.names())[:8]}")
        facts: dict[str, Any] = {}
        with artifacts.folder_beside(target) as partial:
            try:
                create_events(connection)
                part.load(connection, part_problems)
                if not part_problems.fatal:
                    facts = aggregate(
                        connection, reading, partial, min_clients, scrubber, self.language, self._key, part_problems
                    )
                    record = {
                        "name": part.name,
                        "days": reading.days,
                        "facts": facts,
                        "problems": [problem.to_json() for problem in part_problems],
                        "files": _sizes(partial),
                    }
                    artifacts.write_json(partial / "part.json", record)
                    artifacts.settle(partial)
                    # Another run may have stored the part first.
                    artifacts.move_into_place(partial, target, keep=lambda: _open(target) is not None)
            finally:
                for table in TABLES:
                    connection.execute(f"DROP TABLE IF EXISTS {table}")
        return PartAggregates(target, part.name, reading.days, facts, list(part_problems))

    def _find(self, reading: Reading) -> PartAggregates | None:
        """Return the stored aggregates of a part, unless new parts may resolve its unknown searches."""
        for folder in sorted((self.folder / "parts").glob(f"{reading.key}*")):
            stored = _open(folder)
            if stored is None:
                continue
            new_parts = set(reading.names()) - set(stored.facts["looked_in"])
            if not (stored.facts["unknown_searches"] and new_parts):
                return stored
        return None


def _settle(
    reading: Reading, read: Callable[[Reading], tuple[PartAggregates, Problems]]
) -> tuple[PartAggregates, Problems]:
    """Read a part; if that fails, the parts that wait for its searches continue without them."""
    try:
        return read(reading)
    finally:
        if not reading.searches.done():
            reading.searches.set_result(0)


class _Workers:
    """Threads that read parts, each with a separate database, since one day's file does not keep two cores busy.

    Args:
        scratch: folder for the databases.
        most: number of parts.
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
    """Return the aggregates in `folder`; None if they are missing or were changed since they were written."""
    if not (folder / "part.json").exists():
        return None
    stored = artifacts.read_json(folder / "part.json")
    if stored.keys() != {"name", "days", "facts", "problems", "files"} or stored["files"] != _sizes(folder):
        return None
    problems = [Problem(**value | {"examples": tuple(value["examples"])}) for value in stored["problems"]]
    return PartAggregates(folder, stored["name"], stored["days"], stored["facts"], problems)


def make_scrubber(privacy: Privacy) -> Scrubber:
    """Return the scrubber for these settings, whether or not scrubbing is switched on.

    Raises:
        InputError: a phone region is unknown.
    """
    try:
        return Scrubber(privacy.phone_regions)
    except ValueError as error:
        raise InputError(f"prepare.privacy.phone_regions: {error}") from None


def _matters(days: dict[str, int], start: str, end: str) -> bool:
    """Whether a part has rows in the window or on the day before it, or no times at all, which must be reported."""
    if not end or not days.keys() - {UNTIMED}:
        return True
    before = date.fromordinal(date.fromisoformat(start).toordinal() - 1).isoformat()
    return any(before <= day < end for day in days if day != UNTIMED)


def _day(day: date | None) -> str:
    return UNTIMED if day is None else day.isoformat()


def _near(left: Iterable[str], right: Iterable[str]) -> bool:
    """Whether two sets of days overlap or are adjacent: a search before midnight may be clicked after midnight."""
    ordinals = [[date.fromisoformat(day).toordinal() for day in days if day != UNTIMED] for days in (left, right)]
    if not all(ordinals):
        return True
    (first, last), (begin, end) = ((min(days), max(days)) for days in ordinals)
    return first <= end + 1 and begin <= last + 1
