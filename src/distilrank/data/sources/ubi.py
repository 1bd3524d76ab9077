"""Search logs in OpenSearch's User Behavior Insights (UBI) schema, beside your own judgements and catalogue.

A log is lines of JSON (NDJSON, gzipped or not, also in the form of a bulk request) or Parquet. DuckDB reads it; here
are the statements, and what is said of lines and records that are left out.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import math
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import date
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distilrank.config import Ubi
from distilrank.core import normalize
from distilrank.core.errors import InputError
from distilrank.core.problems import EXAMPLES, Problem, Problems
from distilrank.data import sql
from distilrank.data.sources import NO_IMPRESSIONS, Log, reading, storage, tables
from distilrank.data.sources.reading import File, Rows
from distilrank.data.sources.storage import StoredFile

SUFFIXES = (".ndjson", ".ndjson.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""How the names of log files end."""

READING = 2
"""Goes up with any change of what a log file gives."""

_KEYS = ("query_id", "action_name", "user_query")
_FIELDS = (*_KEYS, "client_id", "timestamp", "application", "event_attributes", "query_response_hit_ids")
_NESTED = ("event_attributes", "query_response_hit_ids")
_BULK = ("index", "create", "update", "delete")

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_DAMAGED = (
    OSError,
    EOFError,
    zlib.error,
    pa.ArrowException,
    duckdb.IOException,
    duckdb.InvalidInputException,
    duckdb.ConversionException,  # a time of Parquet too far away for a TIMESTAMP
)
_JSON_TYPES = {list: "array", str: "string", bool: "boolean", type(None): "null"}

_LISTS = (".json", ".json.gz")
_LONGEST_LINE = 1 << 21  # bytes; each thread's buffer is twice as long
_HEAD_BYTES, _HEAD_LINES = 1 << 20, 100
_NAMED_ACTIONS = 20
_SHORT = 60


def open(data: Ubi) -> UbiSource:
    """The source over the files that `data` names; nothing is read yet."""
    return UbiSource(data)


class UbiSource(tables.JudgedFiles):
    """Judgements, catalogue and UBI logs; see `distilrank.data.sources.Source`.

    Judgements may also be lists of OpenSearch's Search Relevance Workbench, told by their name or first character.
    """

    data: Ubi

    def _files(self, reference: str, names: Sequence[str], problems: Problems) -> list[File]:
        if "rating" not in names:
            return super()._files(reference, names, problems)
        columns = self._columns(names)
        return [
            JudgementList(stored, self.rating_range) if _is_json(stored) else File(stored, columns, csv=self.data.csv)
            for stored in storage.files(reference, (*tables.SUFFIXES, *_LISTS), problems)
        ]

    def _list(self, problems: Problems) -> list[UbiPart]:
        """The files of `queries`, then those of `events`; a file that both lead to is there once."""
        found: dict[str, UbiPart] = {}
        for reference in filter(None, (self.data.queries, self.data.events)):
            for stored in storage.files(reference, SUFFIXES, problems):
                found.setdefault(stored.key(), UbiPart(stored, self.data))
        return list(found.values())

    @cached_property
    def _parts(self) -> tuple[list[UbiPart], list[Problem]]:
        problems = Problems()
        return self._list(problems), list(problems)

    def check(self, problems: Problems) -> None:
        super().check(problems)
        parts: list[Any] = self._list(problems)
        reading.check_headers(parts, problems)

    def log(self) -> Log:
        read = {
            "impression_actions",
            "click_actions",
            "impressions",
            "object_id_field",
            "first_position",
            "malformed_lines",
        }
        settings = {"reading": READING, "ubi": self.data.model_dump(mode="json", include=read)}
        parts, problems = self._parts
        return Log(parts, timed=True, clients=True, settings=settings, problems=problems)


# Parts ------------------------------------------------------------------------------------------------------------


