"""Labeling in parts: after any kill, no row is lost, doubled, or scored with other inputs.

A shard is cut into windows of a fixed number of rows, regardless of its row groups. The logits of a window are a part:
an immutable file that is written atomically and records its inputs. This module does not need torch.
"""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distilrank.config import Label
from distilrank.core import artifacts, progress, schemas
from distilrank.core.errors import InputError, RunStopped, one_line
from distilrank.core.prefetch import prefetch
from distilrank.evaluation import score_spread

INPUTS = "inputs.json"
METADATA = b"distilrank"  # key of a part's record in its Parquet schema
IDS = ("query_id", "product_id")
GROUP_ROWS = 1 << 16  # rows per row group of the labels, so that their bytes depend only on their rows
BUFFER_BYTES = 1 << 20  # of a column to read at a time: a row group may be as large as the shard
EXAMPLES = 3  # rows to name if logits are broken


@dataclass(frozen=True)
class Scored:
    """The logits of a window."""

    logits: np.ndarray
    """Raw, float32, in the order of the rows."""
    tokens: int = 0
    truncated: int = 0
    """Pairs whose product was shortened."""


class Teacher(Protocol):
    """Scores the rows of a window."""

    def encode(self, rows: pa.Table) -> Any:
        """Prepare the argument of `score`; called in another thread, while earlier rows are scored."""

    def score(self, encoded: Any, counter: progress.Counter) -> Scored:
        """Return the logits of these rows; `counter` is advanced after each batch."""


@dataclass(frozen=True)
class Work:
    """Work of scoring, summed over attempts."""

    pairs: int = 0
    tokens: int = 0
    truncated: int = 0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*map(operator.add, astuple(self), astuple(other)))

    def scaled(self, rows: int) -> Work:
        """The work of `rows` rows, extrapolated from these."""
        factor = rows / max(self.pairs, 1)
        return Work(rows, round(self.tokens * factor), round(self.truncated * factor), self.seconds * factor)


@dataclass(frozen=True)
class Device:
    """The device that labels, and its price."""

    name: str
    price_per_hour: float = 0.0
    """0: not known."""

    def cost_summary(self, work: Work) -> dict[str, Any]:
        """`work` as in the manifest; `price` is None if the price per hour is unknown."""
        hours = work.seconds / 3600
        return {
            **asdict(work),
            "seconds": round(work.seconds, 3),
            "rows_per_second": round(work.pairs / work.seconds, 1) if work.seconds else None,
            "device": self.name,
            "device_hours": round(hours, 6),
            "price": round(hours * self.price_per_hour, 4) if self.price_per_hour else None,
        }

    def format(self, work: Work) -> str:
        """`work` in one line for the log."""
        hours = work.seconds / 3600
        time = f"{hours:,.1f} hours" if hours >= 1 else f"{work.seconds:.0f} s"
        price = f", price {hours * self.price_per_hour:,.2f}" if self.price_per_hour else ""
        return f"{work.tokens:,} tokens, {time} of {self.name}{price}"


@dataclass(frozen=True)
class Labeled:
    """A completely labeled shard."""

    logits: np.ndarray
    queries: int
    work: Work
    resumed: int
    """Number of rows scored by earlier attempts."""

    @property
    def rows(self) -> int:
        return len(self.logits)


# Files ------------------------------------------------------------------------------------------------------------


