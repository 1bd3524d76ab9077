"""The `distilrank` command: all that needs no pipeline.

Results go to standard output, progress and errors to standard error. What is heavy is imported by the one command
that needs it, so that help and the registry answer at once.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import inspect
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distilrank import __version__, config
from distilrank.config import reference
from distilrank.core import artifacts, hardware, progress, volume
from distilrank.core.errors import InputError, RunStopped
from distilrank.core.terminal import AsJson, console, figure, new_table, print_json
from distilrank.registry import commands as registry_commands
from distilrank.serving import settings as serving

HELP = """Distil an LLM's sense of product relevance into a small, fast ranker.

Training and promotion are a pipeline: `python -m pipelines run --config configs/demo.yaml` here, `compile` for
a Kubeflow cluster. This command holds what is around it.

Look at your data and your settings before a run, score with what came out of it, manage what is in use:

    # Files in the form that you would bring yourself
    distilrank demo-data --output shop
    # Every setting of a section, with its default and bound
    distilrank config gate
    # Everything that is wrong with the data, in seconds; with --full, all of it
    distilrank data check --config configs/demo.yaml
    # Would a run start?
    distilrank preflight --config configs/demo.yaml

    # Score (query, product) rows with what is in use, or with any student
    distilrank score --model champion --input pairs.csv --output out.parquet
    distilrank score --model runs/latest/student --input pairs.csv --output out.csv

    # The same over HTTP, following the champion as it changes
    distilrank serve --registry registry --model champion

    # Measure students on judged pairs, query by query
    distilrank evaluate --model champion --model runs/latest/student --judgements JUDGEMENTS

    # What was promoted, and which one is in use; why, and made from what
    distilrank registry list
    distilrank registry show champion
    # Back to the one before
    distilrank registry rollback --reason "empty results for sofas"
    # What another policy would have said of a run
    distilrank gate --run runs/latest --policy configs/policies/strict.yaml

Exit status: 0 done, 2 bad input or configuration, 1 a failure.
"""

app = typer.Typer(
    name="distilrank", help=HELP, rich_markup_mode="markdown", no_args_is_help=True, pretty_exceptions_enable=False
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(data_app, name="data", help="Your data: what is wrong with it, what is left out of it.")
app.add_typer(registry_commands.app, name="registry")
volume_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(volume_app, name="volume", help="A volume that outlives runs: its folders, and who can write them.")

Uri = Annotated[
    str, typer.Option("--registry", metavar="URI", help="Where the registry is: a folder or gs://BUCKET/PREFIX.")
]
Settings = Annotated[Path, typer.Option("--config", metavar="FILE", help="The run's configuration (YAML).")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Stronger than the file; may be repeated.")
]
DEFAULT_URI = config.Registry().uri
COMPUTE = config.Compute()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command with `arguments` (those of the process where None) and exit with its status."""
    try:
        app(args=arguments)
    except InputError as error:
        _fail(str(error), 2)
    except RunStopped as error:
        _fail(str(error), 1)
    except Exception as error:
        if not (refusal := progress.storage_refusal(error, "storage")):
            raise
        _fail(refusal, 2)
    sys.exit(0)


