"""How commands print: tables for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def console() -> Console:
    """Standard output, for text and tables that hold what others wrote: nothing in it is taken for markup."""
    # A pipe has no width of its own; the default of 80 would fold the tables.
    return Console(width=None if sys.stdout.isatty() else 140, markup=False, highlight=False, emoji=False)


def print_json(value: Any) -> None:
    """Print `value` as readable JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def figure(value: float | None, sign: str = "-") -> str:
    """A measure, or - where a system has none; `sign` "+" shows that of a positive one too."""
    return "-" if value is None else f"{value:{sign}.4f}"