class UbiPart:
    """One file of queries, of events, or of both; see `distilrank.data.sources.Part`."""

    def __init__(self, stored: StoredFile, data: Ubi) -> None:
        self.name, self.stored, self.data = stored.name, stored, data

    def key(self) -> str:
        return self.stored.key()

    def digest(self) -> str:
        return self.stored.digest()

    @contextlib.contextmanager
    def _reading(self, problems: Problems | None = None) -> Iterator[None]:
        """What goes wrong while the file is read becomes a fatal problem, without `problems` an InputError."""
        try:
            yield
            return
        except FileNotFoundError:
            reason = "no such file"
        except InputError as error:
            reason = str(error).removeprefix(f"{self.name}: ")
        except (*_DAMAGED, duckdb.Error) as error:
            # Damaged Parquet is an Error of no kind; other kinds are our own faults, or too little memory.
            if isinstance(error, duckdb.Error) and not (isinstance(error, _DAMAGED) or type(error) is duckdb.Error):
                raise
            detail = (str(error).strip() or type(error).__name__).splitlines()[0]
            if "Invalid string encoding" in detail:  # the value follows, which may be the id of a client
                detail = "text that is not UTF-8, or ids as bytes; write them as text"
            reason = f"damaged or not readable ({detail})"
        if problems is None:
            raise InputError(f"{self.name}: {reason}")
        problems.add(self.name, reason)

    def check(self, problems: Problems) -> None:
        """Find out from the head of the file whether it is UBI."""
        with self._reading(problems), self.stored.open_ranges() as handle:
            head = handle.read(_HEAD_BYTES)
            if head.startswith(_PARQUET):
                _check_columns(pq.read_schema(handle).names)
            else:
                _check_lines(_unpacked(head, whole=not handle.read(1)))

    def days(self) -> dict[date | None, int]:
        with self._reading(), self.stored.open_local() as path, _memory().cursor() as connection:
            found = connection.execute(
                f"""SELECT {_plausible("utc")}::DATE, count(*) FROM (
                    SELECT {_at("stamp")} AS utc FROM (
                        SELECT stamp, {_clock("stamp")} AS clock FROM (
                            SELECT {_text("timestamp")} AS stamp FROM ({_fields(connection, path, ["timestamp"])})
                        ) WHERE stamp IS NOT NULL
                    )
                ) GROUP BY 1"""
            ).fetchall()
        return dict(found)

    def load(self, connection: duckdb.DuckDBPyConnection, problems: Problems) -> None:
        examples = None
        try:
            with self._reading(problems), self.stored.open_local() as path:
                _verify(path)
                connection.execute(
                    f"CREATE OR REPLACE TEMP TABLE ubi_records AS {_records(connection, path, self.data)}"
                )
                (malformed,) = _one(connection, "SELECT count(*) FROM ubi_records WHERE kind = 'malformed'")
                examples = list(itertools.islice(_malformed(connection, path), EXAMPLES)) if malformed else []
            if examples is None:
                return
            self._note_lines(connection, examples, problems)
            self._note_records(connection, problems)
            self._note_no_impressions(connection, problems)
            connection.execute(f"INSERT INTO events BY NAME {_events(self.data)}")
        finally:
            connection.execute("DROP TABLE IF EXISTS ubi_records")

    # What is left out ---------------------------------------------------------------------------------------------

    def _note_lines(self, connection: duckdb.DuckDBPyConnection, examples: list[str], problems: Problems) -> None:
        lines, malformed = _one(connection, "SELECT count(*), count(*) FILTER (kind = 'malformed') FROM ubi_records")
        share, most = malformed / max(lines, 1), self.data.malformed_lines
        if share > most:
            what = (
                f"{malformed} of {lines} lines cannot be read ({share:.2%}), "
                f"expected at most {most:.2%} (data.malformed_lines)"
            )
            problems.add(self.name, what, rows=malformed, examples=examples)
        else:
            problems.add(self.name, "lines that cannot be read", rows=malformed, examples=examples, fatal=False)
        problems.add(self.name, "empty", rows=int(not lines), fatal=False)

    def _note_records(self, connection: duckdb.DuckDBPyConnection, problems: Problems) -> None:
        def note(what: str, where: str, value: str = "NULL", label: str = "") -> None:
            """Count the records `where` something holds; the first values of `value` are the examples."""
            rows, seen = _one(
                connection, f"SELECT count(*), min(DISTINCT {value}, {EXAMPLES}) FROM ubi_records WHERE {where}"
            )
            examples = [f"{label} is {_shown(one)}" for one in seen or ()]
            problems.add(self.name, what, rows=rows, examples=examples, fatal=False)

        note("records with neither user_query nor action_name", "kind = 'neither'")
        actions = _actions(connection, "kind = 'other'")
        for action, rows in actions[:_NAMED_ACTIONS]:
            what = f"events with action_name {_shown(action)}: not used, neither impressions nor clicks"
            problems.add(self.name, what, rows=rows, fatal=False)
        rest = actions[_NAMED_ACTIONS:]
        what = f"events with {len(rest)} further values of action_name: not used, neither impressions nor clicks"
        problems.add(self.name, what, rows=sum(rows for _, rows in rest), fatal=False)
        note(
            f"events of another object_id_field than {self.data.object_id_field!r}: not used",
            "left_out = 'field'",
            "field",
            "object_id_field",
        )
        note("impression events: not used, as data.impressions is hits", "left_out = 'hits'")
        note(
            "records without a time, expected ISO 8601 or epoch milliseconds, from 2000 to 2100",
            "left_out = 'time'",
            "stamp",
            "timestamp",
        )
        note("events without event_attributes.object.object_id", "left_out = 'product'")
        note("events with neither user_query nor query_id", "left_out = 'query'")
        lowest = self.data.first_position if isinstance(self.data.first_position, int) else 0
        note(
            f"events whose position stays unknown, expected a whole number from {lowest}",
            f"kind = 'event' AND left_out IS NULL AND place IS NOT NULL AND (ordinal IS NULL OR ordinal < {lowest})",
            "place",
            "event_attributes.position.ordinal",
        )
        note(
            "records without client_id: of no weight for prepare.privacy.min_clients",
            "left_out IS NULL AND client IS NULL",
        )
        if self.data.impressions == "hits":
            note("query records without a list query_response_hit_ids", "kind = 'query' AND hits IS NULL")
            note(
                "query records with hits that are no ids",
                f"""kind = 'query' AND left_out IS NULL
                AND len(list_filter(hits, lambda hit: {_id("json_extract_string(hit, '$')")} IS NULL)) > 0""",
            )
        (others,) = _one(
            connection,
            """SELECT count(*) FROM (
                SELECT query <> first_value(query) OVER (PARTITION BY search ORDER BY utc, query) AS other
                FROM ubi_records WHERE kind = 'query' AND left_out IS NULL AND search IS NOT NULL
            ) WHERE other""",
        )
        what = "query records whose query_id had another user_query: events without one get the first"
        problems.add(self.name, what, rows=others, fatal=False)

    def _note_no_impressions(self, connection: duckdb.DuckDBPyConnection, problems: Problems) -> None:
        """Say what there is where nothing was shown; a part alone is not wrong for it."""
        examples: list[str] = []
        if self.data.impressions == "hits":
            rows, shown = _one(
                connection, "SELECT count(*), count(*) FILTER (len(hits) > 0) FROM ubi_records WHERE kind = 'query'"
            )
            what = f"{NO_IMPRESSIONS}: query_response_hit_ids is empty in all query records (data.impressions: hits)"
        else:
            rows, shown = _one(
                connection, "SELECT count(*), count(*) FILTER (shown) FROM ubi_records WHERE kind IN ('event', 'other')"
            )
            wanted = " or ".join(map(repr, self.data.impression_actions))
            what = (
                f"{NO_IMPRESSIONS}: no event has action_name {wanted}; name another in data.impression_actions, "
                "or set data.impressions: hits"
            )
            examples = [f"action_name is {_shown(action)} in {count} events" for action, count in _actions(connection)]
        if not shown:
            problems.add(self.name, what, rows=rows, examples=examples, fatal=False)


