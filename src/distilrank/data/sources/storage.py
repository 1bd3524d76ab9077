"""Access to external files: a local file, a folder, or a prefix in Google Cloud Storage (`gs://BUCKET/PREFIX`).

A folder or prefix is read recursively (`dt=2026-11-01/` and the like), links to folders included, in order of names.
Names that begin with a dot or an underscore are not data: `_SUCCESS`, `_temporary/`, `.part-0.crc`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from distilrank.core import artifacts
from distilrank.core.errors import InputError, one_line
from distilrank.core.problems import Problems
from distilrank.core.scratch import scratch_folder

_RANGE_BYTES = 1 << 20
"""Smallest range of an object that one request fetches."""

_TABLES = {
    "a Delta Lake table": (r"(.*/)?_delta_log/.*", "COPY (FROM delta_scan('TABLE')) TO 'table.parquet' in DuckDB"),
    "an Iceberg table": (
        r"(.*/)?metadata/[^/]*\.metadata\.json",
        "COPY (FROM iceberg_scan('TABLE')) TO 'table.parquet' in DuckDB",
    ),
    "a Hudi table": (r"(.*/)?\.hoodie/.*", "df.write.parquet('FOLDER') in Spark"),
}
"""Table formats whose folders keep files of deleted rows: patterns of file names, and an example of an export."""


class StoredFile(Protocol):
    """A file as it was when it was listed."""

    @property
    def name(self) -> str:
        """Path or URI."""

    def key(self) -> str:
        """Key that changes with the file, computed without reading it: path, size and time, or a generation."""

    def digest(self) -> str:
        """Digest of the content: SHA-256 of a local file, or of the checksum that the store reports for an object."""

    def open_local(self, folder: Path | None = None) -> AbstractContextManager[Path]:
        """Provide the content as a local file.

        Args:
            folder: where an object is downloaded to temporarily; None: the system's folder for temporary files.
        """

    def open_ranges(self) -> AbstractContextManager[BinaryIO]:
        """Provide the content as a seekable stream that fetches little more than what is read."""


def files(reference: str, suffixes: Sequence[str], problems: Problems | None = None) -> list[StoredFile]:
    """List the files of `reference`, sorted by name; a single file or object may have any suffix.

    Args:
        reference: local file, local folder or gs://BUCKET/PREFIX.
        suffixes: suffixes of the files to read, in any case (`.csv.gz`).
        problems: receives a missing reference (fatal; the list is empty) and, not fatal, the number of files left out
            and files that may hold the same rows; None: the first fatal problem is raised.

    Raises:
        InputError: the reference does not exist, has no file with one of the suffixes, or cannot be listed; see
            `problems`.
    """
    problems = Problems() if problems is None else problems
    try:
        if reference.startswith("gs://"):
            stored, others = _objects(reference, suffixes)
        else:
            stored, others = _local(reference, suffixes, problems)
    except _NotThere as error:
        problems.add(reference, str(error))
        return []
    expected = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}" if len(suffixes) > 1 else suffixes[0]
    if not stored:
        content = f"it has {', '.join(others[:5])}" + (", ..." if len(others) > 5 else "") if others else "it is empty"
        problems.add(reference, f"no file whose name ends in {expected}; {content}")
    else:
        what = f"left out, files whose name does not end in {expected}"
        problems.add(reference, what, rows=len(others), examples=others, fatal=False, once=True)
    _note_twins(reference, stored, suffixes, problems)
    return stored


def _note_twins(reference: str, stored: Sequence[StoredFile], suffixes: Sequence[str], problems: Problems) -> None:
    """Report files whose names differ only by suffix, which may be one table in two formats."""
    bare = re.compile(f"({'|'.join(map(re.escape, sorted(suffixes, key=len, reverse=True)))})$", re.IGNORECASE)
    first: dict[str, str] = {}
    twins = [
        f"{PurePosixPath(other).name} beside {PurePosixPath(file.name).name}"
        for file in stored
        if (other := first.setdefault(bare.sub("", file.name), file.name)) != file.name
    ]
    what = "files with the same name in several formats, expected each row in only one: all are read"
    problems.add(reference, what, rows=len(twins), examples=twins, fatal=False, once=True)


def _refuse_table(names: Iterable[str]) -> None:
    """Raise _NotThere if these names (folders end in a slash) belong to a table with a transaction log."""
    for name in names:
        for kind, (pattern, example) in _TABLES.items():
            if re.fullmatch(pattern, name):
                raise _NotThere(
                    f"holds {kind} ({name.rstrip('/')}), whose folder also has files of rows that were deleted or "
                    f"replaced, expected plain files; export the table as it is now, {example} for example"
                )


def hint(reference: str) -> str:
    """Return a hint on a missing path in a notation that other programs accept; begins with `; `, or is empty."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", reference)
    if scheme:
        return f"; {scheme[1]}:// is not supported, expected a local path or gs://BUCKET/PREFIX: copy or mount it"
    if reference.startswith("~"):
        return f"; ~ is not expanded, expected {os.path.expanduser(reference)}"
    if "$" in reference:
        return "; variables are not expanded, expected a path without them"
    if set(reference) & set("*?["):
        folder = re.split(r"[*?\[]", reference, maxsplit=1)[0].rpartition("/")[0]
        return f"; patterns are not expanded, expected a file, or a folder: {folder or '.'}"
    return ""