def _fail(message: str, status: int) -> NoReturn:
    print("distilrank:", progress.printable(" ".join(message.split())), file=sys.stderr)
    sys.exit(status)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself; its help is HELP."""


# Around a run -----------------------------------------------------------------------------------------------------


def _compute(name: str) -> str:
    return config.Compute.model_fields[name].description or ""


BackendName = Annotated[
    str,
    typer.Option(
        "--backend",
        help="torch; onnx, which needs no torch; onnx-int8, the fastest on processors; auto: torch where it is "
        "installed, else onnx.",
    ),
]
Device = Annotated[str, typer.Option("--device", help=_compute("device"))]
Precision = Annotated[
    str,
    typer.Option(
        "--precision", help="fp32 gives the scores that other libraries give; bf16 is faster where there is a unit."
    ),
]
Threads = Annotated[int, typer.Option("--threads", help=_compute("threads"))]


@app.command()
def score(
    model: Annotated[str, typer.Option(help="A student's folder, `champion`, or a version's id.")],
    source: Annotated[Path, typer.Option("--input", help="Rows to score, .csv or .parquet: query, title and more.")],
    output: Annotated[Path, typer.Option(help="The same rows with a column `score`, .csv or .parquet.")],
    registry: Uri = DEFAULT_URI,
    backend: BackendName = "auto",
    device: Device = COMPUTE.device,
    precision: Precision = "fp32",
    threads: Threads = COMPUTE.threads,
    probability: Annotated[
        bool, typer.Option("--probability", help="Add a column `probability`: that of relevance, calibrated.")
    ] = False,
) -> None:
    """Score (query, product) rows, in their order; a higher score is more relevant.

    Files may be larger than memory. The output appears when it is complete.

    Example: `distilrank score --model champion --input pairs.csv --output scores.parquet`
    """
    compute = config.parse(
        {"device": device, "precision": precision, "threads": threads}, "command line", model=config.Compute
    )
    from distilrank import score_files

    with contextlib.redirect_stdout(sys.stderr), _counting("score", "pairs") as counter:
        rows = score_files.score(
            model,
            source,
            output,
            registry,
            compute,
            backend=backend,
            probability=probability,
            counter=counter,
        )
    print(f"{output}: {rows} rows")


@app.command()
def evaluate(
    models: Annotated[
        list[str],
        typer.Option("--model", metavar="STUDENT", help="A student's folder, an alias or a version; may be repeated."),
    ],
    judgements: Annotated[
        Path,
        typer.Option(
            metavar="PATH", help="A run's `judgements` folder, whose test split is taken, or one of its Parquet files."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write metrics.json and per_query.parquet there.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Take `evaluate` from this configuration (YAML).")
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    registry: Uri = DEFAULT_URI,
    backend: BackendName = "auto",
    device: Device = COMPUTE.device,
    precision: Precision = "fp32",
    threads: Threads = COMPUTE.threads,
    as_json: AsJson = False,
) -> None:
    """Measure students on judged pairs that none of them has learned from, beside random order and BM25.

    Differences come with intervals and p-values, query by query: of each student to BM25, to random order and to every
    other student. Give students that differ by their seed alone, and the last table tells how far luck goes.

    Examples:

        # What is in use, and a new one
        distilrank evaluate --model champion --model runs/latest/student --judgements JUDGEMENTS --output compared

        # Three seeds, more resamples, slices of your own
        distilrank evaluate --model seed-1/student --model seed-2/student --model seed-3/student \\
            --judgements JUDGEMENTS --set evaluate.bootstrap=10000 --set evaluate.slices='[script, brand]'
    """
    compute = config.parse(
        {"device": device, "precision": precision, "threads": threads}, "command line", model=config.Compute
    )
    given = config.parse_overrides(overrides)
    others = [name for name in given if name != "evaluate"]
    if others:
        raise InputError(f"--set {others[0]}: expected evaluate.KEY=VALUE, one of `distilrank config evaluate`")
    base = (config.load(settings).evaluate if settings else config.Evaluate()).model_dump()
    choices = config.parse(base | given.get("evaluate", {}), "evaluate", model=config.Evaluate)
    from distilrank.evaluation import compare

    with contextlib.redirect_stdout(sys.stderr), _counting("evaluate", "pairs") as counter:
        metrics = compare.compare_models(
            models, judgements, output, registry, compute, choices, backend=backend, counter=counter
        )
    if as_json:
        print_json(metrics)
    else:
        _print_measures(metrics, models)


def _print_measures(metrics: dict[str, Any], models: Sequence[str]) -> None:
    out, protocol = console(), metrics["protocol"]
    systems = metrics["systems"]
    counts = f"{protocol['ranked_queries']:,} ranked of {protocol['queries']:,} queries, {protocol['pairs']:,} pairs"
    table = new_table("measure", *systems, title=counts)
    for metric in next(iter(systems.values())):
        table.add_row(metric, *(figure(values[metric]) for values in systems.values()))
    out.print(table)
    level = f"{protocol['confidence']:.0%}"
    table = new_table("system", "against", "measure", "difference", f"{level} interval", "p", "wins, ties, losses")
    for one in metrics["comparisons"]:
        interval = f"{figure(one['ci_low'], '+')} to {figure(one['ci_high'], '+')}"
        counted = ", ".join(f"{one[key]:,}" for key in ("wins", "ties", "losses") if key in one) or "-"
        row = (one["system"], one["baseline"], one["metric"], figure(one["delta"], "+"), interval)
        table.add_row(*row, f"{one['p_value']:.4f}", counted)
    out.print(table)
    slices = metrics["slices"]
    worse = [
        (f"{row['column']}: {row['value']}", one)
        for row in slices["rows"]
        for one in row["comparisons"]
        if one["delta"] < 0 and one["p_holm"] < 1 - protocol["confidence"]
    ]
    for name, one in worse:
        out.print(
            f"worse: {one['system']} than {one['baseline']} on {name} by {one['metric']}, "
            f"{one['delta']:+.4f} (p {one['p_holm']:.4f}, adjusted)"
        )
    if not worse:
        out.print(f"no student is significantly worse on any of {len(slices['rows'])} slices")
    if metrics["stability"]:
        table = new_table("measure", "mean", "sd", "lowest", "highest", title=f"{len(models)} students")
        for metric, values in metrics["stability"]["metrics"].items():
            keys = ("mean", "standard_deviation", "lowest", "highest")
            table.add_row(metric, *(figure(values[key]) for key in keys))
        out.print(table)


@contextlib.contextmanager
def _counting(stage: str, unit: str) -> Iterator[Callable[[int], progress.Counter]]:
    """What makes a counter of a total: it prints lines, or draws a bar on a terminal."""
    if not sys.stderr.isatty():
        yield lambda total: progress.Counter(stage, total, unit)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:

        class Bar(progress.Counter):
            def __init__(self, total: int) -> None:
                super().__init__(stage, total, unit)
                self._task = bar.add_task(unit, total=total)

            def add(self, count: int, *notes: str) -> None:
                bar.advance(self._task, count)

        yield Bar


def _with_options(model: type[config.Section]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of `model`; those that were not given arrive as None."""

    def extend(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    (bool if field.annotation is bool else str) | None,
                    typer.Option(help=field.description, metavar="VALUE", show_default=str(field.default) or False),
                ],
            )
            for name, field in model.model_fields.items()
        ]
        kept = [one for one in own.parameters.values() if one.kind != inspect.Parameter.VAR_KEYWORD]
        command.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
        return command

    return extend