@cache
def _memory() -> duckdb.DuckDBPyConnection:
    """A database for scans that keep nothing; opening one takes longer than scanning a small file."""
    return duckdb.connect()


def _one(connection: duckdb.DuckDBPyConnection, statement: str, values: Sequence[str] = ()) -> tuple[Any, ...]:
    return connection.execute(statement, values).fetchall()[0]


def _actions(connection: duckdb.DuckDBPyConnection, where: str = "kind IN ('event', 'other')") -> list[tuple[str, int]]:
    """Each action_name and how many events have it, the most frequent first."""
    return connection.execute(
        f"SELECT action, count(*) AS rows FROM ubi_records WHERE {where} GROUP BY action ORDER BY rows DESC, action"
    ).fetchall()


def _shown(value: str) -> str:
    return repr(value if len(value) <= _SHORT else value[: _SHORT - 1] + "…")


# Statements -------------------------------------------------------------------------------------------------------

_CLOCK = (
    r"^\s*(\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?)"
    r"\s*(?:Z|UTC|([+-])([01]\d):?([0-5]\d)?)?\s*$"
)


def _text(value: str) -> str:
    """A text, null if blank, or if it is an object or an array, which DuckDB hands over as JSON."""
    first = f"ord({value})"  # of an empty text it is 0
    return f"""CASE WHEN {first} > 32 THEN CASE WHEN {first} NOT IN ({ord("{")}, {ord("[")}) THEN {value} END
        WHEN {first} > 0 AND regexp_matches({value}, '\\S') THEN {value} END"""


