"""Protocols of a source of judgements, catalogue and log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

import duckdb
import pyarrow as pa

from distilrank.core.problems import Problem, Problems

NO_IMPRESSIONS = "no impressions"
"""Beginning of `Problem.what` for a part without impressions; its examples say what it has instead."""


class Part(Protocol):
    """A piece of a log that is read as a whole, usually a file."""

    name: str
    """Path or URI, for messages."""

    def key(self) -> str:
        """Key that changes with the part, computed without reading it: path, size and time, or a generation."""

    def digest(self) -> str:
        """SHA-256 of the content."""

    def days(self) -> dict[date | None, int]:
        """Number of rows of each UTC day; None: rows without a timestamp."""

    def load(self, connection: duckdb.DuckDBPyConnection, problems: Problems) -> None:
        """Append the part to the table `events` of `connection`, which has the columns of schemas.EVENTS.

        Rows that are left out are added to `problems` as not fatal; problems that stop the run as fatal.
        """


@dataclass(frozen=True)
class Log:
    """A search log in parts that are not read yet."""

    parts: Sequence[Part]
    timed: bool
    """Whether its rows have times."""
    clients: bool
    """Whether its rows have client ids."""
    settings: Any
    """JSON value: all other settings that affect `load` (actions, column names)."""
    row_ids: bool = False
    """Whether its rows have ids, by which repeated rows are recognized."""
    people: bool = True
    """Whether people typed the queries; if not, there is no privacy to protect."""
    problems: Sequence[Problem] = ()
    """Problems with other files of its folder, none of them fatal."""


class Source(Protocol):
    """A source of judgements, catalogue and log.

    `open` does not read data. Each method reads its table when called, and adds what is wrong to the caller's
    `problems`, which raise an InputError at the first fatal problem unless they are collected.
    """

    rating_range: tuple[float, float]
    """Lowest and highest rating of the scale."""

    rating_conflicts: str
    """How several ratings of a pair are combined, as in `data.rating_conflicts`; refuse: a pair has one rating."""

    relevant_from: float
    """Lowest rating that counts as relevant."""

    def files(self) -> list[str]:
        """Paths or URIs of the files behind catalogue and judgements; empty for generated data."""

    def check(self, problems: Problems) -> None:
        """Check that every file and column exists, the log's included, without reading rows."""

    def digest(self) -> str:
        """Digest of everything that catalogue and judgements depend on."""

    def products(self, problems: Problems) -> Iterator[pa.RecordBatch]:
        """The catalogue, as schemas.PRODUCTS; texts and repeated ids are unchanged."""

    def judgements(self, problems: Problems) -> pa.Table:
        """The judged pairs, as schemas.JUDGEMENTS."""

    def log(self) -> Log | None:
        """The search log; None if there is none."""
