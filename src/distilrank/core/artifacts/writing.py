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
"""Pattern of the temporary names under which files and folders are written: no content of the folder around them."""

STALE_SECONDS = 24 * 3600
"""Age from which a temporary file or folder counts as left by a killed process; writing takes hours at most."""


def temporary_name(path: Path) -> Path:
    """A hidden sibling of `path` that no other process uses: process ids are equal in pods that share a volume."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o666, keep_existing: bool = False) -> Iterator[BinaryIO]:
    """A file to write that takes the name `path` once it is complete and on the disk.

    Args:
        path: its folder is made if missing.
        mode: permissions of the file, less those that the umask takes away.
        keep_existing: whether a file that has the name by then stays, instead of being replaced.

    Raises:
        FileNotFoundError: the folder was removed meanwhile.
        InputError: the storage refuses.
    """
    partial = temporary_name(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # it was there, and mkdir looked what it is when it was gone
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
    except OSError as error:  # write(2) does not know the file's name
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` under a temporary name, then rename: readers see the old file or the new one."""
    with replacing(path) as handle:
        handle.write(text.encode())


@contextlib.contextmanager
def replacing_folder(path: Path, *, keep: Callable[[], bool] | None = None) -> Iterator[Path]:
    """A new folder to fill that takes the name `path` once the body is done and all of it is on the disk.

    Args:
        path: the folder around it is made if missing. What has the name already is deleted once it is replaced.
        keep: whether what has the name by then stays, and the new folder is deleted instead; None: never. An empty
            folder is always replaced.
    """
    with folder_beside(path) as folder:
        yield folder
        settle(folder)
        move_into_place(folder, path, keep=keep)


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A new folder on the file system of `path`, deleted afterwards unless it was moved.

    It lies in a hidden folder, whose age is that of the attempt: a copy takes over the age of its source.
    """
    remove_stale(path.parent, path.name)
    partial = temporary_name(path)
    try:
        (partial / path.name).mkdir(parents=True)
        yield partial / path.name
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_into_place(folder: Path, path: Path, *, keep: Callable[[], bool] | None = None) -> None:
    """Rename a folder that `folder_beside` made to `path`; what is replaced is deleted at the end of its body.

    Where the system can exchange two names, there is always a folder of the name `path`; elsewhere it is missing
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


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two files or folders in one step, as Linux can on its own file systems; whether it was done."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    working_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(working_folder, os.fsencode(one), working_folder, os.fsencode(other), exchange) == 0


def settle(folder: Path) -> None:
    """Give a complete folder and all below it the permissions of new files, and make sure that they are on the disk."""
    folder.chmod(folder.stat().st_mode | stat.S_IRWXU)  # it may be a copy of one that is read only
    permissions = _permissions(folder)
    _permit(folder, permissions)
    follow_umask(folder)
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def follow_umask(folder: Path) -> None:
    """Give all that is below `folder` the permissions of new files: libraries write weights for their owner alone."""
    permissions = _permissions(folder)
    for path in folder.rglob("*"):
        _permit(path, permissions)


def _permissions(folder: Path) -> int:
    """Permissions of a new folder below `folder`; the umask itself cannot be read without changing it."""
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
        with contextlib.suppress(OSError):  # a file system without permissions, or somebody else's file
            path.chmod(expected)


def sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # a file system that has no such call
            raise
    finally:
        os.close(handle)


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in `folder` under temporary names of `name`, or of any name."""
    pattern = PARTIAL if name is None else f".{glob.escape(name)}.*.partial"
    for left in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process may be removing it too
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder to `target` under a temporary name, then rename; an existing `target` is replaced.

    Raises:
        InputError: a file cannot be read, or the storage refuses.
    """
    with replacing_folder(target) as folder:
        copy_into(source, folder)


def copy_into(source: Path, folder: Path) -> None:
    """Copy what a folder holds to another that exists; what is being written there is no part of it.

    Raises:
        InputError: a file cannot be read, or the storage refuses.
    """
    try:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(PARTIAL), dirs_exist_ok=True)
    except shutil.Error as error:  # it holds a reason for each file, and no error number
        path, copy, reason = error.args[0][0]
        raise InputError(f"{path}: cannot be copied to {copy} ({reason})") from error


def copy_files(folder: Path, targets: Mapping[str, str]) -> None:
    """Copy files of `folder` to paths of their own, as Kubeflow shows only a page that is an artifact by itself.

    Args:
        targets: path of each copy, by the file's name in `folder`; its parent must exist.
    """
    for name, target in targets.items():
        shutil.copyfile(folder / name, target)