@app.command()
@_with_options(serving.Serving)
def serve(
    settings: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="YAML with any of these; the command line is stronger."),
    ] = None,
    **options: Any,
) -> None:
    """Serve the champion's scores over HTTP, and follow it when another version is promoted.

    Example: `distilrank serve --registry registry --model champion --port 8080`
    """
    given = {name: value for name, value in options.items() if value is not None}
    values = serving.load(settings, given)
    from distilrank.serving import server

    server.serve(values)


@app.command()
def preflight(
    settings: Settings,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    schedule_time: Annotated[
        str, typer.Option(help="Check for a run that is scheduled at this time (ISO 8601); empty: now.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check that a run would start: data, models, registry, disk; and print what it would use.

    Example: `distilrank preflight --config configs/demo.yaml --set window.days=14`
    """
    values = config.load(settings, overrides, fast_bf16=hardware.fast_bf16())
    from distilrank import preflight as stage

    at = schedule_time or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    # In the working folder, where a run would write too: it is its free space that counts. The stage's own lines are
    # for a pod's log; here the table and the error say the same.
    with (
        tempfile.TemporaryDirectory(prefix=".preflight-", dir=".") as scratch,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        stage.check(values, name=values.name, schedule_time=at, secrets={}, output=Path(scratch))
        if importlib.util.find_spec("torch"):
            from distilrank import rehearsal

            rehearsal.rehearse(values.teacher, values.student, values.compute)
        resolved = artifacts.read_json(Path(scratch) / "preflight.json")
    if as_json:
        print_json(resolved)
        return
    table = new_table("resolved", "value", title=f"{settings}: ready to run")
    for name, value in resolved.items():
        table.add_row(name.replace("_", " "), _words(value))
    console().print(table)


@app.command("gate")
def reconsider(
    run: Annotated[
        Path | None, typer.Option("--run", metavar="FOLDER", help="A finished run: runs/NAME, or runs/latest.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="A policy (YAML); without it, the run's own.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    fail_on_refusal: Annotated[
        bool, typer.Option("--fail-on-refusal", help="Exit with 3 if the policy refuses the student.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a policy, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask what a policy says of a finished run: nothing is trained, counted or promoted.

    Example: `distilrank gate --run runs/latest --policy configs/policies/strict.yaml --set gate.min_queries=200`
    """
    if schema:
        print_json(config.Gate.model_json_schema())
        return
    if run is None:
        raise InputError("gate: --run is missing, expected the folder of a finished run, or --schema")
    base = config.read_policy(policy) if policy else config.load(run / "config.yaml").gate
    from distilrank.promotion import gate as stage

    verdict = stage.reconsider(run, config.override_policy(base, overrides))
    if as_json:
        print_json(verdict.to_json())
    else:
        out = console()
        outcome = verdict.outcome.replace("_", " ")
        table = new_table(title=f"{run}: candidate {verdict.candidate['id']} would be {outcome}")
        for heading in ("check", "", "value", "bound", "detail"):
            table.add_column(heading, overflow="fold", no_wrap=heading in ("check", ""))
        for check in verdict.checks:
            figures = (_short(value) for value in (check.value, check.bound))
            table.add_row(check.name, verdict.word(check), *figures, check.detail)
        out.print(table)
        for note in verdict.notes:
            out.print(f"note: {note}")
        if verdict.looser:
            out.print(f"note: {stage.looser_text(verdict.looser)}")
    if fail_on_refusal and verdict.outcome == "refused":
        raise typer.Exit(3)


@data_app.command("check")
def check_data(
    settings: Settings,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    full: Annotated[bool, typer.Option("--full", help="Read everything, not a sample.")] = False,
    schedule_time: Annotated[str, typer.Option(help="As for a run that is scheduled at this time (ISO 8601).")] = "",
    as_json: AsJson = False,
) -> None:
    """Find every problem of the data, not only the first, with counts and examples; train nothing.

    Exit status 2 if a run would stop at one of them; rows that a run would leave out are listed too.

    Example: `distilrank data check --config configs/demo.yaml --full`
    """
    values = config.load(settings, overrides, fast_bf16=hardware.fast_bf16())
    from distilrank.data import validate

    with contextlib.redirect_stdout(sys.stderr):
        found = validate.check(values, full=full, schedule_time=schedule_time)
    problems = list(found.problems)
    if as_json:
        print_json({"problems": [problem.to_json() for problem in problems], **found.facts})
    else:
        out = console()
        facts = new_table("what", "found", title=f"{settings}: {found.facts['read']}")
        for name, value in found.facts.items():
            facts.add_row(name.replace("_", " "), _words(value))
        out.print(facts)
        table = new_table(title="Problems", show_lines=True)
        for heading in ("where", "", "rows", "problem", "examples"):
            table.add_column(heading, overflow="fold")
        for problem in sorted(problems, key=lambda problem: not problem.fatal):
            mark = "stops a run" if problem.fatal else "left out or odd"
            table.add_row(problem.where, mark, f"{problem.rows:,}", problem.what, "\n".join(problem.examples))
        if problems:
            out.print(table)
        else:
            out.print("no problem found")
    fatal = sum(problem.fatal for problem in problems)
    if fatal:
        raise InputError(f"{settings}: {fatal} of {len(problems)} problems would stop a run")


VolumeRoot = Annotated[Path, typer.Argument(help="Where the volume is mounted.", show_default=False)]
VolumeFolders = Annotated[list[str], typer.Argument(help="Its folders, relative to it.", show_default=False)]


@volume_app.command("prepare")
def prepare_volume(root: VolumeRoot, folders: VolumeFolders) -> None:
    """Make the folders of a volume, writable for its group, and check them as `volume check` does.

    Example: `distilrank volume prepare /distilrank registry resume log`
    """
    volume.prepare(root, folders)
    print(f"{root}: user {os.geteuid()}, group {os.getegid()} can write {', '.join(folders)}")


@volume_app.command("check")
def check_volume(root: VolumeRoot, folders: VolumeFolders) -> None:
    """Check that this user can write, lock and rename files in the folders of a volume; exit status 2 if not.

    Example: `distilrank volume check /distilrank registry resume log`
    """
    volume.check(root, folders)
    print(f"{root}: user {os.geteuid()}, group {os.getegid()} can write {', '.join(folders)}")


@app.command("demo-data")
def demo_data(
    output: Annotated[Path, typer.Option(help="Folder to write to.")],
    settings: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Take the shop from its `data`; else the default.")
    ] = None,
) -> None:
    """Write the demo shop's judgements, catalogue and log as files: what you would bring of your own.

    Example: `distilrank demo-data --output shop`
    """
    from distilrank.data.sources import demo_shop

    shop = config.DemoShop(source="demo_shop")
    if settings is not None:
        data = config.load(settings).data
        if not isinstance(data, config.DemoShop):
            raise InputError(f"{settings}: data.source is {data.source!r}, expected 'demo_shop'")
        shop = data
    demo_shop.export(demo_shop.open(shop), output)
    print(f"{output / 'config.yaml'}: reads judgements, catalogue and log beside it as data of your own")


@app.command("config")
def show_config(
    section: Annotated[str, typer.Argument(help="Only this section, `gate` or `teacher.lora`, say; empty: all.")] = "",
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the whole reference page.")] = False,
) -> None:
    """Print every setting of the configuration with its default and bound."""
    if as_markdown:
        sys.stdout.write(reference.markdown())
        return
    groups = reference.groups()
    chosen = [group for group in groups if not section or f"{group.path}.".startswith(f"{section}.")]
    if not chosen:
        known = ", ".join(dict.fromkeys(group.path for group in groups if group.path))
        raise InputError(f"config: no section {section!r}, expected one of {known}")
    out = console()
    for group in chosen:
        table = new_table("key", "default", "bound", "what it does", title=group.title, caption=group.summary)
        for setting in group.settings:
            table.add_row(setting.key, setting.default, setting.bound or setting.type, setting.description)
        out.print(table)


# Printing ---------------------------------------------------------------------------------------------------------


def _words(value: Any) -> str:
    """A value of a report in one cell: what it holds, line by line."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_words(inner)}" for key, inner in value.items()) or "-"
    if isinstance(value, list):
        return "\n".join(map(_words, value)) or "-"
    return str(value) or "-"


def _short(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"
