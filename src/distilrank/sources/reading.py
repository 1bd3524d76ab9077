"""CSV and Parquet files from outside: nothing is lost silently, and errors name file, row and column.

CSV is UTF-8 (RFC 4180, comma, double quotes), gzipped or not, and all of it is read as text first. Rows are counted
from 1 after the header; blank lines are no rows. The format is told from the file's first bytes, not from its name.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from distilrank import normalise, records
from distilrank.errors import InputError

_ROW = re.compile(r"Row #(\d+): ")
_ZONED = r"[T ].*(Z|[+-]\d\d(:?\d\d)?)$"
_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, pa.ArrowException)


class File:
    """One file, of whose columns some are wanted.

    Args:
        path: the file.
        columns: our name of each wanted column -> its name in the file.
        encoding: of CSV text, as Python and Arrow both call it.
    """

    def __init__(self, path: Path, columns: Mapping[str, str], encoding: str = "utf8") -> None:
        self.path, self.columns, self.encoding = path, dict(columns), encoding
        self._table: pa.Table | None = None

    # Opening ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[bytes]:
        """Yield the file's first bytes; what goes wrong in the body becomes an InputError about this file."""
        try:
            with self.path.open("rb") as handle:
                yield handle.read(4)
        except FileNotFoundError:
            raise InputError(f"{self.path}: no such file") from None
        except IsADirectoryError:
            raise InputError(f"{self.path}: is a folder, expected a CSV or Parquet file") from None
        except _UNREADABLE as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            row = _ROW.search(reason)
            where = f"row {int(row[1]) - 1}: " if row else ""  # Arrow counts the header
            raise InputError(f"{self.path}: {where}not readable ({_ROW.sub('', reason)})") from None

    def _text(self, magic: bytes, encoding: str, errors: str = "strict") -> io.TextIOBase:
        opener: Any = gzip.open if magic[:2] == b"\x1f\x8b" else open
        return opener(self.path, "rt", encoding=encoding, errors=errors, newline="")

    def is_utf8(self) -> bool:
        """Whether all of a CSV file is valid UTF-8."""
        with self._reading() as magic, self._text(magic, "utf-8") as handle:
            try:
                for _ in handle:
                    pass
            except UnicodeDecodeError:
                return False
        return True

    def names(self) -> list[str]:
        """The names of all columns that the file has, from its header."""
        with self._reading() as magic:
            if magic == b"PAR1":
                names = pq.read_schema(self.path).names
            else:
                encoding = "utf-8-sig" if self.encoding == "utf8" else self.encoding
                with self._text(magic, encoding, errors="replace") as handle:
                    names = next(csv.reader(handle), [])
        return names

    def check(self) -> None:
        """Raise InputError if the file or a wanted column is missing or there twice; reads the header only."""
        names = self.names()
        if not names:
            raise InputError(f"{self.path}: empty, expected a header with {', '.join(self.columns.values())}")
        for name in self.columns.values():
            if name not in names:
                raise InputError(f"{self.path}: missing column {name!r}; it has {', '.join(names)}")
            if names.count(name) > 1:
                raise InputError(f"{self.path}: column {name!r} is there {names.count(name)} times, expected once")

    def table(self) -> pa.Table:
        """The wanted columns under our names: text from CSV, the file's own types from Parquet."""
        if self._table is None:
            self.check()
            with self._reading() as magic:
                wanted = list(dict.fromkeys(self.columns.values()))
                if magic == b"PAR1":
                    table = pq.read_table(self.path, columns=wanted)
                else:
                    rows = self._count_rows(magic)
                    table = self._read_csv(magic, wanted)
                    if table.num_rows != rows:
                        raise InputError(f"{self.path}: quoting is unclear ({table.num_rows} of {rows} rows were read)")
            self._table = pa.table({ours: table.column(theirs) for ours, theirs in self.columns.items()})
            if not self._table.num_rows:
                raise InputError(f"{self.path}: no rows after the header")
        return self._table

    def _count_rows(self, magic: bytes) -> int:
        """Count the rows, strictly: a stray quote makes Arrow swallow line after line without a word."""
        rows = -1  # the header
        with self._text(magic, "latin-1") as handle:  # decodes every byte, and only the structure matters here
            try:
                for row in csv.reader(handle, strict=True):
                    rows += bool(row)
            except csv.Error as error:
                raise InputError(
                    f"{self.path}: row {rows + 1}: {error}; quote a value that holds a quote, and double the quote"
                ) from None
        return rows

    def _read_csv(self, magic: bytes, wanted: list[str]) -> pa.Table:
        compression = "gzip" if magic[:2] == b"\x1f\x8b" else None
        with pa.input_stream(str(self.path), compression=compression) as stream:
            return pyarrow.csv.read_csv(
                stream,
                # One thread, because only then do Arrow's errors name the row; blocks longer than any row.
                read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=1 << 24, encoding=self.encoding),
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
                ),
            )

    # Columns ------------------------------------------------------------------------------------------------------

    def fail(self, name: str, row: int, expected: str) -> NoReturn:
        """Raise the InputError about our column `name` in 0-based `row`."""
        value = self.table().column(name)[row].as_py()
        seen = "empty" if value is None or not str(value).strip() else repr(value)
        raise InputError(f"{self.path}: row {row + 1}: {self.columns[name]} is {seen}, expected {expected}")

    def require(self, name: str, good: pa.ChunkedArray, expected: str) -> None:
        """Raise the InputError about the first row of our column `name` that is not `good`."""
        row = pc.index(pc.fill_null(good, False), False).as_py()
        if row >= 0:
            self.fail(name, row, expected)

    def _convert(self, name: str, column: pa.ChunkedArray, convert: Callable, expected: str) -> pa.ChunkedArray:
        try:
            return convert(column)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            low, high = 0, len(column)  # rows before `low` convert; those before `high` do not
            while high - low > 1:
                middle = (low + high) // 2
                try:
                    convert(column.slice(low, middle - low))
                    low = middle
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                    high = middle
            self.fail(name, low, expected)

    def text(self, name: str) -> pa.ChunkedArray:
        """A column as text, as it stands; blank values are null."""
        column = self._convert(name, self.table().column(name), lambda part: part.cast(pa.string()), "text")
        return pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), None, column)

    def key(self, name: str) -> pa.ChunkedArray:
        """A column of which each row must have a value."""
        column = self.text(name)
        self.require(name, column.is_valid(), "a value in each row")
        return column

    def query(self, name: str) -> pa.ChunkedArray:
        """A column of query texts, none blank."""
        column = self.key(name)
        distinct = pc.unique(column)
        blank = [not normalise.normal_form(text) for text in distinct.to_pylist()]
        if any(blank):
            self.require(name, pc.invert(pc.is_in(column, value_set=distinct.filter(pa.array(blank)))), "a query")
        return column

    def number(self, name: str, lowest: float, highest: float = math.inf, *, whole: bool = False) -> pa.ChunkedArray:
        """A column of numbers, float64; blank values are null.

        Raises:
            InputError: naming the first value that is no number, outside the range, or not `whole`.
        """
        kind = "a whole number" if whole else "a number"
        expected = f"{kind} from {lowest:g}" + (f" to {highest:g}" if highest < math.inf else "")
        column = self.table().column(name)
        if not pa.types.is_floating(column.type) and not pa.types.is_integer(column.type):
            column = pc.utf8_trim_whitespace(self.text(name))
        column = self._convert(name, column, lambda part: part.cast(pa.float64()), expected)
        good = pc.and_(pc.greater_equal(column, lowest), pc.less_equal(column, highest))  # false for NaN
        good = pc.and_(good, pc.is_finite(column))
        if whole:
            good = pc.and_(good, pc.equal(pc.floor(column), column))
        self.require(name, pc.fill_null(good, True), expected)
        return column

    def boolean(self, name: str) -> pa.ChunkedArray:
        """A column of true/false or 1/0; blank values are null."""
        column = self.table().column(name)
        if pa.types.is_boolean(column.type):
            return column
        text = pc.utf8_lower(pc.utf8_trim_whitespace(self.text(name)))
        true, false = pa.array(["true", "1", "1.0"]), pa.array(["false", "0", "0.0"])
        is_true = pc.is_in(text, value_set=true)
        known = pc.or_(is_true, pc.is_in(text, value_set=false))
        self.require(name, pc.or_(text.is_null(), known), "true, false, 1 or 0")
        return pc.if_else(text.is_null(), None, is_true)

    def timestamp(self, name: str) -> pa.ChunkedArray:
        """A column of times in UTC, microseconds; a time without a zone is taken as UTC.

        Raises:
            InputError: naming the first value that is blank or no ISO 8601 time.
        """
        expected = "an ISO 8601 time such as 2026-03-31T12:00:00Z"
        utc = pa.timestamp("us", tz="UTC")
        column = self.table().column(name)
        if pa.types.is_timestamp(column.type):
            zoned = column if column.type.tz else pc.assume_timezone(column, "UTC")
            column = zoned.cast(utc, safe=False)  # finer than microseconds: cut off
        else:
            text = pc.replace_substring_regex(pc.utf8_trim_whitespace(self.text(name)), r"(\.\d{6})\d+", r"\1")
            has_zone = pc.match_substring_regex(text, _ZONED)
            zoned = self._convert(name, pc.if_else(has_zone, text, None), lambda part: part.cast(utc), expected)
            plain = pc.if_else(has_zone, None, text)
            plain = self._convert(name, plain, lambda part: part.cast(pa.timestamp("us")), expected)
            column = pc.coalesce(zoned, pc.assume_timezone(plain, "UTC"))
        self.require(name, column.is_valid(), expected)
        return column


