"""`distilrank gate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distilrank import config
from distilrank.cli.options import Overrides
from distilrank.core.errors import InputError
from distilrank.core.terminal import AsJson, console, new_table, print_json
from distilrank.rendering.formatting import format_plain_value

REFUSED = 3
"""Exit status of `--fail-on-refusal` for a refused student."""


def gate(
    run: Annotated[
        Path | None, typer.Option("--run", metavar="FOLDER", help="A finished run: runs/NAME, or runs/latest.")
    ] = None,
    policy_file: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="A policy (YAML); by default that of the run."),
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    fail_on_refusal: Annotated[
        bool, typer.Option("--fail-on-refusal", help="Exit with status 3 if the policy refuses the student.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a policy, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a policy would decide on a finished run; nothing is trained, recorded or promoted.

    Example: `distilrank gate --run runs/latest --policy configs/policies/strict.yaml --set gate.min_queries=200`
    """
    if schema:
        print_json(config.Gate.model_json_schema())
        return
    if run is None:
        raise InputError("gate: --run is missing, expected the folder of a finished run, or --schema")
    policy = config.read_policy(policy_file) if policy_file else config.load(run / "config.yaml").gate
    from distilrank.promotion import gate as stage

    verdict = stage.reconsider(run, config.override_policy(policy, overrides))
    if as_json:
        print_json(verdict.to_json())
    else:
        out = console()
        outcome = verdict.outcome.replace("_", " ")
        table = new_table(title=f"{run}: candidate {verdict.candidate['id']} would be {outcome}")
        for heading in ("check", "", "value", "bound", "detail"):
            table.add_column(heading, overflow="fold", no_wrap=heading in ("check", ""))
        for check in verdict.checks:
            values = (format_plain_value(value) for value in (check.value, check.bound))
            table.add_row(check.name, verdict.word(check), *values, check.detail)
        out.print(table)
        for note in verdict.notes:
            out.print(f"note: {note}")
        if verdict.looser:
            out.print(f"note: {stage.looser_text(verdict.looser)}")
    if fail_on_refusal and verdict.outcome == "refused":
        raise typer.Exit(REFUSED)
