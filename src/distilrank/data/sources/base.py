"""The protocols that every source of judgements, catalogue and log follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

import duckdb
import pyarrow as pa

from distilrank.core.problems import Problem, Problems

NO_IMPRESSIONS = "no impressions"
"""How `Problem.what` begins for a part in which nothing was shown; its examples say what there is instead."""


class Part(Protocol):
    """A piece of a log that is read as a whole: a file, as a rule."""

    name: str
    """Path or URI, for messages."""

    def key(self) -> str:
        """What changes whenever the part does, told without reading it: path, size and time, or a generation."""

    def digest(self) -> str:
        """SHA-256 of the content."""

    def days(self) -> dict[date | None, int]:
        """Rows of each UTC day, by the timestamps alone; None: rows without one."""

    def load(self, connection: duckdb.DuckDBPyConnection, problems: Problems) -> None:
        """Append the part to the table `events` of `connection`, which has the columns of schemas.EVENTS.

        Rows that are left out are added to `problems`, not fatal; what stops the run is.
        """


@dataclass(frozen=True)
class Log:
    """A search log in parts, not read yet."""

    parts: Sequence[Part]
    timed: bool
    """Whether its rows tell when they happened."""
    clients: bool
    """Whether its rows tell who searched."""
    settings: Any
    """JSON value: whatever else decides what `load` gives (actions, names of columns)."""
    row_ids: bool = False
    """Whether its rows have ids, by which one that comes again is known."""
    people: bool = True
    """Whether people typed it; if not, nobody's privacy is at stake."""
    problems: Sequence[Problem] = ()
    """What its folder holds besides, none of it fatal."""


class Source(Protocol):
    """Where judgements, catalogue and logs come from.

    `open` does not read data. The tables are read when asked for; what is wrong with them is added to the `problems`
    that the caller gives, which raises an InputError at the first fatal one unless it collects them.
    """

    rating_range: tuple[float, float]
    """Lowest and highest rating of the scale."""

    rating_conflicts: str
    """How several ratings of a pair become one, as in `data.rating_conflicts`; refuse: a pair has one rating."""

    relevant_from: float
    """Rating from which a pair counts as relevant."""

    def files(self) -> list[str]:
        """Paths or URIs of the files behind catalogue and judgements; empty for generated data."""

    def check(self, problems: Problems) -> None:
        """Find out whether every file and column is there, the log's included, without reading the rows."""

    def digest(self) -> str:
        """Digest of everything that catalogue and judgements depend on."""

    def products(self, problems: Problems) -> Iterator[pa.RecordBatch]:
        """The catalogue, as schemas.PRODUCTS, texts and repeated ids as they stand in the source."""

    def judgements(self, problems: Problems) -> pa.Table:
        """The judged pairs, as schemas.JUDGEMENTS."""

    def log(self) -> Log | None:
        """The search log, or None where there is none."""
