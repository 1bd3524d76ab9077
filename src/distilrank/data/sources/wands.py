"""WANDS, Wayfair's annotated searches: 480 queries, the products of a furniture shop and judged pairs; no log.

A label is Exact, Partial or Irrelevant. The files are tab separated, with quotes as in CSV.
https://github.com/wayfair/WANDS
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from distilrank.config import Wands
from distilrank.core import artifacts
from distilrank.core.problems import Problems
from distilrank.data.sources import judged_pairs, reading
from distilrank.data.sources.reading import File
from distilrank.data.sources.rows import join_lines

LABELS = ("Exact", "Partial", "Irrelevant")
COLOR = "color"
"""The feature with the color of the whole product; `basecolor` and the like are colors of parts."""

_SUFFIXES = (".csv", ".tsv")
_PRODUCTS = {
    "product_id": "product_id",
    "title": "product_name",
    "product_type": "product_class",
    "description": "product_description",
    "features": "product_features",
}
_QUERIES = {"query_id": "query_id", "query": "query"}
_LABELS = {"query_id": "query_id", "product_id": "product_id", "label": "label"}


def open(data: Wands) -> WandsSource:
    """Return the source of the files that `data` names, without reading them."""
    return WandsSource(data)


class WandsSource:
    """Three files; see `sources.base.Source`. A query is identified by its text; query_id only joins the files."""

    rating_range = (0.0, 1.0)
    rating_conflicts = "refuse"
    relevant_from = 1.0

    def __init__(self, data: Wands) -> None:
        self.data = data

    def _files(self, reference: str, columns: dict[str, str], problems: Problems) -> list[File]:
        return reading.files(reference, _SUFFIXES, columns, problems, delimiter="\t")

    def _all(self, problems: Problems) -> list[File]:
        references = ((self.data.products, _PRODUCTS), (self.data.queries, _QUERIES), (self.data.labels, _LABELS))
        return [file for reference, columns in references for file in self._files(reference, columns, problems)]

    def files(self) -> list[str]:
        return [file.name for file in self._all(Problems())]

    def check(self, problems: Problems) -> None:
        reading.check_headers(self._all(problems), problems)

    def digest(self) -> str:
        contents = [file.stored.digest() for file in self._all(Problems())]
        return artifacts.digest_json({"data": self.data.model_dump(mode="json"), "files": contents})

    def products(self, problems: Problems) -> Iterator[pa.RecordBatch]:
        for file in self._files(self.data.products, _PRODUCTS, problems):
            for rows in file.batches(problems):
                features = [_features(text) for text in rows.text("features").to_pylist()]
                lines = [
                    "; ".join(f"{name}: {', '.join(values)}" for name, values in each.items()) for each in features
                ]
                feature_lines = pa.array([line or None for line in lines], pa.string())
                colors = pa.array([", ".join(each.get(COLOR, ())) or None for each in features], pa.string())
                table = rows.keep(
                    product_id=rows.key("product_id"),
                    title=rows.text("title"),
                    product_type=pc.replace_substring(rows.text("product_type"), "|", ", "),
                    color=colors,
                    description=join_lines(rows.text("description"), feature_lines),
                )
                yield from reading.product_batches(table)

    def judgements(self, problems: Problems) -> pa.Table:
        ids, texts = self._queries(problems)
        sold = self._products(problems)
        ratings = pa.array([1.0, self.data.partial, 0.0])
        files = self._files(self.data.labels, _LABELS, problems)
        parts, read = [], 0
        for number, file in enumerate(files):
            for rows in file.batches(problems):
                read += len(rows)
                query = pc.index_in(rows.key("query_id"), value_set=ids)
                rows.require("query_id", query.is_valid(), f"a query of {self.data.queries}")
                product = rows.key("product_id")
                rows.require("product_id", pc.is_in(product, value_set=sold), f"a product of {self.data.products}")
                label = pc.index_in(rows.text("label"), value_set=pa.array(LABELS))
                rows.require("label", label.is_valid(), "Exact, Partial or Irrelevant")
                columns = {
                    "query": texts.take(query),
                    "product_id": product,
                    "rating": ratings.take(label),
                    "raters": pa.repeat(pa.scalar(1, pa.int32()), len(rows)),
                    "gain": pa.nulls(len(rows), pa.float64()),
                    "locale": pa.nulls(len(rows), pa.string()),
                }
                parts.append(rows.keep(**columns, **judged_pairs.origin(rows, number)))
        reading.expect_rows(self.data.labels, read, self.data.expected_rows, problems)
        # The file cannot be corrected by the user.
        return judged_pairs.one_table(parts, files, self.data.labels, problems, fatal=False)

    def log(self) -> None:
        return None

    def _queries(self, problems: Problems) -> tuple[pa.Array, pa.Array]:
        """The ids of all queries, and their texts."""
        parts = [
            rows.keep(query_id=rows.key("query_id"), query=rows.query("query"))
            for file in self._files(self.data.queries, _QUERIES, problems)
            for rows in file.batches(problems)
        ]
        schema = pa.schema([("query_id", pa.string()), ("query", pa.string())])
        table = pa.concat_tables([schema.empty_table(), *parts]).combine_chunks()
        counts = pc.value_counts(table["query_id"])
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        problems.add(
            self.data.queries,
            "expected one query per query_id",
            rows=len(twice),
            examples=[f"query_id {key!r} occurs twice" for key in twice.to_pylist()],
        )
        return table["query_id"].combine_chunks(), table["query"].combine_chunks()

    def _products(self, problems: Problems) -> pa.Array:
        columns = {"product_id": "product_id"}
        keys = [
            rows.keep(product_id=rows.key("product_id"))["product_id"].combine_chunks()
            for file in self._files(self.data.products, columns, problems)
            for rows in file.batches(problems)
        ]
        return pa.concat_arrays([pa.array([], pa.string()), *keys])


def _features(text: str | None) -> dict[str, list[str]]:
    """The distinct values of each feature of `name : value|name:value|...`; incomplete entries are left out."""
    features: dict[str, list[str]] = {}
    for feature in (text or "").split("|"):
        name, _, value = (part.strip() for part in feature.partition(":"))
        if name and value and value not in features.setdefault(name, []):
            features[name].append(value)
    return features
