"""Where outside files lie: a local file, a folder of them, or a prefix in Google Cloud Storage (`gs://BUCKET/PREFIX`).

A folder, or a prefix, is read with all folders below it (`dt=2026-11-01/` and the like), in order of names. Names that
begin with a dot or an underscore are never data: `_SUCCESS`, `_temporary/`, `.part-0.crc`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from distilrank import artifacts
from distilrank.errors import InputError
from distilrank.problems import Problems

_RANGE_BYTES = 1 << 20
"""What one request for a part of an object fetches at least."""


class StoredFile(Protocol):
    """A file as it was when it was listed."""

    @property
    def name(self) -> str:
        """Path or URI."""

    def key(self) -> str:
        """What tells without reading it whether it has changed: path, size and time, or an object's generation."""

    def digest(self) -> str:
        """Digest of the content: SHA-256 of a local file, for an object that of the checksum that the store reports."""

    def open_local(self, folder: Path | None = None) -> AbstractContextManager[Path]:
        """Give the content as a local file.

        Args:
            folder: where an object is downloaded to for the while; None: the system's folder for temporary files.
        """

    def open_ranges(self) -> AbstractContextManager[BinaryIO]:
        """Give the content as a seekable stream that fetches what is read and little more."""


def files(reference: str, suffixes: Sequence[str], problems: Problems | None = None) -> list[StoredFile]:
    """The files that `reference` leads to, sorted by name; a file or object that it names itself whatever its suffix.

    Args:
        reference: local file, local folder or gs://BUCKET/PREFIX.
        suffixes: how the names of the wanted files end, in any case (`.csv.gz`).
        problems: gets what is wrong (nothing there: fatal, and the list is empty) and, not fatal, how many files were
            left out because of their names; None: the first that is fatal is raised.

    Raises:
        InputError: nothing is there, none of it has a wanted name, or it cannot be listed; see `problems`.
    """
    problems = Problems() if problems is None else problems
    try:
        found, others = _objects(reference, suffixes) if reference.startswith("gs://") else _local(reference, suffixes)
    except _NotThere as error:
        problems.add(reference, str(error))
        return []
    wanted = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}" if len(suffixes) > 1 else suffixes[0]
    if not found:
        seen = f"it has {', '.join(others[:5])}" + (", ..." if len(others) > 5 else "") if others else "it is empty"
        problems.add(reference, f"no file whose name ends in {wanted}; {seen}")
    else:
        what = f"left out, files whose name does not end in {wanted}"
        problems.add(reference, what, rows=len(others), examples=others, fatal=False)
    return found


class _NotThere(Exception):
    """In words, without the reference."""


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in PurePosixPath(name).parts)


# Local ------------------------------------------------------------------------------------------------------------


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


def _local(reference: str, suffixes: Sequence[str]) -> tuple[list[StoredFile], list[str]]:
    path = Path(reference)
    if not path.is_dir():
        if not path.exists():
            raise _NotThere("no such file or folder")
        return [LocalFile(path)], []
    inside = {one.relative_to(path).as_posix(): one for one in path.rglob("*") if one.is_file()}
    names = sorted(name for name in inside if not _hidden(name))
    found = [LocalFile(inside[name]) for name in names if name.lower().endswith(tuple(suffixes))]
    return list(found), [name for name in names if not name.lower().endswith(tuple(suffixes))]


# Google Cloud Storage ---------------------------------------------------------------------------------------------


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
        with tempfile.TemporaryDirectory(prefix="object-", dir=folder) as made:
            path = Path(made) / PurePosixPath(self.name).name
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
        raise InputError(f"{name}: cannot be {done} ({' '.join(str(error).split())[:200]})") from None


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
        if itself is not None:
            return [StoredObject(reference, itself)], []
        blobs = list(client.list_blobs(bucket, prefix=folder))
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        raise _NotThere(f"cannot be listed ({' '.join(str(error).split())[:200]})") from None
    # Consoles make an empty object, its name ending in a slash, for each folder.
    inside = {blob.name.removeprefix(folder): blob for blob in blobs if not blob.name.endswith("/")}
    if not inside:
        raise _NotThere("no such object, and no objects below it")
    names = sorted(name for name in inside if not _hidden(name))
    found: list[StoredFile] = []
    for name in names:
        if name.lower().endswith(tuple(suffixes)):
            artifacts.check_member(PurePosixPath(name).name, reference)  # it may be downloaded under that name
            found.append(StoredObject(f"gs://{bucket}/{folder}{name}", inside[name]))
    return found, [name for name in names if not name.lower().endswith(tuple(suffixes))]
