"""CSV and Parquet files from outside: nothing is lost silently, and problems name file, row and column.

CSV is UTF-8 (RFC 4180, comma or another delimiter, double quotes), gzipped or not, and all of it is read as text
first. Rows are counted from 1 after the header; blank lines are no rows. The format is told from the file's first
bytes, not from its name. Files are read in batches, so memory does not follow their size.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import math
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from distilrank.config import Csv
from distilrank.core import normalize, schemas
from distilrank.core.errors import InputError
from distilrank.core.problems import EXAMPLES, Problems
from distilrank.data.sources import storage
from distilrank.data.sources.storage import LocalFile, StoredFile

BATCH_ROWS = 1 << 14
"""Rows of a batch of Parquet."""
PRIVATE = ("client", "rater", "row_id")
"""Our names of columns that lead to people: their values go into no message."""

_BLOCK_BYTES = 1 << 24  # of CSV; longer than any row

_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, pa.ArrowException)
csv.field_size_limit(_BLOCK_BYTES)  # Python's own, 128 KiB, is shorter than some descriptions

_GZIP, _UTF_16 = b"\x1f\x8b", "UTF-16 text"
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\xd0\xcf\x11\xe0": "a spreadsheet of old",
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
    b"PAR1": "Parquet",
    b"PARE": "encrypted Parquet",
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"ARROW1": "an Arrow file",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x1f\x8b": "compressed twice",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF",
}
"""What files that are neither CSV nor Parquet begin with, unpacked."""
_HEAD_BYTES = 1 << 12
_NULL_WORDS = ("nan", "NaN", "None", "none", "null", "Null", "N/A", "n/a", "NA", "<NA>")
_EMPTY = "empty"
_LISTED = 500  # characters of names of columns in a message
_DELIMITERS = ";\t|,"

_ZONED = r"[T ].*(Z|[+-]\d\d(:?\d\d)?)$"
_FROM, _TO = 946_684_800, 4_102_444_800  # 2000-01-01 and 2100-01-01 in seconds since 1970
_TIME = "a time from 2000 to 2100: ISO 8601 such as 2026-03-31T12:00:00Z, or whole seconds or milliseconds since 1970"
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_RANGE_BYTES = 1 << 20  # of a column of Parquet, read at once
_AT_ONCE = 8  # headers that are looked at side by side; far away, each takes its time
_EXACT = 2**53  # whole numbers below it survive as 64-bit floats


class File:
    """One file, of whose columns some are wanted.

    Args:
        file: found by `storage.files`, or the path of a local one.
        columns: our name of each wanted column -> its name in the file.
        csv: how CSV is written, as the configuration says; None: as the two below say, with no marks of missing values
            and no repeated header.
        encoding: of CSV text.
        delimiter: what separates the values of CSV.
    """

    def __init__(
        self,
        file: StoredFile | Path,
        columns: Mapping[str, str],
        *,
        csv: Csv | None = None,
        encoding: str = "utf-8",
        delimiter: str = ",",
    ) -> None:
        self.stored: StoredFile = LocalFile(file) if isinstance(file, Path) else file
        self.name = self.stored.name
        self.columns = dict(columns)
        self.csv = csv or Csv(encoding=encoding, delimiter=delimiter, null_values=())
        self.configurable = csv is not None
        self.is_csv = False
        """Whether the rows come from CSV; known once some were read."""
        self._schema = pa.schema([])  # of Parquet, once its header was read
        self._whole: list[Rows] | None = None

    # Opening ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """What goes wrong in the body becomes an InputError about this file."""
        try:
            yield
        except FileNotFoundError:
            raise InputError(f"{self.name}: no such file{storage.hint(self.name)}") from None
        except IsADirectoryError:
            raise InputError(f"{self.name}: is a folder, expected a CSV or Parquet file") from None
        except _UNREADABLE as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{self.name}: not readable ({reason})") from None

    def _lines(self, handle: BinaryIO, magic: bytes, encoding: str, errors: str = "strict") -> io.TextIOWrapper:
        data: Any = gzip.GzipFile(fileobj=handle) if magic[:2] == _GZIP else handle
        return io.TextIOWrapper(data, encoding=encoding, errors=errors, newline="")

    def is_utf8(self) -> bool:
        """Whether all of a CSV file is valid UTF-8."""
        with self._readable(), self.stored.open_local() as path, path.open("rb") as handle:
            try:
                with self._lines(handle, _magic(handle), "utf-8") as lines:
                    for _ in lines:
                        pass
            except UnicodeDecodeError:
                return False
        return True

    def names(self) -> list[str]:
        """The names of all columns that the file has, from its header.

        Raises:
            InputError: the file is missing, or neither CSV nor Parquet.
        """
        with self._readable(), self.stored.open_ranges() as handle:
            magic = _magic(handle)
            if magic == b"PAR1":
                self._schema = pq.read_schema(handle)
                return self._schema.names
            if self.csv.encoding == "utf-8":
                self._refuse_binary(handle, magic)
            encoding = "utf-8-sig" if self.csv.encoding == "utf-8" else self.csv.encoding
            with self._lines(handle, magic, encoding, errors="replace") as lines:
                return next(csv.reader(lines, delimiter=self.csv.delimiter), [])

    def _refuse_binary(self, handle: BinaryIO, magic: bytes) -> None:
        """Raise an InputError if a file is neither Parquet nor text."""
        data: Any = gzip.GzipFile(fileobj=handle) if magic[:2] == _GZIP else handle
        start = data.read(_HEAD_BYTES)
        handle.seek(0)
        kind = next((kind for mark, kind in _OTHER_FORMATS.items() if start.startswith(mark)), "")
        if not kind and b"\0" in start.partition(b"\n")[0]:  # values may hold one, names of columns not
            kind = "a binary file"
        if not kind:
            return
        hint = ""
        if kind == _UTF_16 and self.configurable:
            hint = "; set data.csv.encoding to utf-16"
        packed = " in gzip" if magic[:2] == _GZIP else ""
        raise InputError(f"{self.name}: is {kind}{packed}, expected CSV in UTF-8 or Parquet{hint}")

    def check(self, problems: Problems | None = None) -> bool:
        """Add to the problems if the file or a wanted column is missing or there twice; reads the header only.

        Returns:
            Whether all is well.

        Raises:
            InputError: at the first problem, unless `problems` collects them.
        """
        problems = Problems() if problems is None else problems
        try:
            names = self.names()
        except InputError as error:
            self.complain(problems, error)
            return False
        if not names:
            problems.add(self.name, f"empty, expected a header with {', '.join(self.columns.values())}")
            return False
        wanted = set(self.columns.values())
        for name in sorted(wanted - set(names)):
            problems.add(self.name, f"missing column {name!r}; it has {_listed(names)}{self._hint(names)}")
        twice = [name for name in sorted(wanted) if names.count(name) > 1]
        for name in twice:
            problems.add(self.name, f"column {name!r} is there {names.count(name)} times, expected once")
        return not twice and wanted <= set(names)

    def check_types(self, problems: Problems) -> None:
        """Add to the problems the wanted columns of Parquet whose values are lists or records; after `check`."""
        for field in self._schema:
            if field.name in self.columns.values() and pa.types.is_nested(field.type):
                problems.add(self.name, f"column {field.name!r} is {field.type}, expected text, numbers or times")

    def _hint(self, names: Sequence[str]) -> str:
        """How else CSV without the wanted columns may be written, by its header."""
        wanted = set(self.columns.values())
        for other in _DELIMITERS:
            if other != self.csv.delimiter and wanted <= set(self.csv.delimiter.join(names).split(other)):
                hint = f"; separated by {other!r} it has them all, expected {self.csv.delimiter!r}"
                return hint + f": set data.csv.delimiter to {other!r}" * self.configurable
        if any("\ufffd" in name for name in names):
            return f"; it is not in {self.csv.encoding}" + ": set data.csv.encoding" * self.configurable
        return ""

    def complain(self, problems: Problems, error: InputError) -> None:
        """Add an InputError about this file to the problems."""
        problems.add(self.name, str(error).removeprefix(f"{self.name}: "))

    # Reading ------------------------------------------------------------------------------------------------------

    def batches(self, problems: Problems, *, lenient: Collection[str] = (), ranges: bool = False) -> Iterator[Rows]:
        """The rows in order, batch by batch; after a problem with the file as a whole there are no more.

        Args:
            problems: gets what is wrong, and raises an InputError at the first that is fatal unless it collects.
            lenient: our names of columns whose bad values are not fatal; their rows are left out and counted.
            ranges: fetch the wanted columns alone of Parquet that lies far away, rather than the whole file; what
                comes is then not checked against the store's checksum.
        """
        if not self.check(problems):
            return
        try:
            with self._readable():
                if ranges:
                    with self.stored.open_ranges() as handle:
                        if _magic(handle) == b"PAR1":
                            yield from self._parquet(handle, problems, lenient)
                            return
                with self.stored.open_local() as path:
                    with path.open("rb") as handle:
                        magic = _magic(handle)
                    if magic == b"PAR1":
                        yield from self._parquet(path, problems, lenient)
                    else:
                        yield from self._csv(path, problems, lenient)
        except InputError as error:
            if not problems.collect:
                raise
            self.complain(problems, error)

    def _parquet(self, file: BinaryIO | Path, problems: Problems, lenient: Collection[str]) -> Iterator[Rows]:
        start = 1
        wanted = list(dict.fromkeys(self.columns.values()))
        # Otherwise whole columns of a row group would be held, which may have a million rows.
        with pq.ParquetFile(
            file, pre_buffer=False, buffer_size=_RANGE_BYTES, coerce_int96_timestamp_unit="us"
        ) as parquet:  # nanoseconds would overflow into another time
            for batch in parquet.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
                yield self._rows(batch, np.arange(start, start + batch.num_rows), problems, lenient)
                start += batch.num_rows

    def _csv(self, path: Path, problems: Problems, lenient: Collection[str]) -> Iterator[Rows]:
        rows = self._count_rows(path, problems)
        if rows is None:
            return
        with path.open("rb") as handle:
            gzipped = _magic(handle)[:2] == _GZIP
        self.is_csv = True
        odd: list[tuple[int, int, int]] = []  # row, values that it has, values that it should have
        noted = 0

        def skip(row: pyarrow.csv.InvalidRow) -> str:
            odd.append((row.number - 1, row.actual_columns, row.expected_columns))  # Arrow counts the header
            return "skip"

        def note() -> None:
            nonlocal noted
            new, noted = odd[noted:], len(odd)
            for number, actual, expected in new:
                example = f"row {number}: not readable, its number of values is {actual}"
                problems.add(self.name, f"expected {expected}", examples=[example])

        wanted = list(dict.fromkeys(self.columns.values()))
        read = 0
        with pa.input_stream(str(path), compression="gzip" if gzipped else None) as stream:
            try:
                reader = pyarrow.csv.open_csv(
                    stream,
                    # One thread, because only then does Arrow number the rows that it skips.
                    read_options=pyarrow.csv.ReadOptions(
                        use_threads=False, block_size=_BLOCK_BYTES, encoding=self.csv.encoding.replace("-8", "8")
                    ),
                    parse_options=pyarrow.csv.ParseOptions(
                        delimiter=self.csv.delimiter, newlines_in_values=True, invalid_row_handler=skip
                    ),
                    convert_options=pyarrow.csv.ConvertOptions(
                        include_columns=wanted,
                        column_types=dict.fromkeys(wanted, pa.binary()),  # text once it is known to be UTF-8
                        strings_can_be_null=False,
                    ),
                )
            except pa.ArrowInvalid as error:
                if "Empty CSV file" in str(error):  # a header without a line feed
                    return
                raise
            for batch in reader:
                note()
                skipped = np.array([number for number, _, _ in odd], np.int64)
                # The n-th row that was read is the first number with n numbers before it that were not skipped.
                place = np.arange(read, read + batch.num_rows)
                numbers = place + 1 + np.searchsorted(skipped - np.arange(len(skipped)) - 1, place, side="right")
                read += batch.num_rows
                if self.configurable:
                    batch, numbers = self._without_headers(batch, numbers, problems)
                yield self._rows(batch, numbers, problems, lenient)
        note()
        if rows >= 0 and read + len(odd) != rows:
            problems.add(self.name, f"quoting is unclear ({read + len(odd)} of {rows} rows were read)")

    def _without_headers(
        self, batch: pa.RecordBatch, numbers: np.ndarray, problems: Problems
    ) -> tuple[pa.RecordBatch, np.ndarray]:
        """The rows that are not the header again, which stands inside a file that was put together from several."""
        header = np.ones(len(numbers), bool)
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            written = pa.array([name.encode(), codecs.BOM_UTF8 + name.encode()], column.type)
            header &= pc.is_in(column, value_set=written).to_numpy(zero_copy_only=False)
        if not header.any():
            return batch, numbers
        examples = [f"row {number}" for number in numbers[header]]
        what = "left out, the header again"
        problems.add(self.name, what, rows=len(examples), examples=examples, fatal=False)
        return batch.filter(pa.array(~header)), numbers[~header]

    def _count_rows(self, path: Path, problems: Problems) -> int | None:
        """Count the rows, strictly, since a stray quote makes Arrow swallow line after line without a word.

        Returns:
            -1 where no quote is in the file, None where they are wrong.
        """
        # Only the structure matters, and latin-1 decodes every byte.
        encoding = "latin-1" if self.csv.encoding == "utf-8" else self.csv.encoding
        with path.open("rb") as handle, self._lines(handle, _magic(handle), encoding) as lines:
            if not any('"' in part for part in iter(lambda: lines.read(1 << 20), "")):
                return -1
        rows = -1  # the header
        with path.open("rb") as handle, self._lines(handle, _magic(handle), encoding) as lines:
            try:
                for row in csv.reader(lines, delimiter=self.csv.delimiter, strict=True):
                    rows += bool(row)
            except csv.Error as error:
                what = "quote a value that holds a quote, and double the quote"
                reason = str(error).replace(chr(9), "a tab")
                if reason.startswith("field larger than"):
                    what = "expected shorter values, or the end of a quoted one"
                    reason = f"a value of more than {_BLOCK_BYTES >> 20} MiB"
                problems.add(self.name, what, examples=[f"row {rows + 1}: {reason}"])
                return None
        return rows

    def _rows(self, batch: pa.RecordBatch, numbers: np.ndarray, problems: Problems, lenient: Collection[str]) -> Rows:
        rows = Rows(self, numbers, problems, lenient)
        for ours, theirs in self.columns.items():
            rows.set_column(ours, batch.column(theirs))
        return rows

    # The whole file -----------------------------------------------------------------------------------------------

    def _all(self) -> list[Rows]:
        if self._whole is None:
            self._whole = [rows for rows in self.batches(Problems()) if len(rows)]
            if not self._whole:
                raise InputError(f"{self.name}: no rows after the header")
        return self._whole

    def table(self) -> pa.Table:
        """All rows, the wanted columns under our names: text from CSV, the file's own types from Parquet.

        Raises:
            InputError: as for `batches`, or there are no rows.
        """
        return pa.concat_tables([pa.table(rows.columns) for rows in self._all()], promote_options="permissive")

    def text(self, name: str) -> pa.ChunkedArray:
        """As `Rows.text`, of all rows."""
        return pa.chunked_array([rows.text(name) for rows in self._all()], pa.string())

    def key(self, name: str) -> pa.ChunkedArray:
        """As `Rows.key`, of all rows."""
        return pa.chunked_array([rows.key(name) for rows in self._all()], pa.string())

    def query(self, name: str) -> pa.ChunkedArray:
        """As `Rows.query`, of all rows."""
        return pa.chunked_array([rows.query(name) for rows in self._all()], pa.string())


def _magic(handle: BinaryIO) -> bytes:
    magic = handle.read(4)
    handle.seek(0)
    return magic


class Rows:
    """Some rows of a file, and which of them are good so far.

    The methods named after a kind of value check a column and return it, a value a row, null where it is blank or bad.
    Bad ones are added to the problems, and `keep` leaves their rows out.
    """

    def __init__(self, file: File, numbers: np.ndarray, problems: Problems, lenient: Collection[str] = ()) -> None:
        self.file, self.numbers, self.problems, self.lenient = file, numbers, problems, lenient
        self.columns: dict[str, pa.Array] = {}
        self.good = np.ones(len(numbers), bool)
        self._bad: dict[str, np.ndarray] = {}
        self.left_out = 0
        """Rows that are not good for a column whose bad values are not fatal."""

    def __len__(self) -> int:
        return len(self.numbers)

    def set_column(self, name: str, column: pa.Array) -> None:
        """Take `column` as our column `name`; text that is no UTF-8 is bad."""
        column = _plain(column)
        if _is_text(column.type):
            # Arrow checks the bytes of binary columns only.
            column, good = self._try(name, column.cast(pa.binary()), lambda part: part.cast(pa.string()), "text")
            if good is not None:
                self.columns[name] = column
                hint = " (data.csv.encoding names another)" if self.file.is_csv and self.file.configurable else ""
                self.require(name, good, f"UTF-8 text{hint}", seen="other bytes")
            if self.file.is_csv and self.file.csv.null_values:
                nulls = pa.array(self.file.csv.null_values, pa.string())
                column = pc.if_else(pc.is_in(column, value_set=nulls), None, column)
        self.columns[name] = column

    def where(self, chosen: pa.Array) -> Rows:
        """The rows for which `chosen` is true; what is wrong with the others no longer matters."""
        mask = pc.fill_null(chosen, False)
        places = mask.to_numpy(zero_copy_only=False)
        rows = Rows(self.file, self.numbers[places], self.problems, self.lenient)
        rows.good = self.good[places]
        rows._bad = {name: bad[places] for name, bad in self._bad.items()}
        rows.columns = {name: column.filter(mask) for name, column in self.columns.items()}
        return rows

    def keep(self, **columns: pa.Array) -> pa.Table:
        """`columns` without the rows that are bad."""
        return pa.table(columns).filter(pa.array(self.good))

    # Judging ------------------------------------------------------------------------------------------------------

    def require(self, name: str, good: pa.Array, expected: str, column: pa.Array | None = None, seen: str = "") -> None:
        """Note the rows of our column `name` that are not `good` (null is not), unless they were noted for it before.

        Args:
            name: our column.
            good: boolean, a value a row.
            expected: what a good value is, in words.
            column: what to show of bad rows; None: the column as it was read.
            seen: what to show of all of them instead.
        """
        before = self._bad.setdefault(name, np.zeros(len(self), bool))
        bad = ~pc.fill_null(good, False).to_numpy(zero_copy_only=False) & ~before
        fatal = name not in self.lenient
        if not fatal:
            bad &= self.good  # one row is left out for one reason
        if not bad.any():
            return
        before |= bad
        theirs, values = self.file.columns[name], self.columns[name] if column is None else column
        first = np.flatnonzero(bad)[:EXAMPLES]
        shown = [seen or _shown(values[row]) for row in first]
        if name in PRIVATE:
            shown = [text if text == _EMPTY else "not shown here" for text in shown]
        examples = [f"row {row}: {theirs} is {text}" for row, text in zip(self.numbers[first], shown, strict=True)]
        rows = int(bad.sum())
        self.good &= ~bad
        self.left_out += 0 if fatal else rows
        what = f"expected {expected} in column {theirs}"
        self.problems.add(
            self.file.name, what if fatal else f"left out, {what}", rows=rows, examples=examples, fatal=fatal
        )

    def _try(
        self, name: str, column: pa.Array, convert: Callable[[pa.Array], pa.Array], expected: str
    ) -> tuple[pa.Array, pa.Array | None]:
        """`column` converted, null where that fails, and where it does not; None: it never does."""
        try:
            return convert(column), None
        except pa.ArrowNotImplementedError:
            what = f"column {self.file.columns[name]!r} is {column.type}, expected {expected}"
            self.problems.add(self.file.name, what, rows=len(column))
            self.good[:] = False
            self._bad[name] = np.ones(len(self), bool)
            return convert(pa.nulls(len(column))), None
        except pa.ArrowInvalid:
            good = pa.array(_convertible(column, convert))
            return convert(pc.if_else(good, column, pa.scalar(None, column.type))), good

    def _convert(self, name: str, column: pa.Array, convert: Callable[[pa.Array], pa.Array], expected: str) -> pa.Array:
        converted, good = self._try(name, column, convert, expected)
        if good is not None:
            self.require(name, good, expected, column)
        return converted

    # Columns ------------------------------------------------------------------------------------------------------

    def text(self, name: str) -> pa.Array:
        """A column as text, as it stands; blank values are null."""
        column = self.columns[name]
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        if pa.types.is_decimal(column.type):
            column = _digits(column)
        column = self._convert(name, column, lambda part: part.cast(pa.string()), "text")
        return pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), None, column)

    def identifier(self, name: str) -> pa.Array:
        """A column of ids as text, as it stands; whole numbers become their digits; blank values are null."""
        column = self.columns[name]
        if pa.types.is_decimal(column.type):
            ids, expected = _digits(column), "an id as text, or a whole number"
            whole = pc.match_substring_regex(ids, r"^-?\d+$")
        elif pa.types.is_floating(column.type):
            numbers, expected = column.cast(pa.float64()), "an id as text, or a whole number below 2^53"
            numbers = pc.if_else(pc.is_nan(numbers), None, numbers)
            whole = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(pc.abs(numbers), _EXACT))
            ids = pc.if_else(whole, numbers, None).cast(pa.int64()).cast(pa.string())
        else:
            return self.text(name)
        self.require(name, pc.fill_null(whole, True), expected)
        self.problems.add(
            self.file.name,
            f"column {self.file.columns[name]} holds ids as {column.type}: leading zeros, if there were any, are lost",
            rows=whole.is_valid().true_count,
            fatal=False,
        )
        return pc.if_else(whole, ids, None)

    def key(self, name: str) -> pa.Array:
        """A column of ids of which each row must have one."""
        column = self.identifier(name)
        self.require(name, column.is_valid(), "a value in each row")
        return column

    def query(self, name: str) -> pa.Array:
        """A column of query texts, none blank."""
        column = self.text(name)
        self.require(name, column.is_valid(), "a value in each row")
        doubtful = pc.unique(column.filter(pc.invert(pc.match_substring_regex(column, normalize.SEEN))))
        blank = [text for text in doubtful.to_pylist() if text is not None and normalize.is_blank(text)]
        if blank:
            good = pc.invert(pc.is_in(column, value_set=pa.array(blank)))
            self.require(name, pc.or_(good, column.is_null()), "a query")
        return column

    def number(
        self, name: str, lowest: float, highest: float = math.inf, *, whole: bool = False, required: bool = False
    ) -> pa.Array:
        """A column of numbers from `lowest` to `highest`, float64; blank values are null, and bad if `required`."""
        kind = "a whole number" if whole else "a number"
        expected = f"{kind} from {lowest:g}" + (f" to {highest:g}" if highest < math.inf else "")
        column = self.columns[name]
        if _is_text(column.type) or pa.types.is_decimal(column.type):
            column = pc.utf8_trim_whitespace(self.text(name))
            if self.file.is_csv and self.file.csv.decimal == ",":
                column = pc.replace_substring(column, ",", ".")
        column = self._convert(name, column, lambda part: part.cast(pa.float64()), expected)
        good = pc.and_(pc.greater_equal(column, lowest), pc.less_equal(column, highest))  # false for NaN
        good = pc.and_(good, pc.is_finite(column))
        if whole:
            good = pc.and_(good, pc.equal(pc.floor(column), column))
        self.require(name, good if required else pc.fill_null(good, True), expected)
        return pc.if_else(good, column, None)

    def note_null_words(self, name: str) -> None:
        """Note the values of a column of CSV that elsewhere mean none, but may also be what they say."""
        if not self.file.is_csv:
            return
        doubtful = pc.fill_null(pc.is_in(self.columns[name], value_set=pa.array(_NULL_WORDS)), False)
        theirs = self.file.columns[name]
        examples = [
            f"row {self.numbers[row]}: {theirs} is {_shown(self.columns[name][row])}"
            for row in np.flatnonzero(doubtful)[:EXAMPLES]
        ]
        what = f"kept; if these values of column {theirs} stand for none, name them in data.csv.null_values"
        self.problems.add(self.file.name, what, rows=doubtful.true_count, examples=examples, fatal=False)

    def boolean(self, name: str) -> pa.Array:
        """A column of true/false or 1/0, also as 1.0 or 1.000; blank values are null."""
        column = self.columns[name]
        if pa.types.is_boolean(column.type):
            return column
        text = pc.utf8_lower(pc.utf8_trim_whitespace(self.text(name)))
        is_true = pc.match_substring_regex(text, r"^(true|1(\.0*)?)$")
        known = pc.or_(is_true, pc.match_substring_regex(text, r"^(false|0(\.0*)?)$"))
        self.require(name, pc.or_kleene(text.is_null(), known), "true, false, 1 or 0")
        return pc.if_else(text.is_null(), None, is_true)

    def timestamp(self, name: str) -> pa.Array:
        """A column of times in UTC, microseconds, without a zone; a time that names no zone is taken as UTC.

        What lies before 2000 or from 2100 on is no time of a log but a mistake, and may be no date of Python's. Whole
        numbers are seconds, milli-, micro- or nanoseconds since 1970, whichever lies within those years.
        """
        column = self.columns[name]
        kind = column.type
        if pa.types.is_timestamp(kind):
            at = _since_1970(column.cast(pa.int64()), _UNITS[kind.unit])  # Arrow keeps zoned times in UTC
        elif pa.types.is_date32(kind):
            at = _since_1970(pc.multiply(column.cast(pa.int32()).cast(pa.int64()), 86_400), _UNITS["s"])
        elif pa.types.is_date64(kind):
            at = _since_1970(column.cast(pa.int64()), _UNITS["ms"])
        elif _is_text(kind):
            at = self._parse_times(name)
        else:
            at = _since_1970(self._try(name, column, lambda part: part.cast(pa.int64()), _TIME)[0])
        self.require(name, at.is_valid(), _TIME)
        return at

    def _parse_times(self, name: str) -> pa.Array:
        text = pc.utf8_trim_whitespace(self.text(name))
        text = pc.replace_substring_regex(text, r" ?UTC$", "Z")  # as BigQuery writes it
        text = pc.replace_substring_regex(text, r"(\.\d{6})\d+", r"\1")

        def parse(kind: pa.DataType, chosen: pa.Array) -> pa.Array:
            picked = pc.if_else(chosen, text, None)
            good = _convertible(picked, lambda part: part.cast(kind))
            return pc.if_else(pa.array(good), picked, None).cast(kind)

        digits = pc.match_substring_regex(text, r"^\d{9,19}$")
        zoned = pc.match_substring_regex(text, _ZONED)
        plain = pc.invert(pc.or_(digits, zoned))
        written = pc.coalesce(
            parse(pa.timestamp("us", tz="UTC"), zoned).cast(pa.int64()),
            parse(pa.timestamp("us"), plain).cast(pa.int64()),
        )
        return pc.coalesce(_since_1970(written, _UNITS["us"]), _since_1970(parse(pa.int64(), digits)))


def joined(first: pa.Array, second: pa.Array) -> pa.Array:
    """Two texts of a row as one, a line each; null where both are."""
    return pc.coalesce(pc.binary_join_element_wise(first, second, "\n"), first, second)


def _is_text(kind: pa.DataType) -> bool:
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return binary or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _plain(column: pa.Array) -> pa.Array:
    """`column` as a type that others can be made of: a UUID is its text, bytes of any kind are binary."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if isinstance(column.type, pa.UuidType):
        return pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if pa.types.is_fixed_size_binary(column.type) or pa.types.is_binary_view(column.type):
        return column.cast(pa.binary())
    return column


