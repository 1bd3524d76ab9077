"""`distilrank data check` and `distilrank demo-data`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from distilrank import config
from distilrank.cli.options import ConfigFile, Overrides
from distilrank.cli.output import cell
from distilrank.core import hardware
from distilrank.core.errors import InputError
from distilrank.core.terminal import AsJson, console, new_table, print_json

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@app.callback()
def _group() -> None:
    """Your data: what is wrong with it, and which rows a run would leave out."""


@app.command("check")
def check_data(
    config_file: ConfigFile,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    full: Annotated[bool, typer.Option("--full", help="Read all rows, not a sample.")] = False,
    schedule_time: Annotated[str, typer.Option(help="Check a run that is scheduled at this time (ISO 8601).")] = "",
    as_json: AsJson = False,
) -> None:
    """Find every problem of the data, with counts and examples; nothing is trained.

    The exit status is 2 if a run would stop at a problem. Rows that a run would leave out are listed too.

    Example: `distilrank data check --config configs/demo.yaml --full`
    """
    values = config.load(config_file, overrides, fast_bf16=hardware.fast_bf16())
    from distilrank.data import validate

    with contextlib.redirect_stdout(sys.stderr):
        result = validate.check(values, full=full, schedule_time=schedule_time)
    problems = list(result.problems)
    if as_json:
        print_json({"problems": [problem.to_json() for problem in problems], **result.facts})
    else:
        out = console()
        facts = new_table("what", "found", title=f"{config_file}: {result.facts['read']}")
        for name, value in result.facts.items():
            facts.add_row(name.replace("_", " "), cell(value))
        out.print(facts)
        table = new_table(title="Problems", show_lines=True)
        for heading in ("where", "", "rows", "problem", "examples"):
            table.add_column(heading, overflow="fold")
        for problem in sorted(problems, key=lambda problem: not problem.fatal):
            mark = "stops a run" if problem.fatal else "left out or unusual"
            table.add_row(problem.where, mark, f"{problem.rows:,}", problem.what, "\n".join(problem.examples))
        if problems:
            out.print(table)
        else:
            out.print("no problem found")
    fatal = sum(problem.fatal for problem in problems)
    if fatal:
        raise InputError(f"{config_file}: {fatal} of {len(problems)} problems would stop a run")


def demo_data(
    output: Annotated[Path, typer.Option(help="Folder to write to.")],
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Use the shop in `data` of this configuration.")
    ] = None,
) -> None:
    """Write the demo shop's judgements, catalogue and log as files, in the form of your own data.

    Example: `distilrank demo-data --output shop`
    """
    from distilrank.data.sources import demo_shop

    shop = config.DemoShop(source="demo_shop")
    if config_file is not None:
        data = config.load(config_file).data
        if not isinstance(data, config.DemoShop):
            raise InputError(f"{config_file}: data.source is {data.source!r}, expected 'demo_shop'")
        shop = data
    demo_shop.export(demo_shop.open(shop), output)
    print(f"{output / 'config.yaml'}: reads the judgements, catalogue and log beside it, as it would read your own")
