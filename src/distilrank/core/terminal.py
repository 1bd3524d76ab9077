"""How commands print: tables for people, JSON for machines."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from distilrank.core.progress import json_text, printable

UNLIMITED = 100_000
"""Columns of an output that has no width: tables are as wide as their content."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


class _Console(Console):
    """A console on which control characters within texts are shown instead of obeyed."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def console(*, markup: bool = False) -> Console:
    """Standard output as it is now, for text and tables; nothing in them is taken for markup unless asked for.

    Digests, paths and versions are there to be copied. A pipe or a file has no width, so nothing is wrapped there.
    """
    width = None if sys.stdout.isatty() else UNLIMITED
    return _Console(file=sys.stdout, width=width, markup=markup, highlight=False, emoji=False)


def new_table(*headings: str, title: str = "", **options: Any) -> Table:
    """A table that shows its cells whole: on a terminal long words continue on the next line, elsewhere columns fit.

    Args:
        headings: of the columns.
        title: printed above.
        options: further ones of `rich.table.Table`.
    """
    whole: dict[str, Any] = {"overflow": "fold"} if sys.stdout.isatty() else {"overflow": "ignore", "no_wrap": True}
    columns = [Column(heading, overflow="fold") for heading in headings]
    return Table(
        *columns, title=Text(printable(title), "table.title", **whole), **options
    )  # else wrapped at the table's width


def print_json(value: Any) -> None:
    """Print `value` as readable JSON."""
    print(json_text(value, indent=2))
