"""The SQL statements with which DuckDB reads a UBI log: fields of lines or rows, records, and events.

The functions take and return SQL: expressions, or statements beginning with SELECT or WITH.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb

from distilrank.config import Ubi
from distilrank.data import sql
from distilrank.data.sources.ubi_lines import (
    BULK_ACTIONS,
    FIELDS,
    GZIP,
    NESTED_FIELDS,
    PARQUET,
    check_columns,
    read_magic,
)

_LONGEST_LINE = 1 << 21  # bytes; the buffer of each thread is twice as long
_CLOCK = (
    r"^\s*(\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?)"
    r"\s*(?:Z|UTC|([+-])([01]\d):?([0-5]\d)?)?\s*$"
)


def text_or_null(value: str) -> str:
    """A text; null if it is blank, or an object or array, which DuckDB returns as JSON."""
    first = f"ord({value})"  # of an empty text it is 0
    return f"""CASE WHEN {first} > 32 THEN CASE WHEN {first} NOT IN ({ord("{")}, {ord("[")}) THEN {value} END
        WHEN {first} > 0 AND regexp_matches({value}, '\\S') THEN {value} END"""


def id_or_null(value: str) -> str:
    """A text or number as text; 3.0 and 3.000000000, as some exports write 3, become 3."""
    return f"""CASE WHEN suffix({value}, '0') AND regexp_matches({value}, '^-?[0-9]+\\.0+$')
        THEN regexp_replace({value}, '\\.0+$', '') ELSE {text_or_null(value)} END"""


def parse_nested(value: str) -> str:
    """A JSON value, which some exports write as a string that contains JSON."""
    return f"""CASE WHEN starts_with({value}, '"') THEN try_cast(json_extract_string({value}, '$') AS JSON)
        ELSE {value} END"""


def split_time(text: str) -> str:
    """The parts of an ISO 8601 time; null for a time that `to_utc` casts directly."""
    parts = f"regexp_extract({text}, {sql.quoted(_CLOCK)}, ['local', 'sign', 'hours', 'minutes'])"
    return f"CASE WHEN NOT {is_plain_time(text)} THEN {parts} END"


def is_plain_time(text: str) -> str:
    """Whether a time has the usual form: 2026-03-31T12:00:00.000Z."""
    return f"(suffix({text}, 'Z') AND strlen({text}) BETWEEN 20 AND 27)"


def to_utc(text: str) -> str:
    """`text` as TIMESTAMP in UTC by its column `clock`, or, a number, as time since the epoch; null if unreadable.

    Without a zone it is UTC. DuckDB's own cast to TIMESTAMP ignores zones, and that to TIMESTAMPTZ takes the session's
    where there is none.
    """
    number = f"try_cast({text} AS DOUBLE)"
    offset = "to_minutes(60 * try_cast(clock.hours AS INTEGER) + coalesce(try_cast(clock.minutes AS INTEGER), 0))"
    return f"""CASE
        WHEN {is_plain_time(text)} THEN try_cast({text} AS TIMESTAMP)
        WHEN clock.sign = '+' THEN try_cast(clock.local AS TIMESTAMP) - {offset}
        WHEN clock.sign = '-' THEN try_cast(clock.local AS TIMESTAMP) + {offset}
        WHEN clock.local <> '' THEN try_cast(clock.local AS TIMESTAMP)
        -- the unit that puts a number between 2000 and 2100
        WHEN {number} >= 946684800 THEN make_timestamp(round({number} * CASE WHEN {number} < 4102444800 THEN 1e6
            WHEN {number} BETWEEN 946684800e3 AND 4102444800e3 THEN 1e3
            WHEN {number} BETWEEN 946684800e6 AND 4102444800e6 THEN 1
            WHEN {number} BETWEEN 946684800e9 AND 4102444800e9 THEN 1e-3 END)::BIGINT)
        END"""


def between_2000_and_2100(utc: str) -> str:
    """A TIMESTAMP, null unless between 2000 and 2100; Python cannot represent all dates of DuckDB."""
    return f"CASE WHEN {utc} >= TIMESTAMP '2000-01-01' AND {utc} < TIMESTAMP '2100-01-01' THEN {utc} END"


def select_fields(connection: duckdb.DuckDBPyConnection, path: Path, names: Sequence[str] = FIELDS) -> str:
    """Selects fields of each line or row, as text or JSON, `bulk` and `nothing`, which a line that cannot be read is.

    Raises:
        InputError: a Parquet file lacks a column.
    """
    magic = read_magic(path)
    file = sql.file_list([path])
    if magic != PARQUET:
        kinds = {name: "JSON" if name in NESTED_FIELDS else "VARCHAR" for name in (*names, *BULK_ACTIONS)}
        columns = ", ".join(f"{sql.quoted(name)}: '{kind}'" for name, kind in kinds.items())
        return f"""SELECT *, coalesce({", ".join(f"{name}::VARCHAR" for name in names)}) IS NULL AS nothing,
                coalesce({", ".join(f'"{name}"' for name in BULK_ACTIONS)}) IS NOT NULL AS bulk
            FROM read_ndjson({file}, columns = {{{columns}}}, ignore_errors = true, hive_partitioning = false,
                maximum_object_size = {_LONGEST_LINE},
                compression = '{"gzip" if magic.startswith(GZIP) else "none"}')"""
    table = f"read_parquet({file}, binary_as_string = true, hive_partitioning = false)"
    types = {row[0]: row[1] for row in connection.execute(f"DESCRIBE FROM {table}").fetchall()}
    check_columns(list(types))
    columns = ", ".join(
        f"{'to_json' if name in NESTED_FIELDS else ''}({utc_column(name, types.get(name, ''))})"
        f"{'' if name in NESTED_FIELDS else '::VARCHAR'} AS {name}"
        for name in names
    )
    return f"SELECT {columns}, FALSE AS nothing, FALSE AS bulk FROM {table}"


def utc_column(column: str, kind: str) -> str:
    """A column of a Parquet file by its type, times in UTC without a zone; null if there is no such column."""
    if kind in ("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS"):
        return f"make_timestamp(epoch_us(try_cast({column} AS TIMESTAMPTZ)))"
    return f"try_cast({column} AS TIMESTAMP)" if kind.startswith("TIMESTAMP") else column if kind else "NULL"


def select_records(connection: duckdb.DuckDBPyConnection, path: Path, data: Ubi) -> str:
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
            SELECT nothing, bulk, {id_or_null("query_id")} AS search, {text_or_null("user_query")} AS query,
                {id_or_null("client_id")} AS client, {text_or_null("action_name")} AS action,
                {text_or_null("application")} AS application, {text_or_null("timestamp")} AS stamp,
                {parse_nested("query_response_hit_ids")} AS hits,
                json_extract_string({parse_nested("event_attributes")}, {attributes}) AS attributes
            FROM ({select_fields(connection, path)})
        ), clocks AS (
            SELECT *, {split_time("stamp")} AS clock, {shown} AS shown, {clicked} AS clicked,
                {id_or_null("attributes[1]")} AS product_id, {text_or_null("attributes[2]")} AS field,
                try_cast(attributes[3] AS DOUBLE) AS ordinal, attributes[3] AS place
            FROM texts
        ), kinds AS (
            SELECT * REPLACE (
                    CASE WHEN ordinal BETWEEN 0 AND 2147483646 AND ordinal % 1 = 0
                        THEN try_cast(ordinal AS INTEGER) END AS ordinal,
                    CASE WHEN starts_with(hits, '[') THEN json_extract(hits, '$[*]') END AS hits
                ), {to_utc("stamp")} AS utc,
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
        FROM (SELECT * REPLACE ({between_2000_and_2100("utc")} AS utc) FROM kinds)"""


def select_events(data: Ubi) -> str:
    """Selects schemas.EVENTS from the table of `select_records`."""
    first, shown, hits = f"{data.first_position}", "shown::INTEGER", ""
    if data.first_position == "auto":
        first = "CASE WHEN min(ordinal) = 0 THEN 0 ELSE 1 END"
    searches = "FROM ubi_records WHERE kind = 'query' AND left_out IS NULL"
    if data.impressions == "hits":
        shown = "0"
        hits = f"""UNION ALL SELECT utc, search, query, {id_or_null("hit")} AS product_id, position, 1, 0, client FROM (
                SELECT utc, search, query, client, json_extract_string(unnest(hits), '$') AS hit,
                    generate_subscripts(hits, 1) AS position
                {searches}
            ) WHERE {id_or_null("hit")} IS NOT NULL"""
    # Applications that share a file may number their ranks differently.
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