def _id(value: str) -> str:
    """A text or a number as text; 3.0 and 3.000000000, as some exports write a 3, are 3."""
    return f"""CASE WHEN suffix({value}, '0') AND regexp_matches({value}, '^-?[0-9]+\\.0+$')
        THEN regexp_replace({value}, '\\.0+$', '') ELSE {_text(value)} END"""


def _nested(value: str) -> str:
    """A JSON value that some exports write as a string with JSON in it."""
    return f"""CASE WHEN starts_with({value}, '"') THEN try_cast(json_extract_string({value}, '$') AS JSON)
        ELSE {value} END"""


def _clock(text: str) -> str:
    """The parts of an ISO 8601 time, null for one that `_at` reads at once."""
    parts = f"regexp_extract({text}, {sql.quoted(_CLOCK)}, ['local', 'sign', 'hours', 'minutes'])"
    return f"CASE WHEN NOT {_plain(text)} THEN {parts} END"


def _plain(text: str) -> str:
    """Whether a time has the one form that nearly all have: 2026-03-31T12:00:00.000Z."""
    return f"(suffix({text}, 'Z') AND strlen({text}) BETWEEN 20 AND 27)"


def _at(text: str) -> str:
    """`text` as TIMESTAMP in UTC by its column `clock`, or, a number, as time since the epoch; null if unreadable.

    Without a zone it is UTC. DuckDB's own cast to TIMESTAMP ignores zones, and that to TIMESTAMPTZ takes the session's
    where there is none.
    """
    number = f"try_cast({text} AS DOUBLE)"
    offset = "to_minutes(60 * try_cast(clock.hours AS INTEGER) + coalesce(try_cast(clock.minutes AS INTEGER), 0))"
    return f"""CASE
        WHEN {_plain(text)} THEN try_cast({text} AS TIMESTAMP)
        WHEN clock.sign = '+' THEN try_cast(clock.local AS TIMESTAMP) - {offset}
        WHEN clock.sign = '-' THEN try_cast(clock.local AS TIMESTAMP) + {offset}
        WHEN clock.local <> '' THEN try_cast(clock.local AS TIMESTAMP)
        -- the unit that puts a number between 2000 and 2100
        WHEN {number} >= 946684800 THEN make_timestamp(round({number} * CASE WHEN {number} < 4102444800 THEN 1e6
            WHEN {number} BETWEEN 946684800e3 AND 4102444800e3 THEN 1e3
            WHEN {number} BETWEEN 946684800e6 AND 4102444800e6 THEN 1
            WHEN {number} BETWEEN 946684800e9 AND 4102444800e9 THEN 1e-3 END)::BIGINT)
        END"""


