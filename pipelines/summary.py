"""What a local run prints for people: its machine, its estimate or its metrics and verdict."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console

from distilrank.core import artifacts, hardware, terminal
from distilrank.promotion import checks
from distilrank.rendering.formatting import format_plain
from distilrank.rendering.labels import metric_label

METRICS = ("ndcg_at_10", "mrr", "pair_accuracy", "roc_auc", "recall_at_precision_95", "ece")
"""Metrics in the summary of a run; the report has all metrics."""


def describe_machine(fast_bf16: bool) -> str:
    """Describe this machine's compute in a few words.

    Args:
        fast_bf16: whether a GPU or the CPU computes in bf16; otherwise `cpu_overrides` apply.
    """
    if hardware.has_gpu():
        return f"{hardware.cores()} cores and a GPU"
    unit = hardware.cpu_bf16()
    precision = f"bf16 by {unit}" if unit else "no bf16 instructions: fp32 and `cpu_overrides`"
    return f"{hardware.cores()} cores, {precision}"


def show_estimate(console: Console, estimate: dict, folder: Path) -> None:
    """Print what a run would take.

    Args:
        console: console to print to.
        estimate: content of estimate.json.
        folder: folder of the run.
    """
    table = terminal.new_table("", "rows", "tokens", "tokens/s", "device hours", "price", box=None, header_style="bold")
    for name in ("training", "labeling"):
        part = estimate[name]
        price = "-" if part["price"] is None else f"{part['price']:,.2f}"
        counts = (f"{part[key]:,.0f}" for key in ("rows", "tokens", "tokens_per_second"))
        table.add_row(name, *counts, f"{part['device_hours']:,.3f}", price)
    console.print()
    console.print(table)
    hint = "" if estimate["training"]["price"] is not None else " (set compute.price_per_hour to get a price)"
    console.print(
        f"\non {estimate['runtime']}{hint}; nothing was trained. The same command without --estimate reuses the "
        f"prepared data. {folder / 'estimate.json'}",
        soft_wrap=True,
    )


def show_run(console: Console, folder: Path, verdict: dict) -> None:
    """Print metrics, failed checks and outcome of a run.

    Args:
        console: console to print to.
        folder: folder of the run.
        verdict: content of verdict.json.
    """
    metrics = artifacts.read_json(folder / "metrics.json")
    table = terminal.new_table("system", *map(metric_label, METRICS), box=None, header_style="bold")
    for system, values in metrics["systems"].items():
        table.add_row(system, *(format_plain(values[name]) for name in METRICS))
    console.print()
    console.print(table)
    console.print()
    is_unchanged = verdict["outcome"] == "unchanged"
    mark, style = ("!", "yellow") if is_unchanged else ("✗", "red")  # a champion that fails a check is no error
    for check in checks.failed(verdict):
        console.print(f"{mark} {check['name']}: {check['detail']}", style=style, markup=False, soft_wrap=True)
    if is_unchanged:
        champion = verdict["champion"]
        console.print(
            f"{champion['id']} is the champion already{_promoted_by(champion, folder)}: there is nothing to promote",
            soft_wrap=True,
        )
    timings = artifacts.read_json(folder / "timings.json")
    console.print(
        f"\n[bold]{verdict['outcome'].replace('_', ' ')}[/] in {timings['seconds']:.0f} s, "
        f"peak memory {timings['peak_memory_mib'] / 1024:.1f} GiB. Report: [bold]{folder / 'report.html'}[/]",
        soft_wrap=True,
    )


def show_next_steps(console: Console, folder: Path, registry: str) -> None:
    """Print what can be done with the results of a run, as commands that can be pasted.

    Args:
        console: console to print to.
        folder: folder of the run.
        registry: URI of the registry; empty: the run promoted no student, so there is nothing to serve.
    """
    pairs, student = str(folder / "judgements" / "test.parquet"), str(folder / "student")
    steps = {"score pairs": ["score", "--model", student, "--input", pairs, "--output", "scores.csv"]}
    if registry:
        steps["serve the champion"] = ["serve", "--registry", registry]
    steps["use your own data"] = ["demo-data", "--output", "my-shop"]
    console.print("\nNext:")
    for purpose, arguments in steps.items():
        step = shlex.join([_path_of_command(), *arguments])
        console.print(f"  {purpose:<20}{step}", highlight=False, markup=False, soft_wrap=True)


def _path_of_command() -> str:
    """Return how this environment's `distilrank` is called from the current folder."""
    if shutil.which("distilrank"):
        return "distilrank"
    path = Path(sys.executable).parent / "distilrank"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _promoted_by(champion: dict, folder: Path) -> str:
    """Return, in parentheses, which run promoted the champion; empty if that is unknown."""
    run = champion.get("run")
    if not run:
        return ""
    promoter = "an earlier attempt of this run" if run == folder.name else f"the run {run}"
    return f" ({promoter} promoted it)"
