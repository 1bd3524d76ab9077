"""JSON files that stages write and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distilrank.core.artifacts.writing import write_text
from distilrank.core.errors import InputError


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; floats must be finite."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, kind: type[dict | list] = dict) -> Any:
    """Read a JSON file that holds an object or, with `kind`, an array.

    Raises:
        InputError: the file is missing, is not JSON, or holds something else.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    return parse_json(data, str(path), kind)


def parse_json(data: str | bytes, origin: str, kind: type[dict | list] = dict) -> Any:
    """Parse a JSON text (UTF-8) that holds an object or, with `kind`, an array.

    Args:
        data: the text.
        origin: file or response that the text is from, for messages.
        kind: dict for an object, list for an array.

    Raises:
        InputError: the text is not JSON, holds something else, or is nested deeper than Python reads.
    """
    try:
        value = json.loads(data)
    except ValueError as error:  # not UTF-8 and a number of too many digits included
        raise InputError(f"{origin}: not JSON ({error})") from None
    except RecursionError:
        raise InputError(f"{origin}: not JSON that can be read (nested too deeply)") from None
    if not isinstance(value, kind):
        expected = "object" if kind is dict else "array"
        text = data if isinstance(data, str) else data.decode(errors="replace")
        raise InputError(f"{origin}: holds {text.strip()[:60]}, expected a JSON {expected}")
    return value
