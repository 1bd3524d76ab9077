"""`distilrank config`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from distilrank.config import reference
from distilrank.core.errors import InputError
from distilrank.core.terminal import console, new_table


def show_config(
    section: Annotated[
        str, typer.Argument(help="Only this section, such as `gate` or `teacher.lora`; empty: all sections.")
    ] = "",
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the whole reference page.")] = False,
) -> None:
    """Print every setting of the configuration with its default and bound.

    Example: `distilrank config gate`
    """
    if as_markdown:
        sys.stdout.write(reference.markdown())
        return
    groups = reference.groups()
    matches = [group for group in groups if not section or f"{group.path}.".startswith(f"{section}.")]
    if not matches:
        names = ", ".join(dict.fromkeys(group.path for group in groups if group.path))
        raise InputError(f"config: no section {section!r}, expected one of {names}")
    out = console()
    for group in matches:
        table = new_table("key", "default", "bound", "what it does", title=group.title, caption=group.summary)
        for setting in group.settings:
            table.add_row(setting.key, setting.default, setting.bound or setting.type, setting.description)
        out.print(table)