def _digits(column: pa.Array) -> pa.Array:
    """Decimals as text without trailing zeros: as floats, 15.000000000 and 30.000000000 are no whole numbers."""
    text = pc.replace_substring_regex(column.cast(pa.string()), r"^-?0E-\d+$", "0")
    return pc.replace_substring_regex(pc.replace_substring_regex(text, r"(\.\d*?)0+$", r"\1"), r"\.$", "")


def _listed(names: Sequence[str]) -> str:
    """The columns of a file, as far as a line takes them."""
    text = ", ".join(names)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= _LISTED else f"{text[:_LISTED]}... ({len(names)} columns)"


def _shown(scalar: pa.Scalar) -> str:
    try:
        value = scalar.as_py()
    except (OverflowError, ValueError):  # a time that Python has none for
        return f"{scalar.value} as {scalar.type}"
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    if value is None or (not isinstance(value, bytes) and not str(value).strip()):
        return _EMPTY
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _convertible(column: pa.Array, convert: Callable[[pa.Array], pa.Array]) -> np.ndarray:
    """Which rows `convert` takes: halves that it refuses are halved again."""
    good = np.ones(len(column), bool)
    pending = [(0, len(column))]
    while pending:
        start, stop = pending.pop()
        try:
            convert(column.slice(start, stop - start))
        except pa.ArrowInvalid:
            if stop - start == 1:
                good[start] = False
            else:
                middle = (start + stop) // 2
                pending += [(start, middle), (middle, stop)]
    return good