def judgements(file: File, rating_range: tuple[float, float], raters: int) -> pa.Table:
    """The judged pairs of `file` as records.JUDGEMENTS, in file order.

    Args:
        file: with the columns query, product_id, rating and perhaps raters.
        rating_range: lowest and highest rating.
        raters: how many raters a rating is the mean of where the file does not say.

    Raises:
        InputError: naming file and row of a blank query, a rating outside the scale, or two ratings of one pair.
    """
    query, product, rating = file.query("query"), file.key("product_id"), file.number("rating", *rating_range)
    file.require("rating", rating.is_valid(), f"a number from {rating_range[0]:g} to {rating_range[1]:g}")
    counts = pa.chunked_array([pa.array(np.full(len(query), raters, np.int32))])
    if "raters" in file.columns:
        counts = file.number("raters", 1, whole=True)
        file.require("raters", counts.is_valid(), "a whole number from 1")
    table = pa.table({"query": query, "product_id": product, "rating": rating, "raters": counts.cast(pa.int32())})
    groups = table.group_by(["query", "product_id"]).aggregate([("rating", "min"), ("rating", "max")])
    split = groups.filter(pc.not_equal(groups["rating_min"], groups["rating_max"]))
    if split.num_rows:
        _fail_conflict(file, table, split)
    return table.cast(records.JUDGEMENTS)


def _fail_conflict(file: File, table: pa.Table, split: pa.Table) -> NoReturn:
    """Name the first rows of `table` that rate a pair of `split` differently."""
    rows = table.append_column("row", pa.array(np.arange(1, table.num_rows + 1)))
    rows = rows.join(split.select(["query", "product_id"]), ["query", "product_id"], join_type="inner").sort_by("row")
    first = rows.slice(0, 1).to_pylist()[0]
    same = pc.and_(pc.equal(rows["query"], first["query"]), pc.equal(rows["product_id"], first["product_id"]))
    other = rows.filter(pc.and_(same, pc.not_equal(rows["rating"], first["rating"]))).slice(0, 1).to_pylist()[0]
    raise InputError(
        f"{file.path}: rows {first['row']} and {other['row']} rate product {first['product_id']!r} for query "
        f"{first['query']!r} {first['rating']:g} and {other['rating']:g}, expected one rating"
    )