def _plausible(utc: str) -> str:
    """A TIMESTAMP, null unless it lies between 2000 and 2100; Python has no dates for all that DuckDB has."""
    return f"CASE WHEN {utc} >= TIMESTAMP '2000-01-01' AND {utc} < TIMESTAMP '2100-01-01' THEN {utc} END"


def _magic(path: Path) -> bytes:
    with path.open("rb") as handle:
        return handle.read(len(_PARQUET))


def _verify(path: Path) -> None:
    """Raise OSError if a gzipped file does not match its checksum, at which DuckDB does not look."""
    if _magic(path).startswith(_GZIP):
        with gzip.open(path, "rb") as handle:
            while handle.read(_HEAD_BYTES):
                pass


def _fields(connection: duckdb.DuckDBPyConnection, path: Path, names: Sequence[str] = _FIELDS) -> str:
    """Selects fields of each line or row, as text or JSON, `bulk` and `nothing`, which a line that cannot be read is.

    Raises:
        InputError: a Parquet file lacks a column.
    """
    magic = _magic(path)
    file = sql.file_list([path])
    if magic != _PARQUET:
        kinds = {name: "JSON" if name in _NESTED else "VARCHAR" for name in (*names, *_BULK)}
        columns = ", ".join(f"{sql.quoted(name)}: '{kind}'" for name, kind in kinds.items())
        return f"""SELECT *, coalesce({", ".join(f"{name}::VARCHAR" for name in names)}) IS NULL AS nothing,
                coalesce({", ".join(f'"{name}"' for name in _BULK)}) IS NOT NULL AS bulk
            FROM read_ndjson({file}, columns = {{{columns}}}, ignore_errors = true, hive_partitioning = false,
                maximum_object_size = {_LONGEST_LINE},
                compression = '{"gzip" if magic.startswith(_GZIP) else "none"}')"""
    table = f"read_parquet({file}, binary_as_string = true, hive_partitioning = false)"
    types = {row[0]: row[1] for row in connection.execute(f"DESCRIBE FROM {table}").fetchall()}
    _check_columns(list(types))
    columns = ", ".join(
        f"{'to_json' if name in _NESTED else ''}({_utc(name, types.get(name, ''))})"
        f"{'' if name in _NESTED else '::VARCHAR'} AS {name}"
        for name in names
    )
    return f"SELECT {columns}, FALSE AS nothing, FALSE AS bulk FROM {table}"


def _utc(column: str, kind: str) -> str:
    """A column of a Parquet file by its type, times in UTC without a zone; null if there is no such column."""
    if kind in ("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS"):
        return f"make_timestamp(epoch_us(try_cast({column} AS TIMESTAMPTZ)))"
    return f"try_cast({column} AS TIMESTAMP)" if kind.startswith("TIMESTAMP") else column if kind else "NULL"


