"""Output of commands: tables for people, JSON for machines."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from distilrank.core.progress import json_text, printable

UNLIMITED = 100_000
"""Width of an output without one, such as a pipe: tables are as wide as their content."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


class _Console(Console):
    """A console that shows control characters instead of executing them."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def console(*, markup: bool = False) -> Console:
    """Return a console for standard output.

    Nothing is wrapped in a pipe or a file, so that digests, paths and versions can be copied.

    Args:
        markup: whether to interpret rich's markup in texts.
    """
    width = None if sys.stdout.isatty() else UNLIMITED
    return _Console(file=sys.stdout, width=width, markup=markup, highlight=False, emoji=False)


def new_table(*headings: str, title: str = "", **options: Any) -> Table:
    """Return a table that never cuts a cell: a terminal wraps long words, elsewhere columns are as wide as needed.

    Args:
        headings: headings of the columns.
        title: printed above the table.
        options: further options of `rich.table.Table`.
    """
    whole: dict[str, Any] = {"overflow": "fold"} if sys.stdout.isatty() else {"overflow": "ignore", "no_wrap": True}
    columns = [Column(heading, overflow="fold") for heading in headings]
    return Table(
        *columns, title=Text(printable(title), "table.title", **whole), **options
    )  # else wrapped at the table's width


def print_json(value: Any) -> None:
    """Print `value` as readable JSON."""
    print(json_text(value, indent=2))
