"""Command line `python -m pipelines`: run pipelines on this machine, and compile, submit and schedule them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from distilrank.config import Config, load
from distilrank.core import artifacts, hardware, progress, terminal
from distilrank.core.errors import InputError, RunStopped
from pipelines import cluster_commands, schedule_commands, summary
from pipelines.options import ConfigFile, Overrides, Pipeline

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help=(
        "Run, compile, submit and schedule the pipelines distill and monitor.\n\n"
        "[bold]python -m pipelines run --config configs/demo.yaml[/] trains, evaluates and decides on this machine.\n\n"
        "[bold]python -m pipelines compile --config configs/paper.yaml --output distill.yaml[/] "
        "writes the YAML file that Kubeflow accepts.\n\n"
        "[bold]python -m pipelines monitor --config configs/demo.yaml[/] "
        "tells whether traffic has drifted away from the champion.\n\n"
        "[bold]python -m pipelines submit --config configs/paper.yaml --host URL[/] runs it on a Kubeflow cluster.\n\n"
        "[bold]python -m pipelines retry RUN --host URL[/] reruns the failed stages of a run there.\n\n"
        "[bold]python -m pipelines schedule apply --file schedules.yaml --host URL[/] "
        "makes the recurring runs there match a file.\n\n"
        "[bold]python -m pipelines doctor --config configs/paper.yaml --host URL[/] "
        "checks whether that cluster meets the requirements of runs.\n\n"
        "Any setting can be overridden: [bold]--set student.optimizer.epochs=5[/]. `distilrank config` lists them."
    ),
)
app.command()(cluster_commands.submit)
app.command()(cluster_commands.retry)
app.add_typer(schedule_commands.app, name="schedule")
app.command()(cluster_commands.doctor)

Containers = Annotated[
    bool,
    typer.Option("--containers", help="Run each stage in its image on the local Docker engine; see docs/images.md."),
]
Network = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="With --containers: the Docker network of the stages, e.g. host.", show_default="no network"),
]


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    name: Annotated[
        str, typer.Option(help="Name of the folder below --runs; default: the configuration's name and the time.")
    ] = "",
    runs: Annotated[Path, typer.Option(help="Folder of all local runs.")] = Path("runs"),
    pipeline: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Run this compiled pipeline instead of compiling one."),
    ] = None,
    cache: Annotated[
        bool, typer.Option(help="Reuse results of earlier runs whose stage, inputs and settings are the same.")
    ] = True,
    fail_on_refusal: Annotated[
        bool, typer.Option("--fail-on-refusal", help="Exit with status 3 if the gate refuses the student.")
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Only prepare, time the teacher on a sample, and predict the duration and cost of a run.",
        ),
    ] = False,
    containers: Containers = False,
    network: Network = None,
) -> None:
    """Run `distill` on this machine, one process or container per stage. Results go to runs/NAME/ and runs/latest.

    Exit status: 0 the run completed, 1 a stage failed or stopped the run, 2 bad input, 3 the student was refused and
    --fail-on-refusal was given, 130 interrupted.
    """
    from pipelines import local

    if estimate and (pipeline or fail_on_refusal):
        raise InputError(f"{'--pipeline' if pipeline else '--fail-on-refusal'}: not allowed with --estimate")
    docker_network = _network(containers, network)
    with _local_run("distill", config, overrides, name, "-estimate" if estimate else "") as (console, settings, name):
        if estimate:
            estimated = local.estimate(
                settings, name=name, runs=runs, cache=cache, console=console, network=docker_network
            )
            summary.show_estimate(console, estimated, runs / name)
            return
        folder = local.run(
            settings, name=name, runs=runs, cache=cache, pipeline=pipeline, console=console, network=docker_network
        )
    verdict = artifacts.read_json(folder / "verdict.json")
    summary.show_run(console, folder, verdict)
    has_champion = verdict["promoted"] or verdict["outcome"] == "unchanged"
    summary.show_next_steps(console, folder, settings.registry.uri if has_champion else "")
    if fail_on_refusal and verdict["outcome"] == "refused":
        raise typer.Exit(3)


@app.command()
def monitor(
    config: ConfigFile,
    overrides: Overrides = None,
    name: Annotated[
        str,
        typer.Option(help="Name of the folder below --runs; default: the configuration's name, -monitor and the time."),
    ] = "",
    runs: Annotated[Path, typer.Option(help="Folder of all local runs.")] = Path("runs"),
    cache: Annotated[
        bool, typer.Option(help="Reuse results of earlier runs whose stage, inputs and settings are the same.")
    ] = True,
    fail_on_alarm: Annotated[bool, typer.Option("--fail-on-alarm", help="Exit with status 3 on an alarm.")] = False,
    containers: Containers = False,
    network: Network = None,
) -> None:
    """Compare the newest traffic with the champion's. With monitor.retrain=on_alarm, an alarm runs `distill`.

    Needs a champion and a log, but no judgements of new queries. Results go to runs/NAME/monitor.json and pages
    beside it.
    """
    from pipelines import local

    docker_network = _network(containers, network)
    with _local_run("monitor", config, overrides, name, "-monitor") as (console, settings, name):
        folder = local.monitor(settings, name=name, runs=runs, cache=cache, console=console, network=docker_network)
    result = artifacts.read_json(folder / "monitor.json")
    console.print()
    for check in result["checks"]:
        mark, style = ("✓", None) if check["passed"] else ("✗", "red")
        console.print(f"{mark} {check['name']}: {check['detail']}", style=style, markup=False, soft_wrap=True)
    if (folder / "verdict.json").exists():
        summary.show_run(console, folder, artifacts.read_json(folder / "verdict.json"))
    outcome = "alarm" if result["alarm"] else "no alarm"
    console.print(f"\n[bold]{outcome}[/]: see [bold]{folder / 'monitor' / 'summary.html'}[/]", soft_wrap=True)
    if fail_on_alarm and result["alarm"]:
        raise typer.Exit(3)


@app.command(name="compile")
def compile_pipeline(
    config: ConfigFile,
    pipeline: Annotated[Pipeline, typer.Argument(help="Pipeline to compile.")] = Pipeline.distill,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File to write.", show_default="PIPELINE.yaml"),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Compile a pipeline to a YAML file for Kubeflow. The configuration becomes the defaults of its parameters."""
    from pipelines import compiling

    settings = load(config, overrides)
    output = output or Path(f"{pipeline}.yaml")
    compiling.write(pipeline, settings, output)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{output}: pipeline {pipeline} with {config}")
    if "://" not in settings.registry.uri and not Path(settings.registry.uri).is_absolute():
        console.print(
            f"note: registry.uri is {settings.registry.uri!r}, which is a different folder in every "
            "pod; on a cluster, use a bucket or a folder of a volume that all pods mount"
        )