def _records(connection: duckdb.DuckDBPyConnection, path: Path, data: Ubi) -> str:
    """Selects a row for each line: what it is (`kind`), its values, and why it is left out (`left_out`), if it is."""
    shown, clicked = (
        f"coalesce(action IN ({', '.join(map(sql.quoted, actions))}), FALSE)" if actions else "FALSE"
        for actions in (data.impression_actions, data.click_actions)
    )
    elsewhere = f"field IS DISTINCT FROM {sql.quoted(data.object_id_field)}" if data.object_id_field else "FALSE"
    unused = "shown AND NOT clicked" if data.impressions == "hits" else "FALSE"
    attributes = "['$.object.object_id', '$.object.object_id_field', '$.position.ordinal']"
    return f"""
        WITH texts AS (
            SELECT nothing, bulk, {_id("query_id")} AS search, {_text("user_query")} AS query,
                {_id("client_id")} AS client, {_text("action_name")} AS action,
                {_text("application")} AS application, {_text("timestamp")} AS stamp,
                {_nested("query_response_hit_ids")} AS hits,
                json_extract_string({_nested("event_attributes")}, {attributes}) AS attributes
            FROM ({_fields(connection, path)})
        ), clocks AS (
            SELECT *, {_clock("stamp")} AS clock, {shown} AS shown, {clicked} AS clicked,
                {_id("attributes[1]")} AS product_id, {_text("attributes[2]")} AS field,
                try_cast(attributes[3] AS DOUBLE) AS ordinal, attributes[3] AS place
            FROM texts
        ), kinds AS (
            SELECT * REPLACE (
                    CASE WHEN ordinal BETWEEN 0 AND 2147483646 AND ordinal % 1 = 0
                        THEN try_cast(ordinal AS INTEGER) END AS ordinal,
                    CASE WHEN starts_with(hits, '[') THEN json_extract(hits, '$[*]') END AS hits
                ), {_at("stamp")} AS utc,
                CASE WHEN nothing THEN CASE WHEN bulk THEN 'bulk' ELSE 'malformed' END
                    WHEN action IS NOT NULL THEN CASE WHEN shown OR clicked THEN 'event' ELSE 'other' END
                    WHEN query IS NOT NULL THEN 'query' ELSE 'neither' END AS kind
            FROM clocks
        )
        -- what is only there to be quoted is kept where something is wrong with it
        SELECT kind, search, query, client, action, application, utc, product_id, ordinal, shown, clicked,
            CASE WHEN utc IS NULL THEN stamp END AS stamp, CASE WHEN {elsewhere} THEN field END AS field,
            CASE WHEN ordinal IS NULL OR ordinal < 1 THEN place END AS place,
            CASE WHEN kind = 'query' THEN hits END AS hits,
            CASE WHEN kind NOT IN ('event', 'query') THEN kind
                WHEN kind = 'event' AND {elsewhere} THEN 'field'
                WHEN kind = 'event' AND {unused} THEN 'hits'
                WHEN utc IS NULL THEN 'time'
                WHEN kind = 'query' THEN NULL
                WHEN product_id IS NULL THEN 'product'
                WHEN query IS NULL AND search IS NULL THEN 'query' END AS left_out
        FROM (SELECT * REPLACE ({_plausible("utc")} AS utc) FROM kinds)"""


def _events(data: Ubi) -> str:
    """Selects records.EVENTS from the table of `_records`."""
    first, shown, hits = f"{data.first_position}", "shown::INTEGER", ""
    if data.first_position == "auto":
        first = "CASE WHEN min(ordinal) = 0 THEN 0 ELSE 1 END"
    searches = "FROM ubi_records WHERE kind = 'query' AND left_out IS NULL"
    if data.impressions == "hits":
        shown = "0"
        hits = f"""UNION ALL SELECT utc, search, query, {_id("hit")} AS product_id, position, 1, 0, client FROM (
                SELECT utc, search, query, client, json_extract_string(unnest(hits), '$') AS hit,
                    generate_subscripts(hits, 1) AS position
                {searches}
            ) WHERE {_id("hit")} IS NOT NULL"""
    # Applications that share a file number their ranks each in its own way.
    return f"""
        SELECT utc AS "at", search, query, product_id,
            CASE WHEN ordinal >= first THEN ordinal - first + 1 END AS position,
            {shown} AS shown, clicked::INTEGER AS clicked, client
        FROM ubi_records JOIN (
            SELECT application, {first} AS first FROM ubi_records
            WHERE kind = 'event' AND coalesce(left_out, 'hits') = 'hits' GROUP BY application
        ) firsts ON firsts.application IS NOT DISTINCT FROM ubi_records.application
        WHERE kind = 'event' AND left_out IS NULL
        UNION ALL SELECT utc, search, query, NULL, NULL, 0, 0, client {searches} {hits}"""


