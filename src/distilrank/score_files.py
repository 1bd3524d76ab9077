"""Scores files of (query, product) rows in batches, so that memory does not grow with their size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from distilrank import registry as registries
from distilrank.config import Compute
from distilrank.core import artifacts, progress, schemas
from distilrank.core.errors import InputError, RunStopped
from distilrank.core.prefetch import prefetch
from distilrank.core.problems import Problems
from distilrank.data.sources.reading import File
from distilrank.modeling.scorer import Scorer

SCORE, PROBABILITY = "score", "probability"


def score(
    model: str,
    input: Path,
    output: Path,
    registry: str,
    compute: Compute,
    *,
    backend: str = "auto",
    probability: bool = False,
    counter: Callable[[int], progress.Counter] = lambda rows: progress.Counter("score", rows, "pairs"),
) -> int:
    """Score the rows of `input` and write them with a column `score` to `output`, in the same order.

    Columns, types and empty values of all rows are checked before the first is scored. The output appears when it is
    complete; a killed process leaves the previous file or none.

    Args:
        model: a student's folder, `champion`, or a version id of the registry.
        input: CSV (plain or gzip) or Parquet with `query`, `title` and other fields of products.
        output: .csv or .parquet.
        registry: URI of the registry.
        compute: device, precision, threads.
        backend: as for `Scorer.load`.
        probability: add a column `probability`, the calibrated probability of relevance.
        counter: returns a progress counter for a number of rows.

    Returns:
        The number of rows.

    Raises:
        InputError: bad input, model or output; nothing is written then.
        RunStopped: a score is not finite.
    """
    if not output.name.endswith((".csv", ".parquet")):
        raise InputError(f"{output}: expected a .csv or .parquet file to write")
    with artifacts.replacing(output) as handle:  # first, so that an output that cannot be written is reported at once
        total, schema = _check(input, output)
        scorer = Scorer.load(registries.locate(model, registry), compute, backend=backend)
        if probability and scorer.probability(np.empty(0, np.float32)) is None:
            raise InputError(f"{model}: is not calibrated, so its scores have no probability")
        score_columns = [SCORE, PROBABILITY] if probability else [SCORE]
        input_fields = [field for field in schema if field.name not in (SCORE, PROBABILITY)]  # of an earlier model
        schema = pa.schema([*input_fields, *(pa.field(name, pa.float32()) for name in score_columns)])
        progress_counter, done = counter(total), 0
        with _writer(handle, output, schema) as writer:
            for table, pairs in prefetch(_batches(input)):
                try:
                    logits = scorer.score(pairs, progress_counter)
                except (InputError, RunStopped) as error:
                    raise type(error)(f"{input}, of the rows from {done + 1}: {error}") from None
                done += table.num_rows
                values = {SCORE: logits, PROBABILITY: scorer.probability(logits)}
                columns = [table.column(field.name) for field in input_fields]
                columns += [pa.array(values[name], pa.float32()) for name in score_columns]
                writer.write_table(pa.table(columns, schema=schema))
    return total


def _writer(handle: BinaryIO, output: Path, schema: pa.Schema) -> pyarrow.csv.CSVWriter | pq.ParquetWriter:
    if output.suffix == ".csv":
        return pyarrow.csv.CSVWriter(handle, schema)
    return pq.ParquetWriter(handle, schema, compression="zstd")


def _check(input: Path, output: Path) -> tuple[int, pa.Schema]:
    """Read all rows of `input`, and return their number and their schema."""
    rows, schema = 0, None
    for table, _ in _batches(input):
        rows, schema = rows + table.num_rows, table.schema
    if schema is None:
        raise InputError(f"{input}: no rows after the header")
    for field in schema:
        if output.suffix == ".csv" and pa.types.is_nested(field.type):
            raise InputError(f"{output}: CSV cannot hold column {field.name!r} ({field.type}), expected .parquet")
    return rows, schema


def _batches(path: Path) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield batches of rows: all columns, and the pairs that the model scores (`query` and product fields)."""
    File(path, {"query": "query", "title": "title"}).check()
    names = File(path, {}).names()
    for rows in File(path, {name: name for name in names}).batches(Problems()):
        if len(rows):
            table = pa.table(rows.columns)
            pairs = {"query": rows.query("query"), "title": rows.key("title")}
            pairs |= {name: rows.text(name) for name in schemas.PRODUCT_FIELDS if name in names and name != "title"}
            yield table, pa.table(pairs)
