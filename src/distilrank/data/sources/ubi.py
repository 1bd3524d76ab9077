"""Search logs in OpenSearch's User Behavior Insights (UBI) schema, with your own judgements and catalogue.

A log is NDJSON (gzipped or not, also as a bulk request) or Parquet. DuckDB reads it (`ubi_sql`). This module has the
source and its parts, and reports lines and records that are left out.
"""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections.abc import Iterator, Sequence
from datetime import date
from functools import cache, cached_property
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from distilrank.config import Ubi
from distilrank.core.errors import InputError
from distilrank.core.problems import EXAMPLES, Problem, Problems
from distilrank.data.sources import reading, storage, tables
from distilrank.data.sources.base import NO_IMPRESSIONS, Log
from distilrank.data.sources.reading import File
from distilrank.data.sources.storage import StoredFile
from distilrank.data.sources.ubi_judgements import LIST_SUFFIXES, JudgementList, is_judgement_list
from distilrank.data.sources.ubi_lines import (
    HEAD_BYTES,
    PARQUET,
    check_columns,
    check_lines,
    complete_lines,
    find_malformed,
    quote,
    verify_gzip,
)
from distilrank.data.sources.ubi_sql import (
    between_2000_and_2100,
    id_or_null,
    select_events,
    select_fields,
    select_records,
    split_time,
    text_or_null,
    to_utc,
)