# Single lines and columns -----------------------------------------------------------------------------------------


def _check_columns(names: list[str]) -> None:
    """Raise InputError if a Parquet file with these columns cannot be UBI."""
    missing = []
    if not {"action_name", "user_query"} & set(names):
        missing.append("action_name (events) or user_query (queries)")
    if "timestamp" not in names:
        missing.append("timestamp")
    if "action_name" in names and "event_attributes" not in names:
        missing.append("event_attributes")
    if missing:
        raise InputError(f"missing column {missing[0]}; it has {', '.join(names)}")


def _unpacked(head: bytes, *, whole: bool) -> bytes:
    """The complete lines among the first bytes of a file, which may be gzipped; `whole`: that is all of it."""
    if head.startswith(_GZIP):
        unzip = zlib.decompressobj(31)
        head = unzip.decompress(head, _HEAD_BYTES)
        whole = unzip.eof
    return head if whole else head[: head.rfind(b"\n") + 1]


def _check_lines(text: bytes) -> None:
    """Raise InputError if none of the first lines is UBI."""
    seen: dict[str, None] = {}
    wrong = []
    for number, line in enumerate(text.splitlines()[:_HEAD_LINES], 1):
        reason = _fault(line)
        if not reason:
            seen |= dict.fromkeys(json.loads(line))
        elif line.strip():
            wrong.append(f"line {number}: {reason}, expected one JSON object a line")
    if not seen and wrong:
        raise InputError(wrong[0])
    if seen and not seen.keys() & _KEYS:
        hint = "; export the documents alone, without _index and _source around them" if "_source" in seen else ""
        raise InputError(f"no query_id, action_name or user_query in its first lines, but {_some(seen)}{hint}")


def _fault(line: bytes) -> str | None:
    """Why a line is no JSON object, without quoting from it."""
    try:
        text = line.rstrip().decode("utf-8")
        record = json.loads(text)
        if "\\u" in text:
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start + 1}"
    except UnicodeEncodeError:
        return "not JSON (half of a surrogate pair)"
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at").removesuffix(" starting")
        return f"not JSON ({what[:1].lower()}{what[1:]} at column {error.colno})"
    except RecursionError:
        return "not JSON (nested too deeply)"
    return None if isinstance(record, dict) else _json_type(record)


def _json_type(value: Any) -> str:
    return f"a JSON {_JSON_TYPES.get(type(value), 'number')}"


def _some(keys: Iterable[str]) -> str:
    shown = [_shown(key) for key in itertools.islice(keys, EXAMPLES + 1)]
    return ", ".join([*shown[:EXAMPLES], "..."] if len(shown) > EXAMPLES else shown)


