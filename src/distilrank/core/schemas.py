"""Arrow schemas of every table that crosses a stage boundary, and Parquet files that are checked against them.

Only this module declares such tables; `write` and `read` check them against the declaration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distilrank.core import artifacts
from distilrank.core.errors import InputError, one_line

# Tables of a data source ----------------------------------------------------------------------------------------------

PRODUCT_FIELDS = ("title", "product_type", "brand", "color", "gender", "description")
"""The product fields that a model may be shown, in the paper's order (arXiv 2505.07105)."""

PRODUCTS = pa.schema(
    [pa.field("product_id", pa.string(), nullable=False), *(pa.field(name, pa.string()) for name in PRODUCT_FIELDS)]
)

JUDGEMENTS = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("rating", pa.float64(), nullable=False),  # mean over the raters, on the source's scale
        pa.field("raters", pa.int32(), nullable=False),
        pa.field("gain", pa.float64()),  # in [0, 1]; null where it is the soft target
        pa.field("locale", pa.string()),  # of the shop that the query was judged for: us, de-DE; null where unknown
        pa.field("rater", pa.int32()),  # number of the person, from 0; null where unknown, or where it was several
    ]
)

EVENTS = pa.schema(
    [
        pa.field("at", pa.timestamp("us")),  # UTC; null where the log has no time
        pa.field("search", pa.string()),  # key of the search that the row belongs to
        pa.field("query", pa.string()),  # null: that of the search
        pa.field("product_id", pa.string()),  # null: the row tells of the search alone
        pa.field("position", pa.int32()),  # 1 is the top of the list
        pa.field("shown", pa.int32(), nullable=False),  # impressions and clicks that the row stands for
        pa.field("clicked", pa.int32(), nullable=False),
        pa.field("client", pa.string()),
        pa.field("row_id", pa.string()),  # the row's own, by which it is known if it comes again; null: none
    ]
)
"""What a source gives of a log; ids of clients, searches and rows go no further than `data.log_store`."""

IMPRESSIONS = pa.schema(
    [
        pa.field("timestamp", pa.timestamp("us", tz="UTC")),  # null where the log has no time
        pa.field("query", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("position", pa.int32()),  # 1 is the top of the list
        pa.field("clicked", pa.bool_()),
    ]
)

SIDES = ("train", "dev", "test")
"""What a query is for, permanently: a function of its text and a salt (`data.splits`)."""
STRATA = ("head", "torso", "tail")
"""How often a query is searched: the first, second and last third of all impressions (`data.splits.CUT`)."""

# Tables of preparation -------------------------------------------------------------------------------------

PAIR = [
    pa.field("query_id", pa.string(), nullable=False),
    pa.field("query", pa.string(), nullable=False),
    pa.field("product_id", pa.string(), nullable=False),
    *[pa.field(name, pa.string()) for name in PRODUCT_FIELDS],
]

JUDGED = pa.schema(
    [
        *PAIR,
        pa.field("target", pa.float32(), nullable=False),  # soft target in [0, 1], what the models learn
        pa.field(
            "gain", pa.float32(), nullable=False
        ),  # linear gain of nDCG in [0, 1]; the target unless the source differs
        pa.field("raters", pa.int32(), nullable=False),
        pa.field("locale", pa.string()),  # of the shop that the query was judged for; null where unknown
        pa.field("stratum", pa.string(), nullable=False),  # head | torso | tail, by frequency in the logs
        pa.field("bm25", pa.float32(), nullable=False),
    ]
)

CANDIDATES = pa.schema(
    [
        *PAIR,
        pa.field("provenance", pa.string(), nullable=False),  # impression | bm25 | disagreement | popular | random
        pa.field("impressions", pa.int32(), nullable=False),
        pa.field("clicks", pa.int32(), nullable=False),
        pa.field("stratum", pa.string(), nullable=False),
    ]
)

TRAFFIC = pa.schema(
    [
        *PAIR,
        pa.field("query_words", pa.int32(), nullable=False),
        pa.field("query_characters", pa.int32(), nullable=False),
        pa.field("query_tokens", pa.int32(), nullable=False),  # word pieces of the retriever's tokenizer
        pa.field("unseen_words", pa.float32(), nullable=False),  # share of the query's words absent from the catalogue
        pa.field("script", pa.string(), nullable=False),  # of most of the query's letters
        pa.field("title_words", pa.int32(), nullable=False),
        pa.field("bm25", pa.float32(), nullable=False),
        pa.field("position", pa.float32()),  # 1 is the top of the list; null where the log does not tell
        pa.field("clicked", pa.float32()),  # 0 or 1; null where the log has no clicks
    ]
)
"""A seeded sample of one window's traffic, a row an impression, with the features that drift is measured on."""

TRAFFIC_NUMERIC = {
    "query_words": "query",
    "query_characters": "query",
    "query_tokens": "query",
    "unseen_words": "query",
    "title_words": "product",
    "bm25": "product",
    "position": "clicks",
    "clicked": "clicks",
}
TRAFFIC_CATEGORICAL = {"script": "query", "product_type": "product", "brand": "product", "color": "product"}
"""The columns of TRAFFIC that drift is measured on, and the group that each belongs to."""

# Tables of models --------------------------------------------------------------------------------------------------

LABELS = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("logit", pa.float32(), nullable=False),  # the teacher's raw score, before calibration
    ]
)