def _since_1970(numbers: pa.Array, *units: int) -> pa.Array:
    """Whole numbers as times in microseconds, null unless they lie between 2000 and 2100.

    Args:
        numbers: int64, since 1970.
        units: how many of them a second has; where there are several, the one that puts a number into that span.
    """
    values = pc.fill_null(numbers, 0).to_numpy(zero_copy_only=False)
    at, known = np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    for unit in units or _UNITS.values():  # no number fits two of them
        fits = (values >= _FROM * unit) & (values < _TO * unit)
        at[fits] = values[fits] * (10**6 // unit) if unit <= 10**6 else values[fits] // (unit // 10**6)
        known |= fits
    return pa.array(at, mask=~known).cast(pa.timestamp("us"))


# Tables of several files --------------------------------------------------------------------------------------------


def files(
    reference: str,
    suffixes: Sequence[str],
    columns: Mapping[str, str],
    problems: Problems,
    *,
    csv: Csv | None = None,
    delimiter: str = ",",
) -> list[File]:
    """The files that `reference` leads to (see `storage.files`), all with the same columns; the rest as for `File`."""
    found = storage.files(reference, suffixes, problems)
    return [File(stored, columns, csv=csv, delimiter=delimiter) for stored in found]


def check_headers(files: Sequence[File], problems: Problems) -> None:
    """Add to the problems what the headers of `files` lack, in order."""

    def look(file: File) -> Problems:
        found = Problems(collect=True)
        if file.check(found) and isinstance(file, File):
            file.check_types(found)
        return found

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for found in pool.map(look, files):
            problems.extend(found)


def product_batches(table: pa.Table) -> list[pa.RecordBatch]:
    """`table` as batches of records.PRODUCTS; product fields that it lacks are null."""
    for name in set(schemas.PRODUCTS.names) - set(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), pa.string()))
    return table.select(schemas.PRODUCTS.names).cast(schemas.PRODUCTS).to_batches()


def expect_rows(where: str, read: int, expected: int, problems: Problems) -> None:
    """Add to the problems that `where` had another number of rows than `expected`; 0: any will do."""
    if expected and 0 < read != expected:
        what = f"{read} rows, expected {expected} (data.expected_rows); the download may be incomplete"
        problems.add(where, what)
