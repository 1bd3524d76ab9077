"""The `distilrank` command: everything that needs no pipeline.

Results go to standard output, progress and errors to standard error. Each command imports heavy libraries itself, so
that help and the registry answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from distilrank import __version__
from distilrank.cli import data, evaluate, gate, preflight, score, serve, settings, volume
from distilrank.core import progress
from distilrank.core.errors import InputError, RunStopped, one_line
from distilrank.registry import commands as registry

HELP = """Distil an LLM's sense of product relevance into a small, fast ranker.

Training and promotion are a pipeline: `python -m pipelines run --config configs/demo.yaml` on this machine,
`python -m pipelines compile` for a Kubeflow cluster. This command does everything before and after a run.

Check your data and settings before a run, score with a trained student, manage the champion:

    # Write files in the format of your own data
    distilrank demo-data --output shop
    # Every setting of a section, with its default and bound
    distilrank config gate
    # Every problem of the data, from a sample in seconds; with --full, from all rows
    distilrank data check --config configs/demo.yaml
    # Would a run start?
    distilrank preflight --config configs/demo.yaml

    # Score (query, product) rows with the champion, or with any student
    distilrank score --model champion --input pairs.csv --output out.parquet
    distilrank score --model runs/latest/student --input pairs.csv --output out.csv

    # Score over HTTP, and follow the champion as it changes
    distilrank serve --registry registry --model champion

    # Evaluate students on judged pairs, query by query
    distilrank evaluate --model champion --model runs/latest/student --judgements JUDGEMENTS

    # Promoted versions and the champion; why a version was promoted, and from which inputs
    distilrank registry list
    distilrank registry show champion
    # Return to the previous champion
    distilrank registry rollback --reason "empty results for sofas"
    # What another policy would have decided on a run
    distilrank gate --run runs/latest --policy configs/policies/strict.yaml

Exit status: 0 done, 2 bad input or configuration, 1 a failure.
"""

app = typer.Typer(
    name="distilrank", help=HELP, rich_markup_mode="markdown", no_args_is_help=True, pretty_exceptions_enable=False
)
app.command()(score.score)
app.command()(evaluate.evaluate)
app.command()(serve.serve)
app.command()(preflight.preflight)
app.command()(gate.gate)
app.command()(data.demo_data)
app.command("config")(settings.show_config)
app.add_typer(data.app, name="data")
app.add_typer(registry.app, name="registry")
app.add_typer(volume.app, name="volume")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command with `arguments`, by default those of the process, and exit with its status."""
    try:
        app(args=arguments)
    except InputError as error:
        _fail(error, 2)
    except RunStopped as error:
        _fail(error, 1)
    except Exception as error:
        if not (refusal := progress.storage_refusal(error, "storage")):
            raise
        _fail(refusal, 2)
    sys.exit(0)


def _fail(error: object, status: int) -> NoReturn:
    print("distilrank:", progress.printable(one_line(error, limit=None)), file=sys.stderr)
    sys.exit(status)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself; its help text is HELP."""
