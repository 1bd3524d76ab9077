"""`distilrank preflight`."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import io
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from distilrank import config
from distilrank.cli.options import ConfigFile, Overrides
from distilrank.cli.output import cell
from distilrank.core import artifacts, hardware
from distilrank.core.terminal import AsJson, console, new_table, print_json


def preflight(
    config_file: ConfigFile,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    schedule_time: Annotated[
        str, typer.Option(help="Check a run that is scheduled at this time (ISO 8601); empty: now.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check that a run would start (data, models, registry, disk), and print what it would use.

    Example: `distilrank preflight --config configs/demo.yaml --set window.days=14`
    """
    values = config.load(config_file, overrides, fast_bf16=hardware.fast_bf16())
    from distilrank.preflight import check

    time = schedule_time or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    # In the working folder, since a run writes there too and needs its free space. The stage's own lines are for the
    # log of a pod; here the table and the error say the same.
    with (
        tempfile.TemporaryDirectory(prefix=".preflight-", dir=".") as scratch,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        check(values, name=values.name, schedule_time=time, secrets={}, output=Path(scratch))
        if importlib.util.find_spec("torch"):
            from distilrank import rehearsal

            rehearsal.rehearse(values.teacher, values.student, values.compute)
        resolved = artifacts.read_json(Path(scratch) / "preflight.json")
    if as_json:
        print_json(resolved)
        return
    table = new_table("resolved", "value", title=f"{config_file}: ready to run")
    for name, value in resolved.items():
        table.add_row(name.replace("_", " "), cell(value))
    console().print(table)
