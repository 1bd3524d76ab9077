"""How commands show progress and values."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distilrank.core import progress


@contextlib.contextmanager
def progress_counter(stage: str, unit: str) -> Iterator[Callable[[int], progress.Counter]]:
    """Yield a factory of counters, which takes the total: a bar on a terminal, log lines elsewhere.

    Standard output is redirected to standard error, so that it holds nothing but the command's result.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if not sys.stderr.isatty():
            yield lambda total: progress.Counter(stage, total, unit)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:

            class BarCounter(progress.Counter):
                def __init__(self, total: int) -> None:
                    super().__init__(stage, total, unit)
                    self._task = bar.add_task(unit, total=total)

                def add(self, count: int, *notes: str) -> None:
                    bar.advance(self._task, count)

            yield BarCounter


def cell(value: Any) -> str:
    """Return a value of a report as the text of one table cell, with an item per line."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {cell(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return "\n".join(map(cell, value)) or "-"
    return str(value) or "-"
