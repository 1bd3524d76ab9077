"""`distilrank score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distilrank.cli.options import (
    DEFAULT_COMPUTE,
    DEFAULT_REGISTRY,
    BackendName,
    Device,
    Precision,
    RegistryUri,
    Threads,
    parse_compute,
)
from distilrank.cli.output import progress_counter


def score(
    model: Annotated[str, typer.Option(help="A student's folder, `champion`, or a version id.")],
    source: Annotated[Path, typer.Option("--input", help="Rows to score, .csv or .parquet: query, title and more.")],
    output: Annotated[Path, typer.Option(help="The same rows with a column `score`, .csv or .parquet.")],
    registry: RegistryUri = DEFAULT_REGISTRY,
    backend: BackendName = "auto",
    device: Device = DEFAULT_COMPUTE.device,
    precision: Precision = "fp32",
    threads: Threads = DEFAULT_COMPUTE.threads,
    probability: Annotated[
        bool, typer.Option("--probability", help="Add a column `probability`: the calibrated probability of relevance.")
    ] = False,
) -> None:
    """Score (query, product) rows in their order; a higher score is more relevant.

    Files may be larger than memory. The output file appears when it is complete.

    Example: `distilrank score --model champion --input pairs.csv --output scores.parquet`
    """
    compute = parse_compute(device, precision, threads)
    from distilrank import score_files

    with progress_counter("score", "pairs") as counter:
        rows = score_files.score(
            model, source, output, registry, compute, backend=backend, probability=probability, counter=counter
        )
    print(f"{output}: {rows} rows")
