"""`python -m pipelines`: all that touches Kubeflow Pipelines."""

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
from distilrank.promotion import checks
from pipelines import cluster_commands
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
        "writes what Kubeflow takes.\n\n"
        "[bold]python -m pipelines monitor --config configs/demo.yaml[/] "
        "tells whether traffic has left the champion.\n\n"
        "[bold]python -m pipelines submit --config configs/paper.yaml --host URL[/] runs it on a Kubeflow cluster.\n\n"
        "[bold]python -m pipelines retry RUN --host URL[/] runs again what failed of a run there.\n\n"
        "[bold]python -m pipelines schedule apply --file schedules.yaml --host URL[/] "
        "keeps recurring runs there as declared.\n\n"
        "[bold]python -m pipelines doctor --config configs/paper.yaml --host URL[/] "
        "tells whether that cluster has what runs need.\n\n"
        "Any knob can be set on the way: [bold]--set student.optimizer.epochs=5[/]; `distilrank config` lists them all."
    ),
)
app.command()(cluster_commands.submit)
app.command()(cluster_commands.retry)
app.add_typer(cluster_commands.schedule, name="schedule")
app.command()(cluster_commands.doctor)

SHOWN = {
    "ndcg_at_10": "nDCG@10",
    "mrr": "MRR",
    "pair_accuracy": "pair accuracy",
    "roc_auc": "ROC-AUC",
    "recall_at_precision_95": "recall at P .95",
    "ece": "ECE",
}
"""The measures that the summary of a run shows; the report has all."""

Containers = Annotated[
    bool,
    typer.Option(
        "--containers", help="Run each stage in its image on this machine's Docker engine; see docs/images.md."
    ),
]
Network = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="With --containers: the engine's network for the stages, e.g. host.", show_default="none at all"),
]


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    name: Annotated[
        str, typer.Option(help="Folder below --runs; default: the configuration's name and the time.")
    ] = "",
    runs: Annotated[Path, typer.Option(help="Folder that holds all runs.")] = Path("runs"),
    pipeline: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Run this compiled pipeline instead of the one in this source tree."),
    ] = None,
    cache: Annotated[bool, typer.Option(help="Take over stages of earlier runs that would do the same again.")] = True,
    fail_on_refusal: Annotated[
        bool, typer.Option("--fail-on-refusal", help="Exit with 3 if the student is refused.")
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Prepare, time the teacher on a sample, say what a run would take and cost, and stop there.",
        ),
    ] = False,
    containers: Containers = False,
    network: Network = None,
) -> None:
    """Run the whole pipeline on this machine, a process or a container a stage; leaves runs/NAME/ and runs/latest."""
    from pipelines import local

    if estimate and (pipeline or fail_on_refusal):
        raise InputError(f"{'--pipeline' if pipeline else '--fail-on-refusal'}: means nothing with --estimate")
    stages_on = _network(containers, network)
    with _started("distill", config, overrides, name, "-estimate" if estimate else "") as (console, settings, name):
        if estimate:
            found = local.estimate(settings, name=name, runs=runs, cache=cache, console=console, network=stages_on)
            _tell_estimate(console, found, runs / name)
            return
        folder = local.run(
            settings, name=name, runs=runs, cache=cache, pipeline=pipeline, console=console, network=stages_on
        )
    verdict = artifacts.read_json(folder / "verdict.json")
    _summarize(console, folder, verdict)
    if fail_on_refusal and verdict["outcome"] == "refused":
        raise typer.Exit(3)


@app.command()
def monitor(
    config: ConfigFile,
    overrides: Overrides = None,
    name: Annotated[
        str, typer.Option(help="Folder below --runs; default: the configuration's name, -monitor and the time.")
    ] = "",
    runs: Annotated[Path, typer.Option(help="Folder that holds all runs.")] = Path("runs"),
    cache: Annotated[bool, typer.Option(help="Take over stages of earlier runs that would do the same again.")] = True,
    fail_on_alarm: Annotated[bool, typer.Option("--fail-on-alarm", help="Exit with 3 if there is an alarm.")] = False,
    containers: Containers = False,
    network: Network = None,
) -> None:
    """Hold the newest traffic against the champion's; with monitor.retrain=on_alarm an alarm runs `distill`.

    Needs a champion and a log, and no judgement of what is new. Leaves runs/NAME/monitor.json and its pages.
    """
    from pipelines import local

    stages_on = _network(containers, network)
    with _started("monitor", config, overrides, name, "-monitor") as (console, settings, name):
        folder = local.monitor(settings, name=name, runs=runs, cache=cache, console=console, network=stages_on)
    found = artifacts.read_json(folder / "monitor.json")
    console.print()
    for check in found["checks"]:
        mark, style = ("✓", None) if check["passed"] else ("✗", "red")
        console.print(f"{mark} {check['name']}: {check['detail']}", style=style, markup=False, soft_wrap=True)
    if (folder / "verdict.json").exists():
        _summarize(console, folder, artifacts.read_json(folder / "verdict.json"))
    word = "alarm" if found["alarm"] else "nothing to act on"
    console.print(f"\n[bold]{word}[/]: look at [bold]{folder / 'monitor' / 'summary.html'}[/]", soft_wrap=True)
    if fail_on_alarm and found["alarm"]:
        raise typer.Exit(3)


