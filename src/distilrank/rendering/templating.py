"""The Jinja environment of all pages."""

from __future__ import annotations

from pathlib import Path

import jinja2

from distilrank.rendering import formatting

TEMPLATES = Path(__file__).parent / "templates"
FILTERS = {
    "metric": formatting.format_metric,
    "delta": formatting.format_delta,
    "interval": formatting.format_interval,
    "value": formatting.format_value,
    "counted": formatting.format_count,
    "percent": formatting.format_percent,
    "duration": formatting.format_duration,
    "milliseconds": formatting.format_milliseconds,
    "words": formatting.readable_name,
}
"""Formatting functions that templates can use as filters, by name."""


def environment() -> jinja2.Environment:
    """Create the environment: every value is escaped, and an undefined name is an error."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # queries and titles are untrusted text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(FILTERS)
    return pages
