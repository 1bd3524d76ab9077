"""The `distilrank` command: all that needs no pipeline.

Results go to standard output, progress and errors to standard error. What is heavy is imported by the one command
that needs it, so that help and the registry answer at once.
"""

from __future__ import annotations

import contextlib
import datetime
import inspect
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from distilrank import __version__, artifacts, config, hardware, knobs, progress
from distilrank import registry as registries
from distilrank.errors import InputError, RunStopped
from distilrank.serving import settings as serving

HELP = """Distil an LLM's sense of product relevance into a small, fast ranker.

Training and promotion are a pipeline: `python -m pipelines run --config configs/demo.yaml` here, `compile` for
a Kubeflow cluster. This command holds what is around it.

Look at your data and your settings before a run, score with what came out of it, manage what is in use:

    # Files in the form that you would bring yourself
    distilrank demo-data --output shop
    # Every knob of a section, with its default and bound
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

    # What was promoted, and which one is in use; why, and made from what
    distilrank registry list
    distilrank registry show champion
    # Back to the one before
    distilrank registry rollback

Exit status: 0 done, 2 bad input or configuration, 1 a failure.
"""

app = typer.Typer(
    name="distilrank", help=HELP, rich_markup_mode="markdown", no_args_is_help=True, pretty_exceptions_enable=False
)
registry_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(data_app, name="data", help="Your data: what is wrong with it, what is left out of it.")
app.add_typer(registry_app, name="registry", help="Promoted students: list, show, roll back, verify.")

