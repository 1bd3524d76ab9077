"""`python -m pipelines schedule`: recurring runs on a cluster, as a file declares them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from distilrank.core.errors import InputError
from pipelines.options import (
    DEFAULT_EXPERIMENT,
    CaFile,
    Experiment,
    Host,
    Namespace,
    TokenFile,
    check_lengths,
    connect,
    new_console,
)

if TYPE_CHECKING:
    from pipelines.kubeflow import Kubeflow
    from pipelines.recurring_runs.spec import DesiredRun, Schedules

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help=(
        "Make recurring runs match a schedule file.\n\n"
        "The file has an owner and, per schedule, a pipeline, a configuration and a cron expression (five fields in "
        "the cluster's time zone, or six with seconds first):\n\n"
        "[bold]owner: search\n\n"
        "schedules:\n\n"
        '- {name: distill-weekly, pipeline: distill, config: shop.yaml, cron: "0 3 * * 1"}\n\n'
        '- {name: monitor-daily, pipeline: monitor, config: shop.yaml, cron: "30 5 * * *"}[/]\n\n'
        "`apply` creates, replaces, pauses and deletes recurring runs as needed; a second `apply` writes nothing. "
        "Recurring runs of other owners and those created by hand are never changed. Details: docs/kubeflow.md."
    ),
)

ScheduleFile = Annotated[Path, typer.Option("--file", help="Schedule file.")]
Names = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation
    typer.Argument(metavar="[NAME]...", help="Only these schedules.", show_default="all of the owner"),
]


@app.command()
def apply(
    file: ScheduleFile,
    host: Host,
    names: Names = None,
    namespace: Namespace = "",
    experiment: Experiment = DEFAULT_EXPERIMENT,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Make the recurring runs of the owner match the file.

    Recurring runs that the file does not declare are deleted. With NAMEs, only those are changed. A changed schedule
    gets a new recurring run; at no time are two of the same name enabled. After an interruption, the same command
    completes the change.
    """
    from pipelines.recurring_runs import reconcile

    console = new_console()
    check_lengths(experiment)
    declared, desired = _read(file, experiment, names)
    kubeflow = connect(host, namespace, token_file, ca_file)
    kubeflow.check_version(console.print)
    writes = reconcile.apply(
        kubeflow, declared.owner, desired, zone=declared.zone, names=names or [], report=console.print
    )
    for run in desired:
        if not names or run.name in names:
            tick = reconcile.next_tick(run, declared.zone)
            state = "paused" if run.schedule.paused else f"next {tick:%Y-%m-%d %H:%M:%S %Z}" if tick else "no more runs"
            console.print(f"{run.name}: {run.schedule.pipeline}, {run.schedule.cron} in {declared.timezone}, {state}")
    console.print(f"{writes} changes" if writes else "nothing to change")


@app.command()
def diff(
    file: ScheduleFile,
    host: Host,
    names: Names = None,
    namespace: Namespace = "",
    experiment: Experiment = DEFAULT_EXPERIMENT,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Print what `apply` would change, without changing anything. Exit status 3 if there are changes."""
    from pipelines.recurring_runs import reconcile

    console = new_console()
    check_lengths(experiment)
    declared, desired = _read(file, experiment, names)
    kubeflow = connect(host, namespace, token_file, ca_file)
    kubeflow.check_version(console.print)
    existing_runs = reconcile.mark_broken(kubeflow, reconcile.existing(kubeflow, declared.owner))
    steps = reconcile.plan(desired, existing_runs, names or [])
    for step in steps:
        console.print(str(step))
    if steps:
        raise typer.Exit(3)
    console.print("nothing to change")


@app.command()
def pause(
    file: ScheduleFile,
    host: Host,
    names: Names = None,
    namespace: Namespace = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Disable recurring runs now; active runs continue. The next `apply` restores what the file declares."""
    owner = read_owner(file)
    _switch(connect(host, namespace, token_file, ca_file), owner, names, on=False)


@app.command()
def resume(
    file: ScheduleFile,
    host: Host,
    names: Names = None,
    namespace: Namespace = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Enable recurring runs now; a missed run starts immediately. The next `apply` restores what the file declares."""
    owner = read_owner(file)
    _switch(connect(host, namespace, token_file, ca_file), owner, names, on=True)


@app.command()
def delete(
    file: ScheduleFile,
    host: Host,
    names: Names = None,
    namespace: Namespace = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Delete recurring runs of the owner, declared or not. Their runs are kept. Succeeds if there are none."""
    from pipelines.recurring_runs import reconcile

    owner = read_owner(file)
    deleted = reconcile.delete(connect(host, namespace, token_file, ca_file), owner, names or [])
    new_console().print("\n".join(f"{name}: deleted" for name in deleted) or f"{owner} has no recurring runs")


def read_owner(file: Path) -> str:
    """Return the owner that a schedule file names."""
    from pipelines.recurring_runs import spec

    return spec.read(file).owner


def _switch(kubeflow: Kubeflow, owner: str, names: list[str] | None, *, on: bool) -> None:
    from pipelines.recurring_runs import reconcile

    console = new_console()
    changed = reconcile.switch(kubeflow, owner, names or [], on=on)
    for name in changed:
        console.print(f"{name}: {'resumed' if on else 'paused'}")
    console.print(
        "until the next `schedule apply`, which restores what the file declares" if changed else "nothing to change"
    )


def _read(file: Path, experiment: str, names: list[str] | None) -> tuple[Schedules, list[DesiredRun]]:
    """Read a schedule file, and compile each of its schedules."""
    from pipelines.recurring_runs import spec

    declared = spec.read(file)
    declared_names = [schedule.name for schedule in declared.schedules]
    for name in names or []:
        if name not in declared_names:
            expected = f"expected one of {', '.join(declared_names)}" if declared_names else "the file declares none"
            raise InputError(f"{file}: no schedule is called {name!r}, {expected}")
    return declared, list(spec.compiled(declared, file, experiment=experiment))