def _malformed(connection: duckdb.DuckDBPyConnection, path: Path) -> Iterator[str]:
    """Number and reason of each line of which DuckDB made nothing."""
    opener: Any = gzip.open if _magic(path).startswith(_GZIP) else Path.open
    with opener(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            fault = _fault(line)
            if fault is None:
                record = json.loads(line)
                if all(record.get(name) is None for name in (*_FIELDS, *_BULK)):
                    yield f"line {number}: no field of UBI, but {_some(record)}"
            # DuckDB takes more for JSON than the standard has, such as a comma after the last member.
            elif "not JSON" not in fault or not _one(connection, "SELECT json_valid(?)", [line.decode()])[0]:
                yield f"line {number}: {fault}"


# Judgements of the Search Relevance Workbench ---------------------------------------------------------------------


def _is_json(stored: StoredFile) -> bool:
    if stored.name.lower().endswith(_LISTS):
        return True
    with contextlib.suppress(OSError, zlib.error), stored.open_ranges() as handle:
        head = handle.read(1 << 10)
        if head.startswith(_GZIP):
            head = zlib.decompressobj(31).decompress(head)
        return head.lstrip().startswith(b"{")
    return False


class JudgementList(File):
    """A judgement list of the Search Relevance Workbench, a row a rating, counted from 1 over all of its queries.

    It is one JSON value: {"judgmentRatings": [{"query": "...", "ratings": [{"docId": "...", "rating": "100.000"}]}]}.
    """

    def __init__(self, stored: StoredFile, rating_range: tuple[float, float]) -> None:
        super().__init__(stored, {"query": "query", "product_id": "docId", "rating": "rating"})
        self.rating_range = rating_range

    def _queries(self) -> list[Any]:
        """What the list holds of each query, unchecked.

        Raises:
            InputError: it is not such a list.
        """
        with self._readable(), self.stored.open_local() as path:
            text = path.read_bytes()
            if text.startswith(_GZIP):
                text = gzip.decompress(text)
        try:
            value = json.loads(text)
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.name}: not UTF-8 at byte {error.start + 1}") from None
        except UnicodeEncodeError:
            raise InputError(f"{self.name}: not JSON (half of a surrogate pair)") from None
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{self.name}: not JSON ({error})") from None
        found = value.get("judgmentRatings") if isinstance(value, dict) else None
        if not isinstance(found, list) or not found:
            seen = _some(value) if isinstance(value, dict) else _json_type(value)
            raise InputError(f"{self.name}: has {seen}, expected an object with queries in judgmentRatings")
        return found

    def check(self, problems: Problems | None = None) -> bool:
        problems = Problems() if problems is None else problems
        try:
            self._queries()
        except InputError as error:
            self.complain(problems, error)
            return False
        return True

    def batches(self, problems: Problems, *, lenient: Collection[str] = (), ranges: bool = False) -> Iterator[Rows]:
        try:
            queries = self._queries()
        except InputError as error:
            self.complain(problems, error)
            return
        good: list[tuple[int, str, str, float]] = []
        row = 0
        for number, each in enumerate(queries, 1):
            query, ratings = (each.get("query"), each.get("ratings")) if isinstance(each, dict) else (None, None)
            if not isinstance(query, str) or normalize.is_blank(query):
                self._complain_of(f"query {number}: query", query, "a query", problems)
                continue
            if not isinstance(ratings, list):
                self._complain_of(f"query {number}: ratings", ratings, "a list", problems)
                continue
            for place, rated in enumerate(ratings, 1):
                row += 1
                where = f"query {number}, rating {place}"
                product, text = (rated.get("docId"), rated.get("rating")) if isinstance(rated, dict) else (None, None)
                rating = _number(text)
                lowest, highest = self.rating_range
                if not isinstance(product, str | int) or isinstance(product, bool) or not str(product).strip():
                    self._complain_of(f"{where}: docId", product, "a product id", problems)
                elif rating is None or not lowest <= rating <= highest:
                    self._complain_of(f"{where}: rating", text, f"a number from {lowest:g} to {highest:g}", problems)
                else:
                    good.append((row, query, str(product), rating))
        rows = Rows(self, np.array([each[0] for each in good], np.int64), problems, lenient)
        rows.set_column("query", pa.array([each[1] for each in good], pa.string()))
        rows.set_column("product_id", pa.array([each[2] for each in good], pa.string()))
        rows.set_column("rating", pa.array([each[3] for each in good], pa.float64()))
        yield rows

    def _complain_of(self, where: str, value: Any, expected: str, problems: Problems) -> None:
        seen = "empty" if value is None or value == "" else _shown(str(value))
        problems.add(self.name, f"expected {expected}", examples=[f"{where} is {seen}"])


def _number(value: Any) -> float | None:
    """A finite number, as such or as text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    with contextlib.suppress(ValueError, OverflowError):
        number = float(value)
        return number if math.isfinite(number) else None
    return None
