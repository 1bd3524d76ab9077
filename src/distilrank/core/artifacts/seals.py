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
"""Digests of all files of a folder; written last."""
RECORD = "stage.json"
"""Record of the stage that wrote a folder."""
MANIFEST = "manifest.json"
"""Description of a shard of labels."""

Inputs = Mapping[str, Path | Sequence[Path]]
"""Folders that a stage reads, by name; several for labels, one per shard."""

POD_NAME = "KFP_POD_NAME"
"""Environment variable that only pods of a run have (kubeflow/pipelines 2.17.0, argocompiler/container.go)."""

SETTLED_SECONDS = 2.0
"""Age from which the digest of a file may be remembered. As in Git, newer files are hashed each time, since another
change in the same tick of the file system's clock (2 s on FAT, 1 s on some network volumes) would not be visible."""

_digests: dict[tuple[int, ...], str] = {}
"""Digests of files that this process has verified, by device, inode, size and the times of their last change."""


def seal(folder: Path, only: Sequence[str] | None = None) -> str:
    """Write the digests of all files in `folder`, or of those named by `only`, and return the digest of them all."""
    files = {name: digest_file(folder / name) for name in (_names(folder) if only is None else only)}
    digest = digest_json(files)
    write_json(folder / SEAL, {"digest": digest, "files": files})
    return digest


def is_sealed(folder: Path) -> bool:
    """Whether a folder has a seal, which a folder made by hand lacks."""
    return (folder / SEAL).is_file()


def sealed_digest(folder: Path) -> str:
    """Return the digest with which `folder` was sealed, without reading its files.

    Code that reads the files, or relies on them, calls `verify`.
    """
    return _seal(folder)["digest"]


def verify(folder: Path, only: Sequence[str] | None = None, *, again: bool = False) -> str:
    """Check the bytes of a sealed folder, or of the files named by `only`, and return its digest.

    Args:
        folder: the sealed folder.
        only: the files that the caller reads, if it does not read all of a large folder.
        again: hash files that this process has hashed before too, since a disk may damage a file without changing its
            times.

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
        digest = _digest_once(path, again)
        if digest != expected:
            raise InputError(
                f"{path}: digest {digest[:12]} differs from the recorded {expected[:12]}; the file is corrupt"
            )
    extra = sorted(set(_names(folder)) - set(sealed["files"])) if only is None else []
    if extra:
        raise InputError(f"{folder / extra[0]}: not listed in {folder / SEAL}; the folder was changed")
    return sealed["digest"]


def require(inputs: Inputs, only: Mapping[str, Sequence[str]] | None = None) -> None:
    """Refuse inputs of a stage whose files did not all arrive as they were sealed.

    A cache knows what a result was made of, not whether its files still exist unchanged: Kubeflow offers results that
    a lifecycle rule has deleted, and its launcher downloads nothing without an error.

    Args:
        inputs: the sealed folder of each input by its name in the pipeline; several for the tasks of a loop.
        only: the files of an input that the stage reads, if it does not read all; the others must exist.

    Raises:
        InputError: a folder is missing or empty, or lacks its seal or a file that the seal lists; or a file differs
            from its digest.
    """
    folders = [
        (name, folder) for name, value in inputs.items() for folder in ([value] if isinstance(value, Path) else value)
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


def check_member(name: str, origin: str) -> None:
    """Check a file name from a bucket, a hub or a list before it is used as a path.

    Args:
        name: path relative to its folder, with slashes.
        origin: source of the name, for the message.

    Raises:
        InputError: the name is absolute, leads out of its folder, or means different files on different systems.
    """
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InputError(
            f"{origin}: lists {name!r}, expected files inside it, with relative names that have no empty part, no part "
            "'.' or '..', no backslash and no NUL"
        )


def _names(folder: Path) -> list[str]:
    """Return the sorted names of the files that a seal covers; not the stage record, which holds timings."""
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
    """Return the digest of a file, which is computed once per process while the file does not change."""
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
    """Return what a sealed folder lacks, in words; empty if it is complete."""
    if not folder.is_dir() or not any(path.is_file() for path in folder.rglob("*")):
        return "arrived empty"
    if not is_sealed(folder):
        return f"lacks {SEAL}"
    names = list(_seal(folder)["files"])
    missing = [name for name in names if not (folder / name).is_file()]
    return f"lacks {len(missing)} of its {len(names)} files, {missing[0]} for one" if missing else ""


def _cause() -> str:
    """Return why files of an input are missing on this system, and what to do about it."""
    if POD_NAME in os.environ:
        return (
            "the object store no longer has its files (expired by a lifecycle rule?), but Kubeflow's cache still "
            "offers it: submit with --no-cache, and for recurring runs set preflight.cache_days (docs/operations.md)"
        )
    return "its files were deleted, but the cache still offers this result: run again with --no-cache"
