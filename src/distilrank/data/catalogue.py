"""The cleaned catalogue, short fields in memory and descriptions on disk: a laptop holds millions of products."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from selectolax.lexbor import LexborHTMLParser

from distilrank.core import normalize, schemas
from distilrank.core.prefetch import prefetch
from distilrank.core.problems import EXAMPLES, Problems

SHORT_FIELDS = tuple(name for name in schemas.PRODUCT_FIELDS if name != "description")

# A tag, a comment or an entity; a single < or & does not count ("5 < 6", "black & decker").
_MARKUP = r"<[A-Za-z/!]|&(#\d+|#[xX][0-9a-fA-F]+|[A-Za-z]+\d*);"
_IS_MARKUP = re.compile(_MARKUP)
_ODD = r"[^ -~]|  |[<&]|^ | $"  # matches every text that `clean` may change; all others are skipped in one pass
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BREAKS = re.compile(r"(?i)<(?=/?(?:br|p|div|li|ul|ol|tr|td|th|h[1-6]|table|section|hr)\b)")
_MARKS = re.compile("[\u2122\u00ae\u00a9\u2120]")  # NFKC would turn them into letters


def clean(text: str) -> str:
    """Clean a product's text: HTML to text, Unicode NFKC with plain quotes and dashes, white space collapsed.

    Case is kept. Marks such as the trademark sign are removed.
    """
    if _IS_MARKUP.search(text):
        # Block elements separate words, inline ones do not.
        tree = LexborHTMLParser(_BREAKS.sub(" <", text))
        tree.strip_tags(["script", "style"], recursive=True)
        text = tree.text(deep=True)
    if not text.isascii():
        text = normalize.compatible(_MARKS.sub("", text))
    if _CONTROL.search(text):
        text = _CONTROL.sub(" ", text)
    return " ".join(text.split())


def clean_column(column: pa.Array) -> pa.Array:
    """Apply `clean` to each text; the result is a string column in which blank texts are null."""
    odd = pc.fill_null(pc.match_substring_regex(column, _ODD), False)
    if pc.any(odd).as_py():
        cleaned = pa.array([clean(text) for text in column.filter(odd).to_pylist()], pa.string())
        column = pc.replace_with_mask(column, odd, cleaned)
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)


class Spool:
    """Texts on disk in order of arrival; memory grows with their number, not their length."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._ends = [np.zeros(1, np.int64)]
        self._bounds: np.ndarray | None = None

    def __len__(self) -> int:
        return sum(map(len, self._ends)) - 1

    def add(self, column: pa.Array) -> None:
        """Append texts; a null is stored as an empty text."""
        if not len(column):
            return
        filled = pc.fill_null(column, "").cast(pa.large_binary())
        lengths = pc.binary_length(filled).to_numpy().astype(np.int64)
        offset, data = np.frombuffer(filled.buffers()[1], np.int64), filled.buffers()[2]
        first, last = offset[filled.offset], offset[filled.offset + len(filled)]
        if data is not None:
            self._file.write(data[first:last])
        self._ends.append(self._ends[-1][-1] + np.cumsum(lengths))
        self._bounds = None

    def take(self, rows: np.ndarray) -> pa.Array:
        """The texts at `rows`, string; empty ones are null."""
        bounds = self._finish()
        starts, ends = bounds[rows], bounds[rows + 1]
        texts: list[bytes | None] = []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if start == end:
                texts.append(None)
            else:
                self._file.seek(start)
                texts.append(self._file.read(end - start))
        return pa.array(texts, pa.binary()).cast(pa.string())

    def sizes(self) -> np.ndarray:
        """The length of each text in bytes, int64; 0 for null."""
        return np.diff(self._finish())

    def _finish(self) -> np.ndarray:
        if self._bounds is None:
            self._bounds = np.concatenate(self._ends)
            self._ends = [self._bounds]
            self._file.flush()
        return self._bounds


