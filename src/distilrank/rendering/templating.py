"""The templates of the pages, and the one way in which they are rendered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def environment(**filters: Callable[..., Any]) -> jinja2.Environment:
    """Jinja's environment of the pages: everything is escaped, and a name that is not given is an error.

    Args:
        filters: what the templates may call, by name.
    """
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # queries and titles are other people's text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(filters)
    return made