Uri = Annotated[str, typer.Option("--registry", metavar="URI", help="Where the registry is: a local folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Settings = Annotated[Path, typer.Option("--config", metavar="FILE", help="The run's configuration (YAML).")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Stronger than the file; may be repeated.")
]
DEFAULT_URI = config.Registry().uri


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command with `arguments` (those of the process where None) and exit with its status."""
    try:
        app(args=arguments)
    except InputError as error:
        _fail(str(error), 2)
    except RunStopped as error:
        _fail(str(error), 1)
    except OSError as error:
        if error.errno not in progress.STORAGE_ERRORS:
            raise
        _fail(f"{error.filename or 'storage'}: {error.strerror}", 2)
    sys.exit(0)


def _fail(message: str, status: int) -> NoReturn:
    print("distilrank:", " ".join(message.split()), file=sys.stderr)
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


# Registry ---------------------------------------------------------------------------------------------------------


@registry_app.command("list")
def list_versions(registry: Uri = DEFAULT_URI, as_json: AsJson = False) -> None:
    """List all versions, oldest first, and mark the champion."""
    backend = registries.open(registry)
    champion = backend.champion()
    manifests = sorted((backend.manifest(version) for version in backend.versions()), key=_age)
    if as_json:
        _print_json([_summary(manifest) | {"champion": manifest["id"] == champion} for manifest in manifests])
        return
    if not manifests:
        print(f"registry {backend.uri}: no version yet; a run that passes the gate publishes one")
        return
    table = Table("version", "", "created", "nDCG@10", "ECE", "outcome", "in place of", title=f"registry {backend.uri}")
    for manifest in manifests:
        replaced = manifest["verdict"]["champion"]
        table.add_row(
            manifest["id"],
            "champion" if manifest["id"] == champion else "",
            manifest["created"],
            _number(manifest["metrics"].get("ndcg_at_10")),
            _number(manifest["metrics"].get("ece")),
            manifest["verdict"]["outcome"].replace("_", " "),
            replaced["id"] if replaced else "-",
            style="bold" if manifest["id"] == champion else None,
        )
    _console().print(table)


@registry_app.command("show")
def show_version(
    version: Annotated[str, typer.Argument(help="A version's id, or `champion`.")] = registries.CHAMPION,
    registry: Uri = DEFAULT_URI,
    as_json: AsJson = False,
) -> None:
    """Show one version: its measures, every check that it passed, and what it was made from."""
    backend = registries.open(registry)
    manifest = backend.manifest(registries.resolve(backend, version))
    is_champion = manifest["id"] == backend.champion()
    past = [record for record in backend.history() if manifest["id"] in (record["version"], record["previous"])]
    if as_json:
        _print_json({**manifest, "champion": is_champion, "history": past})
        return
    console = _console()
    mark = ", champion" if is_champion else ""
    console.print(f"{manifest['id']}{mark}, created {manifest['created']}", style="bold")
    measures = Table("measure", "student", title="On the test queries")
    for name, value in manifest["metrics"].items():
        measures.add_row(name, _number(value))
    console.print(measures)
    checks = Table("check", "", "detail", title=f"Verdict: {manifest['verdict']['outcome'].replace('_', ' ')}")
    for check in manifest["verdict"]["checks"]:
        checks.add_row(check["name"], "passed" if check["passed"] else "failed", check["detail"])
    console.print(checks)
    origins = Table("made from", "digest or model", title="Origin")
    for name, digest in manifest["digests"].items():
        origins.add_row(name, digest)
    for name, base in manifest["models"].items():
        origins.add_row(f"{name} model", base)
    console.print(origins)
    moves = Table("when", "what", "version", "in place of", "by", title="History")
    for record in past:
        moves.add_row(record["since"], record["action"], record["version"], record["previous"] or "-", record["by"])
    console.print(moves)


@registry_app.command("rollback")
def roll_back(registry: Uri = DEFAULT_URI, as_json: AsJson = False) -> None:
    """Make the champion before this one the champion again; no version is lost."""
    backend = registries.open(registry)
    version = backend.rollback()
    record = backend.history()[-1]
    if as_json:
        _print_json(record)
    else:
        print(f"champion: {version}, before: {record['previous']}")


@registry_app.command("verify")
def verify_versions(registry: Uri = DEFAULT_URI, as_json: AsJson = False) -> None:
    """Check every byte of every version against its digest, and that the champion is one of them."""
    backend = registries.open(registry)
    problems: dict[str, str] = {}
    versions = backend.versions()
    for version in versions:
        try:
            backend.fetch(version)
        except InputError as error:
            problems[version] = str(error)
    if as_json:
        _print_json([{"id": version, "problem": problems.get(version)} for version in versions])
    else:
        table = Table("version", "state", title=f"registry {backend.uri}")
        for version in versions:
            table.add_row(version, problems.get(version, "every digest matches"))
        _console().print(table)
    if problems:
        damaged = ", ".join(problems)
        raise InputError(f"registry {backend.uri}: {len(problems)} of {len(versions)} versions damaged: {damaged}")
    if backend.champion():
        registries.resolve(backend, registries.CHAMPION)


# Around a run -----------------------------------------------------------------------------------------------------


def _compute(name: str) -> str:
    return config.Compute.model_fields[name].description or ""


@app.command()
def score(
    model: Annotated[str, typer.Option(help="A student's folder, `champion`, or a version's id.")],
    source: Annotated[Path, typer.Option("--input", help="Rows to score, .csv or .parquet: query, title and more.")],
    output: Annotated[Path, typer.Option(help="The same rows with a column `score`, .csv or .parquet.")],
    registry: Uri = DEFAULT_URI,
    backend: Annotated[
        str,
        typer.Option(
            help="torch; onnx, which needs no torch; onnx-int8, the fastest on processors; auto: torch where it is "
            "installed, else onnx."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help=_compute("device"))] = config.Compute().device,
    precision: Annotated[
        str, typer.Option(help="fp32 gives the scores that other libraries give; bf16 is faster where there is a unit.")
    ] = "fp32",
    threads: Annotated[int, typer.Option(help=_compute("threads"))] = config.Compute().threads,
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
    from distilrank import pair_files

    with contextlib.redirect_stdout(sys.stderr), _counting("score", "pairs") as counter:
        rows = pair_files.score(
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
        stage.check(values, schedule_time=at, output=Path(scratch))
        resolved = artifacts.read_json(Path(scratch) / "preflight.json")
    if as_json:
        _print_json(resolved)
        return
    table = Table("resolved", "value", title=f"{settings}: ready to run")
    for name, value in resolved.items():
        table.add_row(name.replace("_", " "), _words(value))
    _console().print(table)


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
    from distilrank import data_check

    with contextlib.redirect_stdout(sys.stderr):
        found = data_check.check(values, full=full, schedule_time=schedule_time)
    problems = list(found.problems)
    if as_json:
        _print_json({"problems": [problem.to_json() for problem in problems], **found.facts})
    else:
        console = _console()
        facts = Table("what", "found", title=f"{settings}: {found.facts['read']}")
        for name, value in found.facts.items():
            facts.add_row(name.replace("_", " "), _words(value))
        console.print(facts)
        table = Table(title="Problems", show_lines=True)
        for heading in ("where", "", "rows", "problem", "examples"):
            table.add_column(heading, overflow="fold")
        for problem in sorted(problems, key=lambda problem: not problem.fatal):
            mark = "stops a run" if problem.fatal else "left out or odd"
            table.add_row(problem.where, mark, f"{problem.rows:,}", problem.what, "\n".join(problem.examples))
        if problems:
            console.print(table)
        else:
            console.print("no problem found")
    fatal = sum(problem.fatal for problem in problems)
    if fatal:
        raise InputError(f"{settings}: {fatal} of {len(problems)} problems would stop a run")


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
    from distilrank.sources import demo_shop

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
    """Print every knob of the configuration with its default and bound."""
    if as_markdown:
        sys.stdout.write(knobs.markdown())
        return
    groups = knobs.groups()
    chosen = [group for group in groups if not section or f"{group.path}.".startswith(f"{section}.")]
    if not chosen:
        known = ", ".join(dict.fromkeys(group.path for group in groups if group.path))
        raise InputError(f"config: no section {section!r}, expected one of {known}")
    console = _console()
    for group in chosen:
        table = Table("key", "default", "bound", "what it does", title=group.title, caption=group.summary)
        for knob in group.knobs:
            table.add_row(knob.key, knob.default, knob.bound or knob.type, knob.description)
        console.print(table)


# Printing ---------------------------------------------------------------------------------------------------------


def _console() -> Console:
    # A pipe has no width of its own; the default of 80 would fold the tables.
    return Console(width=None if sys.stdout.isatty() else 140, markup=False, highlight=False, emoji=False)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _words(value: Any) -> str:
    """A value of a report in one cell: what it holds, line by line."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_words(inner)}" for key, inner in value.items()) or "-"
    if isinstance(value, list):
        return "\n".join(map(_words, value)) or "-"
    return str(value) or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _summary(manifest: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": manifest["id"],
        "created": manifest["created"],
        "outcome": manifest["verdict"]["outcome"],
        "metrics": manifest["metrics"],
    }


def _age(manifest: dict[str, Any]) -> tuple[str, str]:
    return manifest["created"], manifest["id"]