class _NotThere(Exception):
    """Why a reference cannot be read, without naming it."""


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in PurePosixPath(name).parts)


@dataclass(frozen=True)
class LocalFile:
    """A file on a disk; see StoredFile."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def key(self) -> str:
        with _present(self.path):
            stat = self.path.stat()
        return f"{os.path.abspath(self.path)}:{stat.st_size}:{stat.st_mtime_ns}"

    def digest(self) -> str:
        with _present(self.path):
            return artifacts.digest_file(self.path)

    @contextmanager
    def open_local(self, folder: Path | None = None) -> Iterator[Path]:
        yield self.path

    @contextmanager
    def open_ranges(self) -> Iterator[BinaryIO]:
        with self.path.open("rb") as handle:
            yield handle


@contextmanager
def _present(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror})") from None


def _local(reference: str, suffixes: Sequence[str], problems: Problems) -> tuple[list[StoredFile], list[str]]:
    path = Path(reference)
    if not path.exists():
        raise _NotThere(f"no such file or folder{hint(reference)}")
    _refuse_part_of_table(path.absolute())
    if not path.is_dir():
        return [LocalFile(path)], []
    inside = sorted(_below(path, "", (os.path.realpath(path),)))
    _refuse_table(inside)
    names = [name for name in inside if not _hidden(name)]
    chosen = _without_links([name for name in names if name.lower().endswith(tuple(suffixes))], path)
    links = [name for name in names if name.lower().endswith(tuple(suffixes)) and name not in chosen]
    what = "left out, links to other files of the folder"
    problems.add(reference, what, rows=len(links), examples=links, fatal=False, once=True)
    stored: list[StoredFile] = [LocalFile(path / name) for name in names if name in chosen]
    return stored, [name for name in names if not name.lower().endswith(tuple(suffixes))]


def _below(folder: Path, prefix: str, entered: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of all files below a folder, following links, and of hidden folders, which end in a slash.

    Args:
        prefix: prefix of the names.
        entered: real paths of this folder and its parents, which are not entered again.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise _NotThere(f"{prefix or 'it'} cannot be listed ({error.strerror})") from None
    for entry in entries:
        name = f"{prefix}{entry.name}"
        if not entry.is_dir():
            if entry.is_file() or entry.is_symlink():  # broken links too: opening one reports its name
                yield name
        elif _hidden(entry.name):
            yield f"{name}/"
        elif (real := os.path.realpath(entry.path)) not in entered:
            yield from _below(Path(entry.path), f"{name}/", (*entered, real))


def _without_links(names: Sequence[str], root: Path) -> set[str]:
    """Keep one name per file: the one that is not a link, or the first."""
    base, chosen = os.path.realpath(root), dict[str, str]()
    for name in names:
        real = os.path.realpath(root / name)
        if real == os.path.join(base, name):
            chosen[real] = name
        chosen.setdefault(real, name)
    return set(chosen.values())


def _refuse_part_of_table(path: Path) -> None:
    """Apply `_refuse_table` to a file or folder that may be part of a table, such as a partition."""
    for folder in path.parents:
        logs = [mark for mark in ("_delta_log", ".hoodie") if (folder / mark).is_dir()]
        metadata = (folder / "metadata").glob("*.metadata.json") if path.is_relative_to(folder / "data") else ()
        _refuse_table([*(f"{folder / mark}/" for mark in logs), *map(str, metadata)])


@dataclass(frozen=True)
class StoredObject:
    """An object in Google Cloud Storage, at the generation that was listed; see StoredFile."""

    name: str
    blob: Any = field(repr=False, compare=False)

    def key(self) -> str:
        return f"{self.name}:{self.blob.generation}:{self.blob.size}"

    def digest(self) -> str:
        # Composed and very large objects have no MD5.
        checksum = ["md5", self.blob.md5_hash] if self.blob.md5_hash else ["crc32c", self.blob.crc32c]
        return artifacts.digest_json([*checksum, self.blob.size])

    @contextmanager
    def open_local(self, folder: Path | None = None) -> Iterator[Path]:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder) as made:  # it may contain queries and client ids
            path = made / PurePosixPath(self.name).name
            with _reachable(self.name, "downloaded"):
                self.blob.download_to_filename(path, checksum="auto", if_generation_match=self.blob.generation)
            yield path

    @contextmanager
    def open_ranges(self) -> Iterator[BinaryIO]:
        with (
            _reachable(self.name, "read"),
            self.blob.open("rb", chunk_size=_RANGE_BYTES, if_generation_match=self.blob.generation) as handle,
        ):
            yield handle


@contextmanager
def _reachable(name: str, done: str) -> Iterator[None]:
    from google.api_core.exceptions import GoogleAPIError, NotFound, PreconditionFailed
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (NotFound, PreconditionFailed):
        raise InputError(f"{name}: replaced or deleted since it was listed; start again") from None
    except (GoogleAPIError, GoogleAuthError, ConnectionError) as error:
        raise InputError(f"{name}: cannot be {done} ({one_line(error)})") from None


def _objects(reference: str, suffixes: Sequence[str]) -> tuple[list[StoredFile], list[str]]:
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage

    bucket, _, path = reference.removeprefix("gs://").partition("/")
    if not bucket:
        raise _NotThere("no bucket, expected gs://BUCKET/PREFIX")
    folder = f"{path.rstrip('/')}/" if path.rstrip("/") else ""
    try:
        client = storage.Client()
        itself = client.bucket(bucket).get_blob(path) if path and not path.endswith("/") else None
        for parent in PurePosixPath(path).parents[:-1]:  # the reference may be part of a table
            marks = ["_delta_log/", ".hoodie/", *["metadata/"] * PurePosixPath(path).is_relative_to(parent / "data")]
            for mark in marks:
                _refuse_table(blob.name for blob in client.list_blobs(bucket, prefix=f"{parent}/{mark}", max_results=9))
        if itself is not None:
            return [StoredObject(reference, itself)], []
        blobs = list(client.list_blobs(bucket, prefix=folder))
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        raise _NotThere(f"cannot be listed ({one_line(error)})") from None
    # Consoles create an empty object for each folder, whose name ends in a slash.
    inside = {blob.name.removeprefix(folder): blob for blob in blobs if not blob.name.endswith("/")}
    if not inside:
        pattern = "; patterns are not expanded, expected a prefix" if set(path) & set("*?[") else ""
        raise _NotThere(f"no such object, and no objects below it{pattern}")
    _refuse_table(sorted(inside))
    names = sorted(name for name in inside if not _hidden(name))
    stored: list[StoredFile] = []
    for name in names:
        if name.lower().endswith(tuple(suffixes)):
            artifacts.check_member(PurePosixPath(name).name, reference)  # it may be downloaded under this name
            stored.append(StoredObject(f"gs://{bucket}/{folder}{name}", inside[name]))
    return stored, [name for name in names if not name.lower().endswith(tuple(suffixes))]
