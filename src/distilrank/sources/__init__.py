"""One module per input format; each gives the same three tables."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from distilrank.config import DemoShop, HomeDepot, Tables


class Source(Protocol):
    """Where judgements, catalogue and logs come from.

    `open` does not read data; the tables are read, and their problems raised as InputError, when asked for.
    """

    rating_range: tuple[float, float]
    """Lowest and highest rating of the scale."""

    relevant_from: float
    """Rating from which a pair counts as relevant."""

    def files(self) -> list[Path]:
        """The outside files that the tables are read from; empty for generated data."""

    def check(self) -> None:
        """Raise InputError if a file or a column is missing, without reading the rows."""

    def digest(self) -> str:
        """Digest of everything that the tables depend on."""

    def products(self) -> pa.Table:
        """The catalogue, as records.PRODUCTS."""

    def judgements(self) -> pa.Table:
        """The judged pairs, as records.JUDGEMENTS."""

    def impressions(self) -> pa.Table | None:
        """The search log, as records.IMPRESSIONS, or None where there is none."""

    def times(self) -> pa.ChunkedArray | None:
        """The timestamps of the search log alone, without nulls, or None where it has no time."""


def open(data: DemoShop | HomeDepot | Tables) -> Source:
    """The source that the configuration names; its module is imported only now."""
    module = importlib.import_module(f"distilrank.sources.{data.source}")
    return module.open(data)
