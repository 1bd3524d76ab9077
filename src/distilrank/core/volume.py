"""The volume that outlives runs: creates its folders, and checks that a pod can write to them.

Kubeflow's pods have no `fsGroup`, so whether user 10001 can write a volume depends on the volume. `prepare` runs in a
pod with one, `check` in a pod without, and neither needs root.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from distilrank.core.errors import InputError, one_line

MODE = 0o2775
"""Mode of the folders: new files in them belong to their group, whose members may write."""


def prepare(root: Path, folders: Sequence[str]) -> None:
    """Create the folders, writable for the volume's group, and check them; repeatable.

    Args:
        root: where the volume is mounted.
        folders: their paths, relative to `root`.

    Raises:
        InputError: a folder cannot be created or used; the message says what an administrator has to do.
    """
    for folder in _paths(root, folders):
        with _explaining_failures(root, folder):
            folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # another's folder, or a file system without modes: the check decides
            folder.chmod(MODE)
    check(root, folders)


def check(root: Path, folders: Sequence[str]) -> None:
    """Check that this process can use each folder as runs do, by `write_through`.

    Args:
        root: where the volume is mounted.
        folders: their paths, relative to `root`.

    Raises:
        InputError: a folder cannot be used; the message says what an administrator has to do.
    """
    for folder in _paths(root, folders):
        with _explaining_failures(root, folder):
            write_through(folder)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock against all other processes and threads.

    Args:
        path: file to lock; created if missing.
        wait: whether to wait until nobody else holds the lock.

    Raises:
        InputError: the file system grants a lock twice.
        BlockingIOError: another process or thread holds the lock.
        OSError: the file system has no locks, or the file cannot be opened.
    """
    # flock, not lockf: it also keeps threads of one process apart, and closing another handle does not drop it.
    with path.open("a") as handle, path.open("a") as other:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield
            return
        raise InputError(
            f"{path}: its lock is granted a second time while it is held, so two writers could damage what it guards; "
            "expected a file system with working locks (for NFS without nolock and local_lock, for SMB without nobrl)"
        )


def write_through(folder: Path) -> None:
    """Write a file in `folder`, flush it, lock it, rename it, read it, remove it.

    Raises:
        OSError: the file system refuses one of these.
        InputError: the file does not read as it was written.
    """
    partial = folder / f".{uuid.uuid4().hex[:8]}.partial"
    renamed = partial.with_suffix(".written")
    try:
        with partial.open("wb") as handle:
            handle.write(b"written\n")
            handle.flush()
            os.fsync(handle.fileno())
        with locked(partial):
            pass
        partial.rename(renamed)
        if renamed.read_bytes() != b"written\n":
            raise InputError(f"{folder}: a file does not read as it was written: expected a sound file system")
    finally:
        for path in (partial, renamed):
            with contextlib.suppress(OSError):
                path.unlink()


def _paths(root: Path, folders: Sequence[str]) -> list[Path]:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder, expected the path at which the volume is mounted")
    for folder in folders:
        parts = PurePosixPath(folder).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise InputError(f"folder {folder!r}: expected a path below {root}, relative to it")
    return [root / folder for folder in folders]


@contextlib.contextmanager
def _explaining_failures(root: Path, folder: Path) -> Iterator[None]:
    """Turn an OSError on `folder` into an InputError that says what to do about it."""
    try:
        yield
    except OSError as error:
        raise InputError(_explain(root, folder, error)) from error


def _explain(root: Path, folder: Path, error: OSError) -> str:
    """Return why the folder cannot be used, and what to do about it."""
    user, group = os.geteuid(), os.getegid()
    reason = error.strerror or one_line(error)
    if error.errno not in (errno.EACCES, errno.EPERM):
        hint = "expected a file system with rename, fsync and locks" if error.errno != errno.ENOSPC else "enlarge it"
        return f"{folder}: cannot be used by user {user}, group {group} ({reason}): {hint}"
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    status = existing.stat()
    mode = stat.S_IMODE(status.st_mode)
    return (
        f"{folder}: user {user}, group {group} cannot write here ({reason}; {existing} has owner {status.st_uid}, "
        f"group {status.st_gid}, mode {mode:04o}), and fsGroup has not changed that: as root, where the volume is "
        f"mounted at {root}, run `chown -R {user}:{group} {root} && chmod -R u+rwX {root}`; or export it (NFS) with "
        f"all_squash,anonuid={user},anongid={group}; or give its storage class mountOptions uid={user},gid={group} "
        "(SMB)"
    )
