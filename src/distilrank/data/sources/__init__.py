"""Sources of data: one module per input format, each with the same catalogue, judgements and log."""

from __future__ import annotations

from typing import Any

from distilrank.config import Section
from distilrank.data.sources import demo_shop, esci, home_depot, tables, ubi, wands
from distilrank.data.sources.base import Source

_MODULES: dict[str, Any] = {
    "demo_shop": demo_shop,
    "esci": esci,
    "home_depot": home_depot,
    "tables": tables,
    "ubi": ubi,
    "wands": wands,
}
"""The module of each source, by `data.source`."""


def module_of(data: Section) -> Any:
    """Return the module of the configured source."""
    return _MODULES[data.source]  # type: ignore[attr-defined]


def open(data: Section) -> Source:
    """Return the source that the configuration names, without reading it."""
    return module_of(data).open(data)
