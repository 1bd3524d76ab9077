"""Atomic writes: files and folders are written under temporary names and renamed when they are complete."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from distilrank.core.errors import InputError

PARTIAL = ".*.partial"
"""Pattern of temporary names of files and folders that are being written; they are not content of their folder."""

STALE_SECONDS = 24 * 3600
"""Age from which a temporary file or folder counts as left by a killed process; no write takes as long."""


def temporary_name(path: Path) -> Path:
    """Return a hidden sibling of `path` that no other process uses, not even in a pod with equal process ids."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o666, keep_existing: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file to write, which is renamed to `path` once it is complete and on the disk.

    Args:
        path: final name; its folder is created if missing.
        mode: permissions of the file, before the umask.
        keep_existing: keep a file that has the final name by then, instead of replacing it.

    Raises:
        FileNotFoundError: the folder was removed meanwhile.
        InputError: the storage refuses.
    """
    partial = temporary_name(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # it existed, and was removed before mkdir checked what it is
            if not path.parent.exists():
                raise FileNotFoundError(path.parent) from None
            raise
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        if keep_existing:
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
        else:
            partial.replace(path)
    except FileNotFoundError:
        raise
    except OSError as error:  # errors of write(2) do not name the file
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically: readers see the old file or the new one."""
    with replacing(path) as handle:
        handle.write(text.encode())


@contextlib.contextmanager
def replacing_folder(path: Path, *, keep: Callable[[], bool] | None = None) -> Iterator[Path]:
    """Create a temporary folder to fill, which is renamed to `path` once the body is done and all is on the disk.

    Args:
        path: final name; its parent is created if missing. An existing file or folder is replaced and deleted.
        keep: returns whether to keep an existing folder and delete the new one instead; None: always replace it. An
            empty folder is always replaced.
    """
    with folder_beside(path) as folder:
        yield folder
        settle(folder)
        move_into_place(folder, path, keep=keep)


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Create a temporary folder on the file system of `path`, which is deleted afterwards unless it was moved.

    It lies in a hidden folder whose age is that of the attempt, since a copied folder keeps the age of its source.
    """
    remove_stale(path.parent, path.name)
    partial = temporary_name(path)
    try:
        (partial / path.name).mkdir(parents=True)
        yield partial / path.name
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_into_place(folder: Path, path: Path, *, keep: Callable[[], bool] | None = None) -> None:
    """Rename a folder of `folder_beside` to `path`; a replaced folder is deleted at the end of its body.

    Where the system can exchange two names, a folder of the name `path` exists at all times; elsewhere it is missing
    for a moment.

    Args:
        keep: as for `replacing_folder`.
    """
    while True:
        try:
            folder.rename(path)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        if keep is not None and keep():
            return
        if _exchange(folder, path):
            break
        with contextlib.suppress(FileNotFoundError):
            path.rename(folder.with_name(f"replaced-{uuid.uuid4().hex}"))
    sync(path.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two files or folders in one step, which only Linux supports; return whether that worked."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    working_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(working_folder, os.fsencode(first), working_folder, os.fsencode(second), exchange) == 0


def settle(folder: Path) -> None:
    """Give a complete folder and its content the permissions of new files, and flush them to the disk."""
    folder.chmod(folder.stat().st_mode | stat.S_IRWXU)  # it may be a copy of a read-only folder
    permissions = _permissions(folder)
    _permit(folder, permissions)
    follow_umask(folder)
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def follow_umask(folder: Path) -> None:
    """Give the content of `folder` the permissions of new files; libraries write weights for the owner only."""
    permissions = _permissions(folder)
    for path in folder.rglob("*"):
        _permit(path, permissions)


def _permissions(folder: Path) -> int:
    """Return the permissions of a new folder in `folder`; the umask itself cannot be read without changing it."""
    probe = temporary_name(folder / "umask")
    probe.mkdir()
    try:
        return stat.S_IMODE(probe.stat().st_mode) & 0o777
    finally:
        probe.rmdir()


def _permit(path: Path, permissions: int) -> None:
    if path.is_symlink():
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    expected = (mode & ~0o777) | (permissions if path.is_dir() else permissions & 0o666)
    if mode != expected:
        with contextlib.suppress(OSError):  # a file system without permissions, or another user's file
            path.chmod(expected)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # a file system without fsync
            raise
    finally:
        os.close(handle)


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in `folder` under temporary names, of `name` only or of any name."""
    pattern = PARTIAL if name is None else f".{glob.escape(name)}.*.partial"
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process may be removing it too
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder to `target` atomically; an existing `target` is replaced.

    Raises:
        InputError: a file cannot be read, or the storage refuses.
    """
    with replacing_folder(target) as folder:
        copy_into(source, folder)


def copy_into(source: Path, folder: Path) -> None:
    """Copy the content of a folder into an existing folder, without files that are still being written.

    Raises:
        InputError: a file cannot be read, or the storage refuses.
    """
    try:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(PARTIAL), dirs_exist_ok=True)
    except shutil.Error as error:  # it lists a reason per file, and has no error number
        path, copy, reason = error.args[0][0]
        raise InputError(f"{path}: cannot be copied to {copy} ({reason})") from error


def copy_files(folder: Path, targets: Mapping[str, str]) -> None:
    """Copy files of `folder` to separate paths, since Kubeflow shows only pages that are artifacts themselves.

    Args:
        folder: folder of the files.
        targets: path of each copy by the name of the file in `folder`; its parent must exist.
    """
    for name, target in targets.items():
        shutil.copyfile(folder / name, target)