@app.command(name="compile")
def compile_pipeline(
    config: ConfigFile,
    pipeline: Annotated[Pipeline, typer.Argument(help="Which pipeline.")] = Pipeline.distill,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The file to write.", show_default="the pipeline's name and .yaml"),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Compile a pipeline to YAML for Kubeflow, with the configuration as its parameters' defaults."""
    from pipelines import compiling

    settings = load(config, overrides)
    output = output or Path(f"{pipeline}.yaml")
    compiling.write(pipeline, settings, output)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{output}: pipeline {pipeline} with {config}")
    if "://" not in settings.registry.uri and not Path(settings.registry.uri).is_absolute():
        console.print(
            f"note: registry.uri is {settings.registry.uri!r}, a folder of whichever pod looks at it; "
            "on a cluster name one on a volume that all of them mount"
        )


@contextmanager
def _started(
    pipeline: str, config: Path, overrides: list[str] | None, name: str, suffix: str
) -> Iterator[tuple[Console, Config, str]]:
    """Console, configuration and name of a run on this machine, which may be interrupted."""
    console = terminal.console(markup=True)  # the stream itself: sys.stdout is another during the run
    fast = hardware.fast_bf16()
    settings = load(config, overrides, fast_bf16=fast)
    name = name or f"{settings.name}{suffix}-{time.strftime('%Y%m%d-%H%M%S')}"
    console.print(f"[bold]{pipeline}[/] {name}: {_describe_machine(fast)}")
    try:
        yield console, settings, name
    except KeyboardInterrupt:  # SIGTERM too
        console.print("interrupted: the same command takes over what is finished")
        raise typer.Exit(130) from None


def _network(containers: bool, network: str | None) -> str | None:
    """The network of the stages' containers; None: they are processes."""
    if network and not containers:
        raise InputError(f"--network {network}: means nothing without --containers, expected both")
    return (network or "none") if containers else None


def _describe_machine(fast: bool) -> str:
    if hardware.has_gpu():
        return f"{hardware.cores()} cores and a GPU"
    unit = hardware.cpu_bf16()
    how = f"bf16 by {unit}" if unit else "no fast bf16: fp32 and the smaller counts of `cpu_overrides`"
    return f"{hardware.cores()} cores, {how}"


def _tell_estimate(console: Console, found: dict, folder: Path) -> None:
    table = terminal.new_table("", "rows", "tokens", "tokens/s", "device hours", "price", box=None, header_style="bold")
    for name in ("training", "labeling"):
        one = found[name]
        price = "-" if one["price"] is None else f"{one['price']:,.2f}"
        counts = (f"{one[key]:,.0f}" for key in ("rows", "tokens", "tokens_per_second"))
        table.add_row(name, *counts, f"{one['device_hours']:,.3f}", price)
    console.print()
    console.print(table)
    hint = "" if found["training"]["price"] is not None else " (compute.price_per_hour turns hours into a price)"
    console.print(
        f"\non {found['runtime']}{hint}; nothing was trained. The same command without --estimate takes over what is "
        f"prepared. {folder / 'estimate.json'}",
        soft_wrap=True,
    )


def _summarize(console: Console, folder: Path, verdict: dict) -> None:
    metrics = artifacts.read_json(folder / "metrics.json")
    table = terminal.new_table("system", *SHOWN.values(), box=None, header_style="bold")
    for system, values in metrics["systems"].items():
        table.add_row(system, *("-" if values[name] is None else f"{values[name]:.4f}" for name in SHOWN))
    console.print()
    console.print(table)
    console.print()
    unchanged = verdict["outcome"] == "unchanged"
    mark, style = ("!", "yellow") if unchanged else ("✗", "red")  # what the champion would fail today is no error
    for check in checks.failed(verdict):
        console.print(f"{mark} {check['name']}: {check['detail']}", style=style, markup=False, soft_wrap=True)
    if unchanged:
        champion = verdict["champion"]
        run = champion.get("run")
        promoter = "an earlier attempt of this run" if run == folder.name else f"the run {run}"
        by = f" ({promoter} promoted it)" if run else ""
        console.print(f"{champion['id']} is the champion already{by}: there is nothing to promote", soft_wrap=True)
    seconds = artifacts.read_json(folder / "timings.json")
    console.print(
        f"\n[bold]{verdict['outcome'].replace('_', ' ')}[/] in {seconds['seconds']:.0f} s, "
        f"at most {seconds['peak_memory_mib'] / 1024:.1f} GiB resident. Look at [bold]{folder / 'report.html'}[/]",
        soft_wrap=True,
    )


def main() -> None:
    """Run the command; bad input is one line and exit status 2, a stopped or failed run one line and 1."""
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
