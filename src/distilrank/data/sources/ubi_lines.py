"""Inspect lines and columns of a UBI log: whether a file is UBI, and what is wrong with a line."""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb

from distilrank.core.errors import InputError
from distilrank.core.problems import EXAMPLES

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
"""First bytes of these file types."""

KEY_FIELDS = ("query_id", "action_name", "user_query")
"""Fields of which each UBI record has at least one."""
FIELDS = (*KEY_FIELDS, "client_id", "timestamp", "application", "event_attributes", "query_response_hit_ids")
"""The fields that are read."""
NESTED_FIELDS = ("event_attributes", "query_response_hit_ids")
"""Those that hold JSON."""
BULK_ACTIONS = ("index", "create", "update", "delete")
"""Keys of the lines between the documents of a bulk request."""

HEAD_BYTES = 1 << 20
_HEAD_LINES = 100
_QUOTED_CHARACTERS = 60
_JSON_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}


def read_magic(path: Path) -> bytes:
    """Read the first bytes of a file, which distinguish gzip and Parquet from text."""
    with path.open("rb") as handle:
        return handle.read(len(PARQUET))


def verify_gzip(path: Path) -> None:
    """Raise OSError if a gzipped file does not match its checksum, which DuckDB ignores."""
    if read_magic(path).startswith(GZIP):
        with gzip.open(path, "rb") as handle:
            while handle.read(HEAD_BYTES):
                pass


def quote(value: str) -> str:
    """Quote a value for a message, and shorten it if it is long."""
    return repr(value if len(value) <= _QUOTED_CHARACTERS else value[: _QUOTED_CHARACTERS - 1] + "…")


def check_columns(names: list[str]) -> None:
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


def complete_lines(head: bytes, *, whole: bool) -> bytes:
    """Return the complete lines in the first bytes of a file, which may be gzipped.

    Args:
        head: the first bytes.
        whole: whether these are all bytes of the file; its last line then needs no line break.
    """
    if head.startswith(GZIP):
        unzip = zlib.decompressobj(31)
        head = unzip.decompress(head, HEAD_BYTES)
        whole = unzip.eof
    return head if whole else head[: head.rfind(b"\n") + 1]


def check_lines(text: bytes) -> None:
    """Raise InputError if none of the first lines is UBI."""
    keys: dict[str, None] = {}
    faults = []
    for number, line in enumerate(text.splitlines()[:_HEAD_LINES], 1):
        fault = find_fault(line)
        if not fault:
            keys |= dict.fromkeys(json.loads(line))
        elif line.strip():
            faults.append(f"line {number}: {fault}, expected one JSON object per line")
    if not keys and faults:
        raise InputError(faults[0])
    if keys and not keys.keys() & KEY_FIELDS:
        hint = "; export the documents alone, without _index and _source around them" if "_source" in keys else ""
        raise InputError(f"no query_id, action_name or user_query in its first lines, but {list_keys(keys)}{hint}")


def find_fault(line: bytes) -> str | None:
    """Describe why a line is not a JSON object, without quoting it."""
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
    except ValueError:  # Python refuses numbers of more than 4300 digits
        return "not JSON (a number has too many digits)"
    except RecursionError:
        return "not JSON (nested too deeply)"
    return None if isinstance(record, dict) else json_type(record)


def json_type(value: Any) -> str:
    """Name the type of a JSON value for a message: `a JSON array`."""
    return f"a JSON {_JSON_TYPES.get(type(value), 'number')}"


def list_keys(keys: Iterable[str]) -> str:
    """List the first keys of a JSON object for a message."""
    quoted = [quote(key) for key in itertools.islice(keys, EXAMPLES + 1)]
    return ", ".join([*quoted[:EXAMPLES], "..."] if len(quoted) > EXAMPLES else quoted)


def find_malformed(connection: duckdb.DuckDBPyConnection, path: Path) -> Iterator[str]:
    """Yield number and fault of each line in which DuckDB found no field, without quoting values."""
    opener: Any = gzip.open if read_magic(path).startswith(GZIP) else Path.open
    with opener(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            fault = find_fault(line)
            if fault is None:
                record = json.loads(line)
                if all(record.get(name) is None for name in (*FIELDS, *BULK_ACTIONS)):
                    yield f"line {number}: no field of UBI, but {list_keys(record)}"
            elif "not JSON" not in fault or not _is_read_by_duckdb(connection, line):
                yield f"line {number}: {fault}"


def _is_read_by_duckdb(connection: duckdb.DuckDBPyConnection, line: bytes) -> bool:
    """Whether DuckDB finds a field of UBI in a line that Python rejects.

    DuckDB accepts more than Python: a comma after the last member, any depth, numbers of any length.
    """
    text = line.decode()
    (is_valid,) = connection.execute("SELECT json_valid(?)", [text]).fetchall()[0]
    if not is_valid:
        return False
    paths = [f"$.{name}" for name in (*FIELDS, *BULK_ACTIONS)]
    (values,) = connection.execute("SELECT json_extract_string(?, ?::VARCHAR[])", [text, paths]).fetchall()[0]
    return any(value is not None for value in values)
