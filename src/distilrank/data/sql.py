"""Values and file names as literals of DuckDB's SQL."""

from __future__ import annotations

from collections.abc import Iterable


def quoted(value: object) -> str:
    """`value` as a string literal."""
    return "'" + str(value).replace("'", "''") + "'"


def file_list(paths: Iterable[object]) -> str:
    """A list literal of exactly these files, escaped since DuckDB treats file names as patterns."""
    names = ("".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path)) for path in paths)
    return f"[{', '.join(map(quoted, names))}]"
