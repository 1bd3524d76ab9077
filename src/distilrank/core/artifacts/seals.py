"""Sealed folders: `digest.json`, written last, says that a folder is complete and verifies every byte of it."""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distilrank.core.artifacts.digests import digest_file, digest_json
from distilrank.core.artifacts.json_files import read_json, write_json
from distilrank.core.artifacts.writing import PARTIAL
from distilrank.core.errors import InputError

SEAL = "digest.json"

RECORD = "stage.json"
MANIFEST = "manifest.json"
"""What a shard of labels says of itself."""

Inputs = Mapping[str, Path | Sequence[Path]]
"""The folders that a stage reads, by name; of labels one a shard."""

POD_NAME = "KFP_POD_NAME"
"""A variable of every pod of a run, and of nothing else (kubeflow/pipelines 2.17.0, argocompiler/container.go)."""

SETTLED_SECONDS = 2.0
"""A file that was changed less than this ago is hashed each time, as Git does: a further change in the same tick of the
file system's clock (2 s on FAT, 1 s on some network volumes) would not show in its times."""

_digests: dict[tuple[int, ...], str] = {}
"""Digests of the files that this process has verified, by device, inode, size and the times of their last change."""


def seal(folder: Path, only: Sequence[str] | None = None) -> str:
    """Write the digests of all files in `folder` (or of those named by `only`) and return the digest of them all."""
    files = {name: digest_file(folder / name) for name in (_names(folder) if only is None else only)}
    digest = digest_json(files)
    write_json(folder / SEAL, {"digest": digest, "files": files})
    return digest


def is_sealed(folder: Path) -> bool:
    """Whether a folder has a seal; one that a person put together has none."""
    return (folder / SEAL).is_file()


def sealed_digest(folder: Path) -> str:
    """The digest with which `folder` was sealed, to tell it from another; no byte of its files is read.

    Whatever reads the files, or vouches for them, calls `verify`.
    """
    return _seal(folder)["digest"]


def verify(folder: Path, only: Sequence[str] | None = None, *, again: bool = False) -> str:
    """Check the bytes of a sealed folder (or of the files named by `only`) and return its digest.

    Args:
        only: the files that the caller reads, where it does not read all of a large folder.
        again: hash what this process has hashed before too: a disk may damage a file without changing its times.

    Raises:
        InputError: a file is missing, unexpected or differs from its digest.
    """
    sealed = _seal(folder)
    for name in sealed["files"] if only is None else only:
        path, expected = folder / name, sealed["files"].get(name)
        if expected is None:
            raise InputError(f"{path}: not listed in {folder / SEAL}")
        if not path.is_file():
            raise InputError(f"{path}: missing, although {folder / SEAL} lists it")
        seen = _digest_once(path, again)
        if seen != expected:
            raise InputError(
                f"{path}: digest {seen[:12]} differs from the recorded {expected[:12]}; the file is corrupt"
            )
    extra = sorted(set(_names(folder)) - set(sealed["files"])) if only is None else []
    if extra:
        raise InputError(f"{folder / extra[0]}: not listed in {folder / SEAL}; the folder was changed")
    return sealed["digest"]


def require(inputs: Inputs, only: Mapping[str, Sequence[str]] | None = None) -> None:
    """Refuse inputs of a stage whose files did not all arrive as they were sealed.

    Caches go by what a result was made of, and never look whether it still exists, or is still the same: Kubeflow
    offers what a lifecycle rule has deleted, and the launcher downloads nothing without an error.

    Args:
        inputs: the sealed folder of each input by its name in the pipeline; several where a loop made them.
        only: the files that the stage reads of an input, where it does not read all of it; the others must be there.

    Raises:
        InputError: a folder is missing or empty, or lacks its seal or a file that the seal lists; or a file differs
            from its digest.
    """
    folders = [
        (name, folder) for name, given in inputs.items() for folder in ([given] if isinstance(given, Path) else given)
    ]
    for name, folder in folders:
        lacking = _lacking(folder)
        if lacking:
            raise InputError(f"input {name} ({folder}): {lacking}; {_cause()}")
    for name, folder in folders:
        try:
            verify(folder, (only or {}).get(name))
        except InputError as error:
            raise InputError(f"input {name}: {error}; make it again with --no-cache") from None


def check_member(name: str, place: str) -> None:
    """Check the name that a bucket, a hub or a list gives to a file before anything is read or written under it.

    Args:
        name: relative to the folder that the file belongs to, with slashes.
        place: what names it, for the message.

    Raises:
        InputError: it is absolute or leads out of that folder, or file systems disagree on what it names.
    """
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InputError(
            f"{place}: lists {name!r}, expected files inside it, with relative names that have no empty part, no part "
            "'.' or '..', no backslash and no NUL"
        )


def _names(folder: Path) -> list[str]:
    """Names of the files that a seal of `folder` covers, sorted; not the record of its stage, which has timings."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    content = (name for name in names if not any(fnmatch.fnmatchcase(part, PARTIAL) for part in name.parts))
    return [name.as_posix() for name in content if str(name) not in (SEAL, RECORD)]


def _seal(folder: Path) -> dict[str, Any]:
    path = folder / SEAL
    sealed = read_json(path)
    if not isinstance(sealed.get("files"), dict) or "digest" not in sealed:
        raise InputError(f"{path}: damaged, expected an object with digest and files")
    for name in sealed["files"]:
        check_member(name, str(path))
    if digest_json(sealed["files"]) != sealed["digest"]:
        raise InputError(f"{path}: its digest does not match its own list of files")
    return sealed


def _digest_once(path: Path, again: bool) -> str:
    """`digest_file`, once in a process while the file stays as it is."""
    status = path.stat()
    key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    settled = time.time() - status.st_ctime > SETTLED_SECONDS
    if again or key not in _digests:
        digest = digest_file(path)
        if not settled:
            return digest
        _digests[key] = digest
    return _digests[key]


def _lacking(folder: Path) -> str:
    """What a sealed folder lacks, in words; empty: nothing."""
    if not folder.is_dir() or not any(path.is_file() for path in folder.rglob("*")):
        return "arrived empty"
    if not is_sealed(folder):
        return f"lacks {SEAL}"
    names = list(_seal(folder)["files"])
    missing = [name for name in names if not (folder / name).is_file()]
    return f"lacks {len(missing)} of its {len(names)} files, {missing[0]} for one" if missing else ""


def _cause() -> str:
    """Why files of an input are missing, and what to do about it, here."""
    if POD_NAME in os.environ:
        return (
            "the object store no longer has its files (expired by a lifecycle rule?), but Kubeflow's cache still "
            "offers it: submit with --no-cache, and for recurring runs set preflight.cache_days (docs/operations.md)"
        )
    return "its files were deleted, but the cache still offers this result: run again with --no-cache"