@contextmanager
def _local_run(
    pipeline: str, config: Path, overrides: list[str] | None, name: str, suffix: str
) -> Iterator[tuple[Console, Config, str]]:
    """Load the configuration of a local run, and turn an interruption into exit status 130.

    Yields:
        Console, configuration and name of the run.
    """
    console = terminal.console(markup=True)  # bound to the current stdout, which is redirected during the run
    fast_bf16 = hardware.fast_bf16()
    settings = load(config, overrides, fast_bf16=fast_bf16)
    name = name or f"{settings.name}{suffix}-{time.strftime('%Y%m%d-%H%M%S')}"
    console.print(f"[bold]{pipeline}[/] {name}: {summary.describe_machine(fast_bf16)}")
    try:
        yield console, settings, name
    except KeyboardInterrupt:  # also raised on SIGTERM
        console.print("interrupted: the same command reuses the stages that have finished")
        raise typer.Exit(130) from None


def _network(containers: bool, network: str | None) -> str | None:
    """Return the Docker network of the stages; None if they run as processes."""
    if network and not containers:
        raise InputError(f"--network {network}: not allowed without --containers")
    return (network or "none") if containers else None


def main() -> None:
    """Run the command line. Bad input prints one line and exits with 2, a stopped or failed run with 1."""
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        app()
    except InputError as error:
        errors.print(progress.printable(f"error: {error}"))
        raise SystemExit(2) from None
    except RunStopped as error:
        errors.print(progress.printable(f"stopped: {error}"))
        raise SystemExit(1) from None
    except Exception as error:
        if refusal := progress.storage_refusal(error, "the output"):
            errors.print(progress.printable(f"error: {refusal}"))
            raise SystemExit(2) from None
        if not isinstance(error, RuntimeError):
            raise
        errors.print(progress.printable(f"failed: {error}"))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
