"""Convert columns of external files to checked values: text, ids, numbers, booleans and times."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from decimal import Decimal
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilrank.config import Csv
from distilrank.core import normalize
from distilrank.core.problems import EXAMPLES, Problems

PRIVATE = ("client", "rater", "row_id")
"""Our names of columns that identify people: their values appear in no message."""

_NULL_WORDS = ("nan", "NaN", "None", "none", "null", "Null", "N/A", "n/a", "NA", "<NA>")
_EMPTY = "empty"

_ZONED = r"[T ].*(Z|[+-]\d\d(:?\d\d)?)$"
_FROM, _TO = 946_684_800, 4_102_444_800  # 2000-01-01 and 2100-01-01 in seconds since 1970
_TIME = "a time from 2000 to 2100: ISO 8601 such as 2026-03-31T12:00:00Z, or whole seconds or milliseconds since 1970"
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EXACT = 2**53  # whole numbers below it are exact as 64-bit floats


class Origin(Protocol):
    """Properties of a file on which messages and conversions depend."""

    name: str
    columns: dict[str, str]
    """Our name of each column -> its name in the file."""
    csv: Csv
    configurable: bool
    is_csv: bool


class Rows:
    """A batch of rows of a file, and whether each is valid so far.

    The methods named after a kind of value check a column and return it with one value per row, null where blank or
    invalid. Invalid values are added to the problems, and `keep` leaves their rows out.
    """

    def __init__(self, file: Origin, numbers: np.ndarray, problems: Problems, lenient: Collection[str] = ()) -> None:
        self.file, self.numbers, self.problems, self.lenient = file, numbers, problems, lenient
        self.columns: dict[str, pa.Array] = {}
        self.good = np.ones(len(numbers), bool)
        self._bad: dict[str, np.ndarray] = {}
        self.left_out = 0
        """Number of rows left out for invalid values that are not fatal."""

    def __len__(self) -> int:
        return len(self.numbers)

    def set_column(self, name: str, column: pa.Array) -> None:
        """Store `column` as our column `name`; text that is not UTF-8 is invalid."""
        column = _plain(column)
        if _is_text(column.type):
            # Arrow validates only the bytes of binary columns.
            column, good = self._try(name, column.cast(pa.binary()), lambda part: part.cast(pa.string()), "text")
            if good is not None:
                self.columns[name] = column
                hint = " (data.csv.encoding sets another)" if self.file.is_csv and self.file.configurable else ""
                self.require(name, good, f"UTF-8 text{hint}", shown_as="other bytes")
            if self.file.is_csv and self.file.csv.null_values:
                nulls = pa.array(self.file.csv.null_values, pa.string())
                column = pc.if_else(pc.is_in(column, value_set=nulls), None, column)
        self.columns[name] = column

    def where(self, chosen: pa.Array) -> Rows:
        """The rows for which `chosen` is true; problems of the other rows no longer count."""
        mask = pc.fill_null(chosen, False)
        selected = mask.to_numpy(zero_copy_only=False)
        rows = Rows(self.file, self.numbers[selected], self.problems, self.lenient)
        rows.good = self.good[selected]
        rows._bad = {name: bad[selected] for name, bad in self._bad.items()}
        rows.columns = {name: column.filter(mask) for name, column in self.columns.items()}
        return rows

    def keep(self, **columns: pa.Array) -> pa.Table:
        """The columns without the invalid rows."""
        return pa.table(columns).filter(pa.array(self.good))

    def require(
        self, name: str, good: pa.Array, expected: str, column: pa.Array | None = None, shown_as: str = ""
    ) -> None:
        """Report the rows of our column `name` that are not `good` (null is not), once per column.

        Args:
            name: our column.
            good: boolean, one value per row.
            expected: description of a valid value.
            column: values to show in examples; None: the column as it was read.
            shown_as: text to show instead of every value.
        """
        before = self._bad.setdefault(name, np.zeros(len(self), bool))
        bad = ~pc.fill_null(good, False).to_numpy(zero_copy_only=False) & ~before
        fatal = name not in self.lenient
        if not fatal:
            bad &= self.good  # a row is left out for one reason only
        if not bad.any():
            return
        before |= bad
        theirs, values = self.file.columns[name], self.columns[name] if column is None else column
        first = np.flatnonzero(bad)[:EXAMPLES]
        shown = [shown_as or _shown(values[row]) for row in first]
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
        """Convert `column`, with null where that fails; return it and the mask of valid rows, None if all are."""
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

    def text(self, name: str) -> pa.Array:
        """A column as unchanged text; blank values are null."""
        column = self.columns[name]
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        if pa.types.is_decimal(column.type):
            column = _digits(column)
        column = self._convert(name, column, lambda part: part.cast(pa.string()), "text")
        return pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), None, column)

    def identifier(self, name: str) -> pa.Array:
        """A column of ids as unchanged text; whole numbers become their digits; blank values are null."""
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
            f"column {self.file.columns[name]} holds ids as {column.type}: leading zeros, if any, are lost",
            rows=whole.is_valid().true_count,
            fatal=False,
        )
        return pc.if_else(whole, ids, None)

    def key(self, name: str) -> pa.Array:
        """A column of ids, none of them blank."""
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
        """A column of numbers from `lowest` to `highest`, float64; blank values are null, and invalid if `required`."""
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
        """Report values of a CSV column that other programs write for missing values, but that may be literal."""
        if not self.file.is_csv:
            return
        doubtful = pc.fill_null(pc.is_in(self.columns[name], value_set=pa.array(_NULL_WORDS)), False)
        theirs = self.file.columns[name]
        examples = [
            f"row {self.numbers[row]}: {theirs} is {_shown(self.columns[name][row])}"
            for row in np.flatnonzero(doubtful)[:EXAMPLES]
        ]
        what = f"kept; if these values of column {theirs} mean no value, list them in data.csv.null_values"
        self.problems.add(self.file.name, what, rows=doubtful.true_count, examples=examples, fatal=False)

    def boolean(self, name: str) -> pa.Array:
        """A column of true/false or 1/0, also as 1.0 or 1.000; blank values are null."""
        column = self.columns[name]
        if pa.types.is_boolean(column.type):
            return column
        text = pc.utf8_lower(pc.utf8_trim_whitespace(self.text(name)))
        is_true = pc.match_substring_regex(text, r"^(true|1(\.0*)?)$")
        is_boolean = pc.or_(is_true, pc.match_substring_regex(text, r"^(false|0(\.0*)?)$"))
        self.require(name, pc.or_kleene(text.is_null(), is_boolean), "true, false, 1 or 0")
        return pc.if_else(text.is_null(), None, is_true)

    def timestamp(self, name: str) -> pa.Array:
        """A column of times in UTC, microseconds, without a zone; a time without a zone is UTC.

        A time before 2000 or from 2100 on is an error, and Python may be unable to represent it. Whole numbers are
        seconds, milli-, micro- or nanoseconds since 1970, whichever unit gives a time within those years.
        """
        column = self.columns[name]
        kind = column.type
        if pa.types.is_timestamp(kind):
            times = _since_1970(column.cast(pa.int64()), _UNITS[kind.unit])  # Arrow keeps zoned times in UTC
        elif pa.types.is_date32(kind):
            times = _since_1970(pc.multiply(column.cast(pa.int32()).cast(pa.int64()), 86_400), _UNITS["s"])
        elif pa.types.is_date64(kind):
            times = _since_1970(column.cast(pa.int64()), _UNITS["ms"])
        elif _is_text(kind):
            times = self._parse_times(name)
        else:
            times = _since_1970(self._try(name, column, lambda part: part.cast(pa.int64()), _TIME)[0])
        self.require(name, times.is_valid(), _TIME)
        return times

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


def join_lines(first: pa.Array, second: pa.Array) -> pa.Array:
    """Join two texts of each row, one per line; null where both are null."""
    return pc.coalesce(pc.binary_join_element_wise(first, second, "\n"), first, second)


def _is_text(kind: pa.DataType) -> bool:
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return binary or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _plain(column: pa.Array) -> pa.Array:
    """Return `column` as a type that can be converted: a UUID as text, bytes of any kind as binary."""
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
    """Decimals as text without trailing zeros, so that 15.000000000 is a whole number."""
    text = pc.replace_substring_regex(column.cast(pa.string()), r"^-?0E-\d+$", "0")
    return pc.replace_substring_regex(pc.replace_substring_regex(text, r"(\.\d*?)0+$", r"\1"), r"\.$", "")


def _shown(scalar: pa.Scalar) -> str:
    try:
        value = scalar.as_py()
    except (OverflowError, ValueError):  # a time that Python cannot represent
        return f"{scalar.value} as {scalar.type}"
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    if value is None or (not isinstance(value, bytes) and not str(value).strip()):
        return _EMPTY
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _convertible(column: pa.Array, convert: Callable[[pa.Array], pa.Array]) -> np.ndarray:
    """Return which rows `convert` accepts, by bisection."""
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
    """Convert whole numbers to times in microseconds; null unless between 2000 and 2100.

    Args:
        numbers: int64, units since 1970.
        units: units per second; of several, the one that puts a number into that range.
    """
    values = pc.fill_null(numbers, 0).to_numpy(zero_copy_only=False)
    microseconds, is_valid = np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    for unit in units or _UNITS.values():  # no number fits two units
        fits = (values >= _FROM * unit) & (values < _TO * unit)
        microseconds[fits] = values[fits] * (10**6 // unit) if unit <= 10**6 else values[fits] // (unit // 10**6)
        is_valid |= fits
    return pa.array(microseconds, mask=~is_valid).cast(pa.timestamp("us"))
