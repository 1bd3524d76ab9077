"""Your own judgements, catalogue and search log, as CSV (gzipped or not) or Parquet."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from distilrank import artifacts, records
from distilrank.config import Tables
from distilrank.errors import InputError
from distilrank.sources.reading import File, judgements


def open(data: Tables) -> TablesSource:
    """The source over the files that `data` names; nothing is read yet."""
    return TablesSource(data)


class TablesSource:
    """Three files; see `distilrank.sources.Source`.

    Column names that `data.columns` leaves empty are not looked for. A product without a title is kept: what is
    missing is counted in the data profile.
    """

    def __init__(self, data: Tables) -> None:
        self.data = data
        self.rating_range = (data.rating_min, data.rating_max)
        self.relevant_from = data.relevant_from
        self._judgements = self._file(data.judgements, "query", "product_id", "rating", "raters")
        self._catalogue = self._file(data.catalogue, "product_id", *records.PRODUCT_FIELDS)
        self._log = None
        if data.logs:
            self._log = self._file(data.logs, "query", "product_id", "timestamp", "position", "clicked")

    def _file(self, path: str, *names: str) -> File:
        columns = {name: getattr(self.data.columns, name) for name in names}
        return File(Path(path), {name: column for name, column in columns.items() if column})

    def _files(self) -> list[File]:
        return [file for file in (self._judgements, self._catalogue, self._log) if file]

    def files(self) -> list[Path]:
        return [file.path for file in self._files()]

    def check(self) -> None:
        for file in self._files():
            file.check()

    def digest(self) -> str:
        self.check()
        contents = [artifacts.digest_file(path) for path in self.files()]
        return artifacts.digest_json({"data": self.data.model_dump(mode="json"), "files": contents})

    @cached_property
    def _products(self) -> pa.Table:
        file = self._catalogue
        product = file.key("product_id")
        empty = pa.nulls(len(product), pa.string())
        fields = {name: file.text(name) if name in file.columns else empty for name in records.PRODUCT_FIELDS}
        table = pa.table({"product_id": product, **fields}, schema=records.PRODUCTS)
        if pc.count_distinct(product).as_py() == len(product):
            return table
        # The same row twice says nothing new; two products under one key would.
        distinct = table.group_by(table.column_names, use_threads=False).aggregate([]).select(table.column_names)
        counts = pc.value_counts(distinct["product_id"])
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        if len(twice):
            rows = [row + 1 for row, key in enumerate(product.to_pylist()) if key == twice[0].as_py()]
            raise InputError(
                f"{file.path}: rows {', '.join(map(str, rows[:5]))} describe product {twice[0].as_py()!r} differently, "
                "expected one description"
            )
        return distinct.cast(records.PRODUCTS)

    def products(self) -> pa.Table:
        return self._products

    def judgements(self) -> pa.Table:
        table = judgements(self._judgements, self.rating_range, raters=1)
        known = pc.is_in(table["product_id"], value_set=self._products["product_id"].combine_chunks())
        row = pc.index(known, False).as_py()
        if row >= 0:
            self._judgements.fail("product_id", row, f"a product of {self._catalogue.path}")
        return table

    def impressions(self) -> pa.Table | None:
        file = self._log
        if file is None:
            return None
        rows = file.table().num_rows
        empty = {field.name: pa.nulls(rows, field.type) for field in records.IMPRESSIONS}
        found = {"query": file.query("query"), "product_id": file.key("product_id")}
        if "timestamp" in file.columns:
            found["timestamp"] = file.timestamp("timestamp")
        if "position" in file.columns:
            found["position"] = file.number("position", 1, 2**31 - 1, whole=True).cast(pa.int32())
        if "clicked" in file.columns:
            found["clicked"] = file.boolean("clicked")
        return pa.table({**empty, **found}, schema=records.IMPRESSIONS)

    def times(self) -> pa.ChunkedArray | None:
        if not self.data.logs or not self.data.columns.timestamp:
            return None
        return self._file(self.data.logs, "timestamp").timestamp("timestamp")
