"""Reads external CSV and Parquet files: no row is lost silently, and problems name file, row and column.

CSV is UTF-8 (RFC 4180, comma or another delimiter, double quotes), gzipped or not, and all of it is read as text
first. Rows are counted from 1 after the header; blank lines are not rows. The format follows from the file's first
bytes, not from its name. Files are read in batches, so memory does not grow with their size.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from distilrank.config import Csv
from distilrank.core import schemas
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data.sources import storage
from distilrank.data.sources.rows import Rows
from distilrank.data.sources.storage import LocalFile, StoredFile

BATCH_ROWS = 1 << 14
"""Rows per batch of Parquet."""

_BLOCK_BYTES = 1 << 24  # of CSV; a block must be longer than any row

_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, pa.ArrowException)
csv.field_size_limit(_BLOCK_BYTES)  # Python's default, 128 KiB, is shorter than some descriptions

_GZIP, _UTF_16 = b"\x1f\x8b", "UTF-16 text"
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet",
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
"""First bytes, uncompressed, of files that are neither CSV nor Parquet."""
_HEAD_BYTES = 1 << 12
_LISTED = 500  # characters of names of columns in a message
_DELIMITERS = ";\t|,"

_RANGE_BYTES = 1 << 20  # of a column of Parquet, read at once
_AT_ONCE = 8  # headers that are read concurrently, since each request to remote storage takes time


class File:
    """A CSV or Parquet file and the columns to read of it.

    Args:
        file: file from `storage.files`, or a local path.
        columns: our name of each column to read -> its name in the file.
        csv: CSV format from the configuration; None: the two arguments below, without null values and repeated
            headers.
        encoding: encoding of CSV text.
        delimiter: delimiter of CSV values.
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
        """Whether the file is CSV; known once rows were read."""
        self._schema = pa.schema([])  # of Parquet, once its header is read
        self._whole: list[Rows] | None = None

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn errors of the body into an InputError that names this file."""
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
        """Whether a whole CSV file is valid UTF-8."""
        with self._readable(), self.stored.open_local() as path, path.open("rb") as handle:
            try:
                with self._lines(handle, _magic(handle), "utf-8") as lines:
                    for _ in lines:
                        pass
            except UnicodeDecodeError:
                return False
        return True

    def names(self) -> list[str]:
        """Return the names of all columns of the file, from its header.

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
        if not kind and b"\0" in start.partition(b"\n")[0]:  # values may contain one, column names may not
            kind = "a binary file"
        if not kind:
            return
        hint = ""
        if kind == _UTF_16 and self.configurable:
            hint = "; set data.csv.encoding to utf-16"
        packed = " in gzip" if magic[:2] == _GZIP else ""
        raise InputError(f"{self.name}: is {kind}{packed}, expected CSV in UTF-8 or Parquet{hint}")

    def check(self, problems: Problems | None = None) -> bool:
        """Report a missing file, and required columns that are missing or duplicated; reads only the header.

        Returns:
            Whether there is no problem.

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
        required = set(self.columns.values())
        for name in sorted(required - set(names)):
            problems.add(self.name, f"missing column {name!r}; it has {_listed(names)}{self._hint(names)}")
        twice = [name for name in sorted(required) if names.count(name) > 1]
        for name in twice:
            problems.add(self.name, f"column {name!r} is there {names.count(name)} times, expected once")
        return not twice and required <= set(names)

    def check_types(self, problems: Problems) -> None:
        """Report required columns of Parquet whose values are lists or records; call it after `check`."""
        for field in self._schema:
            if field.name in self.columns.values() and pa.types.is_nested(field.type):
                problems.add(self.name, f"column {field.name!r} is {field.type}, expected text, numbers or times")

    def _hint(self, names: Sequence[str]) -> str:
        """Return a hint if the header of a CSV file suggests another delimiter or encoding."""
        required = set(self.columns.values())
        for other in _DELIMITERS:
            if other != self.csv.delimiter and required <= set(self.csv.delimiter.join(names).split(other)):
                hint = f"; separated by {other!r} it has them all, expected {self.csv.delimiter!r}"
                return hint + f": set data.csv.delimiter to {other!r}" * self.configurable
        if any("\ufffd" in name for name in names):
            return f"; it is not in {self.csv.encoding}" + ": set data.csv.encoding" * self.configurable
        return ""

    def complain(self, problems: Problems, error: InputError) -> None:
        """Add an InputError about this file to the problems."""
        problems.add(self.name, str(error).removeprefix(f"{self.name}: "))

    def batches(self, problems: Problems, *, lenient: Collection[str] = (), ranges: bool = False) -> Iterator[Rows]:
        """Yield the rows in order, in batches; a problem with the whole file ends the iteration.

        Args:
            problems: receives problems, and raises an InputError at the first fatal one unless it collects them.
            lenient: our names of columns whose bad values are not fatal; their rows are left out and counted.
            ranges: fetch only the required columns of remote Parquet instead of the whole file; the data is then not
                checked against the store's checksum.
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
        names = list(dict.fromkeys(self.columns.values()))
        # Otherwise whole columns of a row group, which may have a million rows, would be in memory.
        with pq.ParquetFile(
            file, pre_buffer=False, buffer_size=_RANGE_BYTES, coerce_int96_timestamp_unit="us"
        ) as parquet:  # nanoseconds would overflow to a wrong time
            for batch in parquet.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
                yield self._rows(batch, np.arange(start, start + batch.num_rows), problems, lenient)
                start += batch.num_rows

    def _csv(self, path: Path, problems: Problems, lenient: Collection[str]) -> Iterator[Rows]:
        rows = self._count_rows(path, problems)
        if rows is None:
            return
        with path.open("rb") as handle:
            gzipped = _magic(handle)[:2] == _GZIP
        self.is_csv = True
        odd: list[tuple[int, int, int]] = []  # row, number of its values, expected number
        noted = 0

        def skip(row: pyarrow.csv.InvalidRow) -> str:
            odd.append((row.number - 1, row.actual_columns, row.expected_columns))  # Arrow counts the header as a row
            return "skip"

        def note() -> None:
            nonlocal noted
            new, noted = odd[noted:], len(odd)
            for number, actual, expected in new:
                example = f"row {number}: not readable, its number of values is {actual}"
                problems.add(self.name, f"expected {expected}", examples=[example])

        names = list(dict.fromkeys(self.columns.values()))
        read = 0
        with pa.input_stream(str(path), compression="gzip" if gzipped else None) as stream:
            try:
                reader = pyarrow.csv.open_csv(
                    stream,
                    # One thread, since Arrow numbers skipped rows only then.
                    read_options=pyarrow.csv.ReadOptions(
                        use_threads=False, block_size=_BLOCK_BYTES, encoding=self.csv.encoding.replace("-8", "8")
                    ),
                    parse_options=pyarrow.csv.ParseOptions(
                        delimiter=self.csv.delimiter, newlines_in_values=True, invalid_row_handler=skip
                    ),
                    convert_options=pyarrow.csv.ConvertOptions(
                        include_columns=names,
                        column_types=dict.fromkeys(names, pa.binary()),  # text once it is validated as UTF-8
                        strings_can_be_null=False,
                    ),
                )
            except pa.ArrowInvalid as error:
                if "Empty CSV file" in str(error):  # a header without a line break
                    return
                raise
            for batch in reader:
                note()
                skipped = np.array([number for number, _, _ in odd], np.int64)
                # Row numbers count skipped rows too, so the skipped rows before each row are added to its index.
                index = np.arange(read, read + batch.num_rows)
                numbers = index + 1 + np.searchsorted(skipped - np.arange(len(skipped)) - 1, index, side="right")
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
        """Leave out repeated headers, which occur in files that were concatenated."""
        header = np.ones(len(numbers), bool)
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            written = pa.array([name.encode(), codecs.BOM_UTF8 + name.encode()], column.type)
            header &= pc.is_in(column, value_set=written).to_numpy(zero_copy_only=False)
        if not header.any():
            return batch, numbers
        examples = [f"row {number}" for number in numbers[header]]
        what = "left out, repeated header"
        problems.add(self.name, what, rows=len(examples), examples=examples, fatal=False)
        return batch.filter(pa.array(~header)), numbers[~header]

    def _count_rows(self, path: Path, problems: Problems) -> int | None:
        """Count the rows strictly: after a stray quote, Arrow merges lines without an error.

        Returns:
            -1 if the file has no quotes; None if they are malformed.
        """
        # Only the structure matters, and Latin-1 decodes every byte.
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
                what = "quote a value that contains a quote, and double the quote"
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

    def _all(self) -> list[Rows]:
        if self._whole is None:
            self._whole = [rows for rows in self.batches(Problems()) if len(rows)]
            if not self._whole:
                raise InputError(f"{self.name}: no rows after the header")
        return self._whole

    def table(self) -> pa.Table:
        """Read all rows, with the columns under our names: as text from CSV, with the file's types from Parquet.

        Raises:
            InputError: as for `batches`, or there are no rows.
        """
        return pa.concat_tables([pa.table(rows.columns) for rows in self._all()], promote_options="permissive")

    def text(self, name: str) -> pa.ChunkedArray:
        """`Rows.text` of all rows."""
        return pa.chunked_array([rows.text(name) for rows in self._all()], pa.string())

    def key(self, name: str) -> pa.ChunkedArray:
        """`Rows.key` of all rows."""
        return pa.chunked_array([rows.key(name) for rows in self._all()], pa.string())

    def query(self, name: str) -> pa.ChunkedArray:
        """`Rows.query` of all rows."""
        return pa.chunked_array([rows.query(name) for rows in self._all()], pa.string())