class Catalogue:
    """The products by row index.

    Args:
        batches: as schemas.PRODUCTS.
        scratch: folder for the descriptions; it must outlive the catalogue.
        problems: receives repeated ids that describe different products, and ids that differ only by leading zeros.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch], scratch: Path, problems: Problems) -> None:
        self.descriptions = Spool(scratch / "descriptions")
        short: list[pa.RecordBatch] = []
        schema = pa.schema([schemas.PRODUCTS.field(name) for name in ("product_id", *SHORT_FIELDS)])
        for batch in prefetch(iter(batches)):  # Arrow reads on another core
            columns = [clean_column(batch.column(name)) for name in SHORT_FIELDS]
            self.descriptions.add(clean_column(batch.column("description")))
            short.append(pa.record_batch([batch.column("product_id"), *columns], schema=schema))
        self.rows = sum(batch.num_rows for batch in short)
        self._table = pa.Table.from_batches(short, schema)
        self._rows = np.arange(self.rows)
        """The row of `batches` that each product comes from."""
        self._merge(problems)
        self.keys = self._table["product_id"].combine_chunks()
        if isinstance(self.keys, pa.ChunkedArray):  # more than 2 GiB of keys
            raise MemoryError("catalogue: the product ids exceed 2 GiB")
        if not len(self.keys):
            problems.add("catalogue", "no products, expected some")
        self._find_lost_zeros(problems)

    def __len__(self) -> int:
        return self._table.num_rows

    def column(self, name: str) -> pa.ChunkedArray:
        """A short field or product_id of all products."""
        return self._table[name]

    @property
    def missing_descriptions(self) -> int:
        """Products without a description."""
        return int((self.descriptions.sizes()[self._rows] == 0).sum())

    def take(self, rows: np.ndarray) -> dict[str, pa.Array | pa.ChunkedArray]:
        """product_id and all product fields of the products at `rows`."""
        indices = pa.array(rows)
        columns = {name: self._table[name].take(indices) for name in ("product_id", *SHORT_FIELDS)}
        return {**columns, "description": self.descriptions.take(self._rows[rows])}

    def characters(self, rows: np.ndarray, longest: int) -> np.ndarray:
        """Characters of all fields of the products at `rows`, int64; at most `longest` bytes of each description."""
        indices = pa.array(rows)
        total = np.zeros(len(rows), np.int64)
        for name in SHORT_FIELDS:
            total += pc.fill_null(pc.utf8_length(self._table[name].take(indices)), 0).to_numpy()
        return total + np.minimum(self.descriptions.sizes()[self._rows[rows]], longest)

    def texts(self, rows: np.ndarray) -> list[str]:
        """One string per product at `rows`: its non-empty short fields, separated by blanks."""
        indices = pa.array(rows)
        columns = [self._table[name].take(indices) for name in SHORT_FIELDS]
        # Not "skip": that drops rows without any field.
        joined = pc.binary_join_element_wise(*columns, " ", null_handling="replace", null_replacement="")
        return [" ".join(text.split()) for text in joined.to_pylist()]

    def hint_at_altered_ids(self, unknown: pa.Array) -> str:
        """Return a hint for a message: how many unknown ids match without leading zeros or as whole numbers."""
        bare = pa.array(set(bare_ids(self.keys).to_pylist()), pa.string())
        alike = pc.sum(pc.is_in(bare_ids(unknown), value_set=bare)).as_py() or 0
        if not alike:
            return ""
        return f"; {alike} of {len(unknown)} differ from one by leading zeros or type alone: keep ids as text"

    def _merge(self, problems: Problems) -> None:
        """Merge identical rows; report products that rows describe differently."""
        keys = self._table["product_id"]
        distinct = pc.count_distinct(keys).as_py()
        if distinct == len(keys):
            return
        codes = keys.dictionary_encode().combine_chunks().indices.to_numpy()
        first = np.unique(codes, return_index=True)[1]
        leader = first[codes]
        again = np.flatnonzero(leader != np.arange(len(codes)))
        same = np.ones(len(again), bool)
        repeated, leading = self.take(again), self.take(leader[again])
        for name in schemas.PRODUCT_FIELDS:
            left, right = (pc.fill_null(column[name], "") for column in (repeated, leading))
            same &= np.asarray(pc.equal(left, right))
        rows = again[~same]
        problems.add(
            "catalogue",
            "product ids that describe several products, expected one description each",
            rows=len(rows),
            examples=[f"rows {leader[row] + 1} and {row + 1}: {keys[row].as_py()!r}" for row in rows[:EXAMPLES]],
        )
        self._rows = np.sort(first)
        self._table = self._table.take(pa.array(self._rows))

    def _find_lost_zeros(self, problems: Problems) -> None:
        padded = self.keys.filter(pc.match_substring_regex(self.keys, r"^0+\d+$"))
        bare = pc.utf8_ltrim(padded, "0")
        twins = padded.filter(pc.is_in(bare, value_set=self.keys))
        problems.add(
            "catalogue",
            "product ids that differ from another one by leading zeros alone; they are kept apart",
            rows=len(twins),
            examples=[repr(key) for key in twins[:EXAMPLES].to_pylist()],
            fatal=False,
        )


def bare_ids(ids: pa.Array) -> pa.Array:
    """Product ids without leading zeros and a decimal `.0`, which conversions between text and numbers change."""
    return pc.utf8_ltrim(pc.replace_substring_regex(pc.utf8_trim_whitespace(ids), r"^(\d+)\.0$", r"\1"), "0")
