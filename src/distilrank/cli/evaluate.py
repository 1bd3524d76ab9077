"""`distilrank evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from distilrank import config
from distilrank.cli.options import (
    DEFAULT_COMPUTE,
    DEFAULT_REGISTRY,
    BackendName,
    Device,
    Overrides,
    Precision,
    RegistryUri,
    Threads,
    parse_compute,
)
from distilrank.cli.output import progress_counter
from distilrank.core.errors import InputError
from distilrank.core.terminal import AsJson, console, new_table, print_json
from distilrank.rendering.formatting import format_plain, format_plain_interval
from distilrank.rendering.labels import metric_label


def evaluate(
    models: Annotated[
        list[str],
        typer.Option("--model", metavar="STUDENT", help="A student's folder, an alias or a version id; repeatable."),
    ],
    judgements: Annotated[
        Path,
        typer.Option(
            metavar="PATH", help="The `judgements` folder of a run, to use its test split, or one of its Parquet files."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write metrics.json and per_query.parquet to this folder.")
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Use the section `evaluate` of this file (YAML).")
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    registry: RegistryUri = DEFAULT_REGISTRY,
    backend: BackendName = "auto",
    device: Device = DEFAULT_COMPUTE.device,
    precision: Precision = "fp32",
    threads: Threads = DEFAULT_COMPUTE.threads,
    as_json: AsJson = False,
) -> None:
    """Evaluate students on judged pairs that none of them was trained on, next to random order and BM25.

    Every student is compared with BM25, random order and every other student, query by query, with confidence
    intervals and p-values. With students that differ only by their seed, the last table shows the variation by chance.

    Examples:

        # The champion and a new student
        distilrank evaluate --model champion --model runs/latest/student --judgements JUDGEMENTS --output compared

        # Three seeds, more resamples, other slices
        distilrank evaluate --model seed-1/student --model seed-2/student --model seed-3/student \\
            --judgements JUDGEMENTS --set evaluate.bootstrap=10000 --set evaluate.slices='[script, brand]'
    """
    compute = parse_compute(device, precision, threads)
    section = _parse_section(config_file, overrides)
    from distilrank.evaluation import compare

    with progress_counter("evaluate", "pairs") as counter:
        metrics = compare.compare_models(
            models, judgements, output, registry, compute, section, backend=backend, counter=counter
        )
    if as_json:
        print_json(metrics)
    else:
        _print_metrics(metrics, models)


def _parse_section(config_file: Path | None, overrides: list[str]) -> config.Evaluate:
    values = config.parse_overrides(overrides)
    other_sections = [name for name in values if name != "evaluate"]
    if other_sections:
        raise InputError(f"--set {other_sections[0]}: expected evaluate.KEY=VALUE, see `distilrank config evaluate`")
    base = config.load(config_file).evaluate if config_file else config.Evaluate()
    return config.parse(base.model_dump() | values.get("evaluate", {}), "evaluate", model=config.Evaluate)


def _print_metrics(metrics: dict[str, Any], models: Sequence[str]) -> None:
    out, protocol = console(), metrics["protocol"]
    systems = metrics["systems"]
    counts = f"{protocol['ranked_queries']:,} ranked of {protocol['queries']:,} queries, {protocol['pairs']:,} pairs"
    table = new_table("metric", *systems, title=counts)
    for metric in next(iter(systems.values())):
        table.add_row(metric_label(metric), *(format_plain(values[metric]) for values in systems.values()))
    out.print(table)
    level = f"{protocol['confidence']:.0%}"
    table = new_table("system", "baseline", "metric", "difference", f"{level} CI", "p", "wins, ties, losses")
    for comparison in metrics["comparisons"]:
        interval = format_plain_interval(comparison["ci_low"], comparison["ci_high"])
        counts = ", ".join(f"{comparison[key]:,}" for key in ("wins", "ties", "losses") if key in comparison) or "-"
        names = (comparison["system"], comparison["baseline"], metric_label(comparison["metric"]))
        table.add_row(
            *names, format_plain(comparison["delta"], sign="+"), interval, format_plain(comparison["p_value"]), counts
        )
    out.print(table)
    _print_worse_slices(out, metrics["slices"]["rows"], protocol["confidence"])
    if metrics["stability"]:
        table = new_table("metric", "mean", "sd", "lowest", "highest", title=f"{len(models)} students")
        for metric, values in metrics["stability"]["metrics"].items():
            keys = ("mean", "standard_deviation", "lowest", "highest")
            table.add_row(metric_label(metric), *(format_plain(values[key]) for key in keys))
        out.print(table)


def _print_worse_slices(out: Console, rows: Sequence[dict[str, Any]], confidence: float) -> None:
    worse = [
        (f"{row['column']}: {row['value']}", comparison)
        for row in rows
        for comparison in row["comparisons"]
        if comparison["delta"] < 0 and comparison["p_holm"] < 1 - confidence
    ]
    for name, comparison in worse:
        metric = metric_label(comparison["metric"])
        out.print(
            f"worse: {comparison['system']} than {comparison['baseline']} on {name} by {metric}, "
            f"{format_plain(comparison['delta'], sign='+')} (p {format_plain(comparison['p_holm'])}, adjusted)"
        )
    if not worse:
        out.print(f"no student is significantly worse on any of {len(rows)} slices")
