"""Your own judgements, catalogue and search log, as CSV (gzipped or not) or Parquet.

Each is a file, a folder of files, or a gs:// prefix. A folder is read file by file, so that neither disk nor memory
must hold all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from distilrank.config import Csv, Judged, Tables
from distilrank.core import artifacts, schemas
from distilrank.core.problems import Problems
from distilrank.data.sources import judged_pairs, reading, storage
from distilrank.data.sources.base import Log
from distilrank.data.sources.reading import File
from distilrank.data.sources.storage import StoredFile

SUFFIXES = (".csv", ".csv.gz", ".parquet")
"""Suffixes of the files in a folder."""

UNUSABLE = 0.01
"""Share of log rows without a query, product id or readable time at which a file is refused."""

READING = 2
"""Version of the log reader; increase it whenever the same log file would give other rows."""

_JUDGEMENTS = ("query", "product_id", "rating", "rater", "raters", "locale")
_CATALOGUE = ("product_id", *schemas.PRODUCT_FIELDS)
_LOG = ("query", "product_id", "timestamp", "position", "clicked", "client", "row_id")
_LENIENT = ("query", "product_id", "timestamp")


def open(data: Tables) -> TablesSource:
    """Return the source of the files that `data` names, without reading them."""
    return TablesSource(data)


class JudgedFiles:
    """Judgements and catalogue in the user's files; base class of sources with different log formats.

    Columns whose name in `data.columns` is empty are not read.
    """

    def __init__(self, data: Judged) -> None:
        self.data = data
        self.rating_range = (data.rating_min, data.rating_max)
        self.rating_conflicts = data.rating_conflicts
        self.relevant_from = data.relevant_from

    def _columns(self, names: Sequence[str]) -> dict[str, str]:
        columns = {name: getattr(self.data.columns, name) for name in names}
        return {name: column for name, column in columns.items() if column}

    def _files(self, reference: str, names: Sequence[str], problems: Problems) -> list[File]:
        return reading.files(reference, SUFFIXES, self._columns(names), problems, csv=self.data.csv)

    def _tables(self, problems: Problems) -> list[File]:
        return [
            *self._files(self.data.judgements, _JUDGEMENTS, problems),
            *self._files(self.data.catalogue, _CATALOGUE, problems),
        ]

    def files(self) -> list[str]:
        """See `Source.files`."""
        return [file.name for file in self._tables(Problems())]

    def check(self, problems: Problems) -> None:
        """See `Source.check`."""
        reading.check_headers(self._tables(problems), problems)

    def digest(self) -> str:
        """See `Source.digest`."""
        return artifacts.digest_json(
            {
                "columns": self._columns([*_JUDGEMENTS, *_CATALOGUE]),
                "csv": self.data.csv.model_dump(mode="json"),
                "scale": [*self.rating_range, self.relevant_from],
                "conflicts": self.rating_conflicts,
                "files": [file.stored.digest() for file in self._tables(Problems())],
            }
        )

    def products(self, problems: Problems) -> Iterator[pa.RecordBatch]:
        """See `Source.products`. A product without a title is kept; the data profile counts missing fields."""
        has_rows = False
        for file in self._files(self.data.catalogue, _CATALOGUE, problems):
            for rows in file.batches(problems):
                fields = {name: rows.text(name) for name in schemas.PRODUCT_FIELDS if name in file.columns}
                for name in fields:
                    rows.note_null_words(name)
                has_rows = has_rows or len(rows) > 0
                yield from reading.product_batches(rows.keep(product_id=rows.key("product_id"), **fields))
        if not has_rows and not problems.fatal:
            problems.add(self.data.catalogue, "no rows after the header")

    def judgements(self, problems: Problems) -> pa.Table:
        """See `Source.judgements`."""
        files = self._files(self.data.judgements, _JUDGEMENTS, problems)
        return judged_pairs.judgements(
            files, self.data.judgements, self.rating_range, 1, problems, conflicts=self.rating_conflicts
        )


class TablesSource(JudgedFiles):
    """Judgements, catalogue and an optional log; see `sources.base.Source`."""

    def __init__(self, data: Tables) -> None:
        super().__init__(data)
        self.logs = data.logs

    def check(self, problems: Problems) -> None:
        super().check(problems)
        if self.logs:
            reading.check_headers(self._files(self.logs, _LOG, problems), problems)

    def log(self) -> Log | None:
        if not self.logs:
            return None
        columns, problems = self._columns(_LOG), Problems()
        return Log(
            parts=[LogFile(stored, columns, self.data.csv) for stored in storage.files(self.logs, SUFFIXES, problems)],
            timed="timestamp" in columns,
            clients="client" in columns,
            row_ids="row_id" in columns,
            settings={"reading": READING, "columns": columns, "csv": self.data.csv.model_dump(mode="json")},
            problems=list(problems),
        )


class LogFile:
    """A log file with one row per impression; see `sources.base.Part`."""

    def __init__(self, stored: StoredFile, columns: dict[str, str], csv: Csv) -> None:
        self.name, self.stored, self.columns, self.csv = stored.name, stored, columns, csv

    def key(self) -> str:
        return self.stored.key()

    def digest(self) -> str:
        return self.stored.digest()

    def days(self) -> dict[date | None, int]:
        name = "timestamp" if "timestamp" in self.columns else "product_id"
        file = File(self.stored, {name: self.columns[name]}, csv=self.csv)
        counts: dict[date | None, int] = {}
        for rows in file.batches(Problems(), lenient=[name], ranges=True):
            day = rows.timestamp(name).cast(pa.date32()) if name == "timestamp" else pa.nulls(len(rows), pa.date32())
            for count in pc.value_counts(day).to_pylist():
                counts[count["values"]] = counts.get(count["values"], 0) + count["counts"]
        return counts

    def load(self, connection: duckdb.DuckDBPyConnection, problems: Problems) -> None:
        file = File(self.stored, self.columns, csv=self.csv)
        read = left_out = unknown = 0
        for rows in file.batches(problems, lenient=_LENIENT):
            values = {field.name: pa.nulls(len(rows), field.type) for field in schemas.EVENTS}
            values["query"], values["product_id"] = rows.query("query"), rows.key("product_id")
            values["shown"] = pa.repeat(pa.scalar(1, pa.int32()), len(rows))
            values["clicked"] = pa.repeat(pa.scalar(0, pa.int32()), len(rows))
            if "timestamp" in file.columns:
                values["at"] = rows.timestamp("timestamp")
            if "position" in file.columns:
                values["position"] = rows.number("position", 1, 2**31 - 1, whole=True).cast(pa.int32())
            if "clicked" in file.columns:
                values["clicked"] = pc.fill_null(rows.boolean("clicked"), False).cast(pa.int32())
            if "client" in file.columns:
                values["client"] = rows.identifier("client")
                unknown += int(pc.sum(values["client"].is_null()).as_py() or 0)
            if "row_id" in file.columns:
                values["row_id"] = rows.identifier("row_id")
            connection.from_arrow(rows.keep(**values)).insert_into("events")
            read, left_out = read + len(rows), left_out + rows.left_out
        what = "rows without a client: not counted for prepare.privacy.min_clients"
        problems.add(self.name, what, rows=unknown, fatal=False)
        if left_out > UNUSABLE * read:
            problems.add(
                self.name,
                f"{left_out} of {read} rows ({left_out / read:.1%}) lack a query, a product id or a time that can be "
                f"read, expected at most {UNUSABLE:.0%}",
                examples=[
                    example
                    for problem in problems
                    if problem.where == self.name and problem.what.startswith("left out, expected")
                    for example in problem.examples
                ],
            )
