"""Shopping Queries Dataset (ESCI): real Amazon searches in three locales with judged products; no log.

A label is E (exact), S (substitute), C (complement) or I (irrelevant). https://github.com/amazon-science/esci-data
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from distilrank.config import Esci, EsciLabels
from distilrank.core import artifacts
from distilrank.core.problems import EXAMPLES, Problems
from distilrank.data.sources import judged_pairs, reading
from distilrank.data.sources.reading import File
from distilrank.data.sources.rows import Rows, join_lines

LABELS = tuple(EsciLabels.model_fields)
LOCALES = ("us", "es", "jp")

_SUFFIXES = (".parquet",)
_PRODUCT = {"product_id": "product_id", "locale": "product_locale"}
_VERSIONS = {"reduced": "small_version", "large": "large_version"}
_TEXTS = {
    "title": "product_title",
    "description": "product_description",
    "bullets": "product_bullet_point",
    "brand": "product_brand",
    "color": "product_color",
}


def gain_mappings() -> dict[str, dict[str, float]]:
    """The two mappings from labels to gains that published results use."""
    return {
        "paper": {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0},
        "official script": {"E": 1.0, "S": 0.01, "C": 0.1, "I": 0.0},
    }


def open(data: Esci) -> EsciSource:
    """Return the source of the files that `data` names, without reading them."""
    return EsciSource(data)


class EsciSource:
    """Two Parquet files; see `sources.base.Source`.

    A rating is the label's soft target. A query is identified by its text; the data set's query_id and split are not
    used. Locales share product ids, so with several locales a product's key is LOCALE:ID.
    """

    rating_range = (0.0, 1.0)
    rating_conflicts = "refuse"

    def __init__(self, data: Esci) -> None:
        self.data = data
        self.relevant_from = data.relevant_from

    def _examples(self, problems: Problems) -> list[File]:
        columns = {"query": "query", "label": "esci_label", "version": _VERSIONS[self.data.version], **_PRODUCT}
        return reading.files(self.data.examples, _SUFFIXES, columns, problems)

    def _products(self, problems: Problems) -> list[File]:
        return reading.files(self.data.products, _SUFFIXES, {**_PRODUCT, **_TEXTS}, problems)

    def files(self) -> list[str]:
        return [file.name for file in [*self._examples(Problems()), *self._products(Problems())]]

    def check(self, problems: Problems) -> None:
        reading.check_headers([*self._examples(problems), *self._products(problems)], problems)

    def digest(self) -> str:
        files = [*self._examples(Problems()), *self._products(Problems())]
        contents = [file.stored.digest() for file in files]
        return artifacts.digest_json({"data": self.data.model_dump(mode="json"), "files": contents})

    def products(self, problems: Problems) -> Iterator[pa.RecordBatch]:
        for file in self._products(problems):
            for batch in file.batches(problems):
                rows = self._of_locale(batch)
                texts = {name: rows.text(name) for name in _TEXTS}
                # Bullets first: they hold the facts, most products have them, and models read the beginning of a text.
                texts["description"] = join_lines(texts.pop("bullets"), texts.pop("description"))
                yield from reading.product_batches(rows.keep(product_id=self._key(rows), **texts))

    def judgements(self, problems: Problems) -> pa.Table:
        files = self._examples(problems)
        labels = pa.array(LABELS)
        targets, gains = (
            pa.array([getattr(values, label) for label in LABELS], pa.float64())
            for values in (self.data.targets, self.data.gains)
        )
        parts, read = [], 0
        for number, file in enumerate(files):
            for batch in file.batches(problems):
                read += len(batch)
                rows = self._of_locale(batch)
                chosen = pc.equal(rows.number("version", 0, 1, whole=True, required=True), 1)
                rows = rows.where(pc.fill_null(chosen, False))
                label = pc.index_in(rows.text("label"), value_set=labels)
                rows.require("label", label.is_valid(), "E, S, C or I")
                columns = {
                    "query": rows.query("query"),
                    "product_id": self._key(rows),
                    "rating": targets.take(label),
                    "raters": pa.repeat(pa.scalar(1, pa.int32()), len(rows)),
                    "gain": gains.take(label),
                    "locale": rows.text("locale"),
                }
                parts.append(rows.keep(**columns, **judged_pairs.origin(rows, number)))
        reading.expect_rows(self.data.examples, read, self.data.expected_rows, problems)
        if not sum(map(len, parts)):
            if read:
                what = f"no usable row of locale {self.data.locale} is in the {self.data.version} version"
                problems.add(self.data.examples, what)
            return judged_pairs.one_table([], files, self.data.examples, problems)
        table = self._of_known_products(pa.concat_tables(parts), problems)
        return judged_pairs.one_table([table], files, self.data.examples, problems)

    def log(self) -> None:
        return None

    def _of_locale(self, rows: Rows) -> Rows:
        locale = rows.key("locale")
        rows.require("locale", pc.is_in(locale, value_set=pa.array(LOCALES)), f"one of {', '.join(LOCALES)}")
        return rows if self.data.locale == "all" else rows.where(pc.equal(locale, self.data.locale))

    def _key(self, rows: Rows) -> pa.Array:
        product = rows.key("product_id")
        return product if self.data.locale != "all" else pc.binary_join_element_wise(rows.text("locale"), product, ":")

    def _of_known_products(self, examples: pa.Table, problems: Problems) -> pa.Table:
        """Keep the examples of products in the products file; report the others as a problem."""
        keys = []
        for file in self._products(problems):
            for batch in File(file.stored, _PRODUCT).batches(problems, ranges=True):
                rows = self._of_locale(batch)
                keys += rows.keep(product_id=self._key(rows))["product_id"].chunks
        is_known = pc.is_in(examples["product_id"], value_set=pa.chunked_array(keys, pa.string()))
        if pc.all(is_known).as_py():
            return examples
        unknown = examples.filter(pc.invert(is_known))
        problems.add(
            self.data.examples,
            f"expected a product of {self.data.products} of that locale",
            rows=len(unknown),
            examples=[
                f"row {row['row']}: product_id is {row['product_id']!r}"
                for row in unknown.slice(0, EXAMPLES).to_pylist()
            ],
        )
        return examples.filter(is_known)