SUFFIXES = (".ndjson", ".ndjson.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""Suffixes of log files."""

READING = 2
"""Version of the log reader; increase it whenever the same log file would give other rows."""

_DAMAGED = (
    OSError,
    EOFError,
    zlib.error,
    pa.ArrowException,
    duckdb.IOException,
    duckdb.InvalidInputException,
    duckdb.ConversionException,  # a Parquet time outside the range of TIMESTAMP
)
_NAMED_ACTIONS = 20


def open(data: Ubi) -> UbiSource:
    """Return the source of the files that `data` names, without reading them."""
    return UbiSource(data)


class UbiSource(tables.JudgedFiles):
    """Judgements, catalogue and UBI logs; see `sources.base.Source`.

    Judgements may also be lists of OpenSearch's Search Relevance Workbench, recognized by name or first character.
    """

    data: Ubi

    def _files(self, reference: str, names: Sequence[str], problems: Problems) -> list[File]:
        if "rating" not in names:
            return super()._files(reference, names, problems)
        columns = self._columns(names)
        return [
            JudgementList(stored, self.rating_range)
            if is_judgement_list(stored)
            else File(stored, columns, csv=self.data.csv)
            for stored in storage.files(reference, (*tables.SUFFIXES, *LIST_SUFFIXES), problems)
        ]

    def _list(self, problems: Problems) -> list[UbiPart]:
        """The files of `queries`, then those of `events`; a file of both is listed once."""
        parts: dict[str, UbiPart] = {}
        for reference in filter(None, (self.data.queries, self.data.events)):
            for stored in storage.files(reference, SUFFIXES, problems):
                parts.setdefault(stored.key(), UbiPart(stored, self.data))
        return list(parts.values())

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


class UbiPart:
    """One file of queries, of events, or of both; see `sources.base.Part`."""

    def __init__(self, stored: StoredFile, data: Ubi) -> None:
        self.name, self.stored, self.data = stored.name, stored, data

    def key(self) -> str:
        return self.stored.key()

    def digest(self) -> str:
        return self.stored.digest()

    @contextlib.contextmanager
    def _reading(self, problems: Problems | None = None) -> Iterator[None]:
        """Turn errors while reading the file into a fatal problem or, without `problems`, into an InputError."""
        try:
            yield
            return
        except FileNotFoundError:
            reason = "no such file"
        except InputError as error:
            reason = str(error).removeprefix(f"{self.name}: ")
        except (*_DAMAGED, duckdb.Error) as error:
            # Damaged Parquet raises a plain Error; subclasses are our bugs, or a lack of memory.
            if isinstance(error, duckdb.Error) and not (isinstance(error, _DAMAGED) or type(error) is duckdb.Error):
                raise
            detail = (str(error).strip() or type(error).__name__).splitlines()[0]
            if "Invalid string encoding" in detail:  # the value follows, which may be a client id
                detail = "text that is not UTF-8, or ids as bytes; write them as text"
            reason = f"damaged or not readable ({detail})"
        if problems is None:
            raise InputError(f"{self.name}: {reason}")
        problems.add(self.name, reason)

    def check(self, problems: Problems) -> None:
        """Check by the beginning of the file that it is UBI."""
        with self._reading(problems), self.stored.open_ranges() as handle:
            head = handle.read(HEAD_BYTES)
            if head.startswith(PARQUET):
                check_columns(pq.read_schema(handle).names)
            else:
                check_lines(complete_lines(head, whole=not handle.read(1)))

    def days(self) -> dict[date | None, int]:
        with self._reading(), self.stored.open_local() as path, _memory().cursor() as connection:
            stamps = f"""SELECT {text_or_null("timestamp")} AS stamp
                FROM ({select_fields(connection, path, ["timestamp"])})"""
            times = f"""SELECT {to_utc("stamp")} AS utc
                FROM (SELECT stamp, {split_time("stamp")} AS clock FROM ({stamps}) WHERE stamp IS NOT NULL)"""
            rows = connection.execute(
                f"SELECT {between_2000_and_2100('utc')}::DATE, count(*) FROM ({times}) GROUP BY 1"
            ).fetchall()
        return dict(rows)

    def load(self, connection: duckdb.DuckDBPyConnection, problems: Problems) -> None:
        examples = None
        try:
            with self._reading(problems), self.stored.open_local() as path:
                verify_gzip(path)
                connection.execute(
                    f"CREATE OR REPLACE TEMP TABLE ubi_records AS {select_records(connection, path, self.data)}"
                )
                (malformed,) = _one(connection, "SELECT count(*) FROM ubi_records WHERE kind = 'malformed'")
                examples = list(itertools.islice(find_malformed(connection, path), EXAMPLES)) if malformed else []
            if examples is None:
                return
            self._note_lines(connection, examples, problems)
            self._note_records(connection, problems)
            self._note_no_impressions(connection, problems)
            connection.execute(f"INSERT INTO events BY NAME {select_events(self.data)}")
        finally:
            connection.execute("DROP TABLE IF EXISTS ubi_records")

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
            """Report the records that match `where`, with the first values of `value` as examples."""
            rows, values = _one(
                connection, f"SELECT count(*), min(DISTINCT {value}, {EXAMPLES}) FROM ubi_records WHERE {where}"
            )
            examples = [f"{label} is {quote(example)}" for example in values or ()]
            problems.add(self.name, what, rows=rows, examples=examples, fatal=False)

        note("records with neither user_query nor action_name", "kind = 'neither'")
        actions = _actions(connection, "kind = 'other'")
        for action, rows in actions[:_NAMED_ACTIONS]:
            what = f"events with action_name {quote(action)}: not used, neither impressions nor clicks"
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
            f"events with unknown position, expected a whole number from {lowest}",
            f"kind = 'event' AND left_out IS NULL AND place IS NOT NULL AND (ordinal IS NULL OR ordinal < {lowest})",
            "place",
            "event_attributes.position.ordinal",
        )
        note(
            "records without client_id: not counted for prepare.privacy.min_clients",
            "left_out IS NULL AND client IS NULL",
        )
        if self.data.impressions == "hits":
            note("query records without a list query_response_hit_ids", "kind = 'query' AND hits IS NULL")
            note(
                "query records with hits that are not ids",
                f"""kind = 'query' AND left_out IS NULL
                AND len(list_filter(hits, lambda hit: {id_or_null("json_extract_string(hit, '$')")} IS NULL)) > 0""",
            )
        (others,) = _one(
            connection,
            """SELECT count(*) FROM (
                SELECT query <> first_value(query) OVER (PARTITION BY search ORDER BY utc, query) AS other
                FROM ubi_records WHERE kind = 'query' AND left_out IS NULL AND search IS NOT NULL
            ) WHERE other""",
        )
        what = "query records whose query_id has several user_query values: events without one get the first"
        problems.add(self.name, what, rows=others, fatal=False)

    def _note_no_impressions(self, connection: duckdb.DuckDBPyConnection, problems: Problems) -> None:
        """Report a part without impressions, and what it has instead; not fatal, since other parts may have some."""
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
            actions = " or ".join(map(repr, self.data.impression_actions))
            what = (
                f"{NO_IMPRESSIONS}: no event has action_name {actions}; name another in data.impression_actions, "
                "or set data.impressions: hits"
            )
            examples = [f"action_name is {quote(action)} in {count} events" for action, count in _actions(connection)]
        if not shown:
            problems.add(self.name, what, rows=rows, examples=examples, fatal=False)


@cache
def _memory() -> duckdb.DuckDBPyConnection:
    """A shared database for scans without results in tables; opening one takes longer than scanning a small file."""
    return duckdb.connect()


def _one(connection: duckdb.DuckDBPyConnection, statement: str, values: Sequence[str] = ()) -> tuple[Any, ...]:
    return connection.execute(statement, values).fetchall()[0]


def _actions(connection: duckdb.DuckDBPyConnection, where: str = "kind IN ('event', 'other')") -> list[tuple[str, int]]:
    """Return each action_name with its number of events, most frequent first."""
    return connection.execute(
        f"SELECT action, count(*) AS rows FROM ubi_records WHERE {where} GROUP BY action ORDER BY rows DESC, action"
    ).fetchall()