def windows(shard: Path, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
    """Yield the shard in order, in tables of `rows` rows (the last may have fewer), with these columns.

    Raises:
        InputError: the file is damaged, or a column does not fit.
    """
    schema = pa.schema([schemas.CANDIDATES.field(name) for name in columns])
    start = 0
    try:
        with pq.ParquetFile(shard, buffer_size=BUFFER_BYTES) as file:
            for batch in file.iter_batches(rows, columns=schema.names):
                yield schemas.conform(
                    pa.Table.from_batches([batch]), schema, f"{shard}, {batch.num_rows} rows after the first {start}"
                )
                start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{shard}: corrupt or not Parquet ({one_line(error)})") from None


def check_shard(shard: Path) -> int:
    """Count the rows of a shard, after checking its columns against schemas.CANDIDATES.

    Raises:
        InputError: the file is damaged, a column is unknown or missing, or there are no rows.
    """
    try:
        with pq.ParquetFile(shard) as file:
            names, rows = file.schema_arrow.names, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{shard}: corrupt or not Parquet ({one_line(error)})") from None
    for kind, columns in (
        ("unknown", [name for name in names if name not in schemas.CANDIDATES.names]),
        ("missing", [name for name in schemas.CANDIDATES.names if name not in names]),
    ):
        if columns:
            raise InputError(
                f"{shard}: {kind} column {', '.join(map(repr, columns))}, "
                f"expected {', '.join(schemas.CANDIDATES.names)}"
            )
    if not rows:
        raise InputError(f"{shard}: no rows, expected at least one candidate")
    return rows


def _digest(part: pa.Table, metadata: dict[str, Any]) -> str:
    logits = part.column("logit").to_numpy().tobytes().hex()
    return artifacts.digest_json([*(part.column(name).to_pylist() for name in IDS), logits, metadata])


class LabelCheckpoints:
    """The finished windows of a shard, in a folder that successive or concurrent attempts share.

    Args:
        folder: created if missing; may be removed when no attempt works on the shard.
        inputs: everything that determines the logits, by name: digests and settings, as JSON values.

    Raises:
        InputError: the folder belongs to other inputs.
    """

    def __init__(self, folder: Path, inputs: dict[str, Any]) -> None:
        self.folder, self.inputs = folder, artifacts.digest_json(inputs)
        path = folder / INPUTS
        existing = None
        if path.exists():
            try:
                existing = artifacts.read_json(path)
            except InputError as error:  # each part records its inputs
                progress.log_event("label", "note", f"{error}; writing it again")
        if existing is not None:
            self._refuse_others(path, existing, inputs)
        else:
            self._write(path, lambda handle: handle.write(json.dumps(inputs, indent=2).encode()))

    @staticmethod
    def _refuse_others(path: Path, existing: dict[str, Any], inputs: dict[str, Any]) -> None:
        if existing == inputs:
            return
        name = next(
            (name for name in inputs if existing.get(name) != inputs[name]), next(iter(existing.keys() - inputs), "")
        )
        raise InputError(
            f"{path}: these parts were made from other inputs ({name} {str(existing.get(name))[:12]}, expected "
            f"{str(inputs.get(name))[:12]}) and cannot be mixed with new ones; remove the folder"
        )

    @staticmethod
    def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
        # Another attempt removes the folder once it has finished; this one still has its logits in memory.
        with contextlib.suppress(FileNotFoundError), artifacts.replacing(path) as handle:
            write(handle)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"

    def take(self, number: int, rows: pa.Table) -> tuple[np.ndarray, Work] | None:
        """Load the logits of these rows and their work; None if they are missing or damaged, which is reported.

        Raises:
            InputError: the part was made from other inputs.
        """
        path = self._path(number)
        try:
            with pq.ParquetFile(path) as file:
                metadata = artifacts.parse_json(file.schema_arrow.metadata[METADATA], str(path))
                part = schemas.conform(file.read(), schemas.LABELS, str(path))
            digest, inputs, work = metadata.pop("digest"), metadata["inputs"], Work(**metadata["work"])
            is_whole = digest == _digest(part, metadata)  # of ids that may be corrupt text
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
            is_whole = False
        if not is_whole or not all(part.column(name).equals(rows.column(name)) for name in IDS):
            progress.log_event("label", "note", f"{path} is damaged or has other rows: scoring its rows again")
            return None
        if inputs != self.inputs:
            raise InputError(
                f"{path}: made from other inputs ({inputs[:12]}, expected {self.inputs[:12]}) and cannot be mixed with "
                f"new ones; remove {self.folder}"
            )
        return part.column("logit").to_numpy(), work

    def keep(self, number: int, rows: pa.Table, logits: np.ndarray, work: Work) -> None:
        """Save the logits of these rows.

        Raises:
            InputError: the storage refuses.
        """
        part = pa.table([*(rows.column(name) for name in IDS), pa.array(logits)], schema=schemas.LABELS)
        metadata: dict[str, Any] = {"inputs": self.inputs, "work": asdict(work)}
        metadata["digest"] = _digest(part, metadata)
        table = part.replace_schema_metadata({METADATA: json.dumps(metadata)})
        self._write(self._path(number), lambda handle: pq.write_table(table, handle, compression="zstd"))


# Labeling --------------------------------------------------------------------------------------------------------


class _Counter(progress.Counter):
    """A counter that also shows the estimated cost of the whole shard."""

    estimate = ""

    def add(self, count: int, *notes: str) -> None:
        super().add(count, *notes, *filter(None, [self.estimate]))


def _refuse_broken(name: str, rows: pa.Table, logits: np.ndarray) -> None:
    broken = np.flatnonzero(~np.isfinite(logits))
    if len(broken):
        first = rows.select(["query", "product_id"]).take(broken[:EXAMPLES]).to_pylist()
        examples = ", ".join(
            f"query {row['query']!r} with product {row['product_id']} ({logits[row_index]})"
            for row_index, row in zip(broken, first, strict=False)
        )
        raise RunStopped(
            f"{name}: {len(broken)} of {len(logits)} logits are not finite: {examples}; the teacher is broken"
        )


def _refuse_collapsed(name: str, logits: np.ndarray, config: Label) -> None:
    reason = score_spread.describe_collapse(logits, config.min_deviation, config.min_distinct)
    if reason:
        raise RunStopped(f"{name}: {reason} (label.min_deviation, label.min_distinct); the teacher has collapsed")


def label_rows(
    config: Label,
    *,
    name: str,
    shard: Path,
    fields: Sequence[str],
    parts: LabelCheckpoints,
    load: Callable[[], Teacher],
    device: Device,
    output: Path,
) -> Labeled:
    """Score the rows of `shard` that are in no part yet, and write the labels of all rows.

    Args:
        name: name of the stage, for the log.
        fields: product fields that the teacher reads besides the query.
        load: loads the teacher; called once, if rows remain to score.
        output: file for schemas.LABELS in the shard's order, bitwise the same after any number of kills.

    Raises:
        InputError: a damaged shard or parts of other inputs; the storage refuses (finished parts stay).
        RunStopped: logits that are not finite, or a teacher that has collapsed.
    """
    logits = np.empty(check_shard(shard), np.float32)
    teacher = functools.cache(load)

    def prepare_windows() -> Iterator[tuple[int, pa.Table, tuple[np.ndarray, Work] | None, Any]]:
        for number, rows in enumerate(windows(shard, [*IDS, "query", *fields], config.part_rows)):
            finished = parts.take(number, rows)
            yield number, rows, finished, None if finished else teacher().encode(rows)

    counter = _Counter(name, len(logits), "pairs")
    total_work, end_of_previous, is_checked = Work(), 0, False
    # While a window is scored, the next is read and encoded and the previous is written, since shared volumes are
    # slow.
    with ThreadPoolExecutor(1) as writer:
        written: Future[None] | None = None
        for number, rows, finished, encoded in prefetch(prepare_windows()):
            if finished:
                counter.skip(rows.num_rows)
            else:
                if written is None:
                    counter.started = time.monotonic()  # resuming and loading do not count as scoring
                started = time.perf_counter()
                scored = teacher().score(encoded, counter)
                work = Work(rows.num_rows, scored.tokens, scored.truncated, time.perf_counter() - started)
                _refuse_broken(shard.stem, rows, scored.logits)
                if written:
                    written.result()
                written = writer.submit(parts.keep, number, rows, scored.logits, work)
                finished = scored.logits, work
            end = end_of_previous + rows.num_rows
            logits[end_of_previous:end], end_of_previous = finished[0], end
            total_work += finished[1]
            counter.estimate = f"{device.format(total_work.scaled(len(logits)))} in all"
            if (
                not is_checked and end_of_previous >= score_spread.MIN_LOGITS
            ):  # a failure in the first minute of many hours
                _refuse_collapsed(shard.stem, logits[:end_of_previous], config)
                is_checked = True
    _refuse_collapsed(shard.stem, logits, config)
    return Labeled(logits, _write(shard, logits, output), total_work, counter.resumed)


def _write(shard: Path, logits: np.ndarray, output: Path) -> int:
    """Write the labels of a shard; return the number of queries."""
    for stale in output.parent.glob(f".{output.name}.*.partial"):  # left by a killed attempt
        stale.unlink(missing_ok=True)
    queries: set[str] = set()
    start = 0
    with artifacts.replacing(output) as handle, pq.ParquetWriter(handle, schemas.LABELS, compression="zstd") as writer:
        for ids in windows(shard, IDS, GROUP_ROWS):
            labels = pa.array(logits[start : start + ids.num_rows])
            writer.write_table(pa.table([*ids.columns, labels], schema=schemas.LABELS))
            queries.update(ids.column("query_id").unique().to_pylist())
            start += ids.num_rows
    return len(queries)
