"""Scratch folders for raw log data: deleted when the process ends, even by SIGKILL.

They may hold queries as typed and client ids, so they are temporary files (`TMPDIR`), never on a volume that outlives
the pod. A child process waits for the end of its parent and then deletes the folder. If the child dies too, with its
node or container, the next run on the same disk deletes the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from distilrank.core import volume
from distilrank.core.errors import InputError

PREFIX = "distilrank-scratch-"
_UNLOCKED = ".distilrank-new-"
# Reads until the pipe closes, which the kernel does when the parent dies.
_SWEEP = 'read -r _; rm -rf -- "$0"'


def sweep(base: Path) -> None:
    """Delete the scratch folders in `base` whose processes have died."""
    for left in base.glob(f"{PREFIX}*"):
        # Fails while the owner lives, where locks do not work, since the owner may live, and if the folder has gone.
        with contextlib.suppress(OSError, InputError):
            if left.lstat().st_uid != os.getuid():  # another user's folder or link
                continue
            with volume.locked(left / "lock", wait=False):
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder(base: Path | None = None) -> Iterator[Path]:
    """Create a scratch folder that only the current user can read, after deleting those of dead processes.

    Args:
        base: parent folder; None: the system's folder for temporary files.
    """
    base = base or Path(tempfile.gettempdir())
    sweep(base)
    unlocked = Path(tempfile.mkdtemp(prefix=_UNLOCKED, dir=base))
    with (unlocked / "lock").open("a") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: `sweep` finds nothing to delete there
            fcntl.flock(lock, fcntl.LOCK_EX)
        owned = unlocked.rename(base / f"{PREFIX}{unlocked.name.removeprefix(_UNLOCKED)}")
        # In a separate session, so that neither Ctrl-C nor the kill of a process group ends it before its parent.
        sweeper = subprocess.Popen(["sh", "-c", _SWEEP, str(owned)], stdin=subprocess.PIPE, start_new_session=True)
        try:
            yield owned
        finally:
            shutil.rmtree(owned, ignore_errors=True)
            sweeper.communicate(b"\n")  # closing the pipe is not enough: a forked process may hold it open