TRAFFIC_SCORES = pa.schema([pa.field("score", pa.float32(), nullable=False)])
"""Row-aligned with a TRAFFIC table."""

PER_QUERY = pa.schema(
    [
        pa.field("system", pa.string(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("stratum", pa.string(), nullable=False),
        pa.field("pairs", pa.int32(), nullable=False),
        pa.field("ndcg_at_5", pa.float64(), nullable=False),
        pa.field("ndcg_at_10", pa.float64(), nullable=False),
        pa.field("mrr", pa.float64(), nullable=False),
        pa.field("pair_accuracy", pa.float64(), nullable=False),
    ]
)

PAIR_SCORES = pa.schema(
    [
        pa.field("system", pa.string(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("target", pa.float32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("probability", pa.float32()),  # calibrated; null for systems without one
    ]
)

PAIR_COLUMNS = tuple(field.name for field in PAIR)


def conform(table: pa.Table, schema: pa.Schema, origin: str) -> pa.Table:
    """Return `table` with exactly the columns, order and types of `schema`.

    Raises:
        InputError: a column is missing, cannot be cast, or holds nulls where none are allowed; `origin` names the file.
    """
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise InputError(
            f"{origin}: missing column {missing[0]!r}; it has {', '.join(table.column_names)} "
            f"and needs {', '.join(schema.names)}"
        )
    columns = []
    for field in schema:
        column = table.column(field.name)
        try:
            column = column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InputError(
                f"{origin}: column {field.name!r} is {column.type}, expected {field.type} ({error})"
            ) from None
        if not field.nullable and column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise InputError(f"{origin}: column {field.name!r} is empty in row {row + 1}, expected a {field.type}")
        columns.append(column)
    return pa.table(columns, schema=schema)


def write(table: pa.Table, path: Path, schema: pa.Schema) -> None:
    """Write a table to `path` atomically, after checking it against `schema`."""
    with Writer(path, schema) as writer:
        writer.write(table)


class Writer:
    """Writes a table in parts, so that memory does not grow with its rows; the file appears when it is complete.

    Use it as a context manager; the file is discarded if the body fails.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema, self.rows = path, schema, 0

    def __enter__(self) -> Writer:
        with contextlib.ExitStack() as stack:
            handle = stack.enter_context(artifacts.replacing(self.path))
            self._writer = stack.enter_context(pq.ParquetWriter(handle, self.schema, compression="zstd"))
            self._open = stack.pop_all()
        return self

    def write(self, table: pa.Table) -> None:
        """Append rows after checking them by `conform`."""
        self._writer.write_table(conform(table, self.schema, str(self.path)))
        self.rows += table.num_rows

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)


def read(path: Path, schema: pa.Schema, columns: Iterable[str] | None = None) -> pa.Table:
    """Read `path`, or only some of its columns, and check it against `schema`.

    Raises:
        InputError: the file is missing, is not Parquet, is damaged, or does not fit.
    """
    expected = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    try:
        table = pq.read_table(path, columns=expected.names)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected a Parquet table with {', '.join(expected.names)}") from None
    except (pa.ArrowInvalid, OSError) as error:
        reason = one_line(error)
        raise InputError(f"{path}: corrupt or not Parquet ({reason})") from None
    return conform(table, expected, str(path))