def _magic(handle: BinaryIO) -> bytes:
    magic = handle.read(4)
    handle.seek(0)
    return magic


def _listed(names: Sequence[str]) -> str:
    """The column names of a file, shortened to fit a line."""
    text = ", ".join(names)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= _LISTED else f"{text[:_LISTED]}... ({len(names)} columns)"


def files(
    reference: str,
    suffixes: Sequence[str],
    columns: Mapping[str, str],
    problems: Problems,
    *,
    csv: Csv | None = None,
    delimiter: str = ",",
) -> list[File]:
    """The files of `reference` (see `storage.files`), all with the same columns; other arguments as for `File`."""
    stored_files = storage.files(reference, suffixes, problems)
    return [File(stored, columns, csv=csv, delimiter=delimiter) for stored in stored_files]


def check_headers(files: Sequence[File], problems: Problems) -> None:
    """Report what the headers of `files` lack, in order."""

    def check_header(file: File) -> Problems:
        file_problems = Problems(collect=True)
        if file.check(file_problems) and isinstance(file, File):
            file.check_types(file_problems)
        return file_problems

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for file_problems in pool.map(check_header, files):
            problems.extend(file_problems)


def product_batches(table: pa.Table) -> list[pa.RecordBatch]:
    """Return `table` as batches of schemas.PRODUCTS; missing product fields are null."""
    for name in set(schemas.PRODUCTS.names) - set(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), pa.string()))
    return table.select(schemas.PRODUCTS.names).cast(schemas.PRODUCTS).to_batches()


def expect_rows(where: str, read: int, expected: int, problems: Problems) -> None:
    """Report a number of rows other than `expected`; 0: any number is accepted."""
    if expected and 0 < read != expected:
        what = f"{read} rows, expected {expected} (data.expected_rows); the download may be incomplete"
        problems.add(where, what)
