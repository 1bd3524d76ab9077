"""Scratch folders for raw log data: deleted when the process ends, however it ends, SIGKILL included.

They may hold queries as they were typed and ids of clients, so they lie where temporary files lie (`TMPDIR`), never on
a volume that outlives the pod. A child process waits for the end of its parent and deletes the folder then. What dies
together with that child (the node, a container) leaves a folder that the next run on the same disk deletes.
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
# Reads until the pipe closes, which the kernel does at the parent's death.
_SWEEP = 'read -r _; rm -rf -- "$0"'


def sweep(base: Path) -> None:
    """Delete the scratch folders in `base` whose processes have died."""
    for left in base.glob(f"{PREFIX}*"):
        if left.lstat().st_uid != os.getuid():  # another user's, or a link that one has laid
            continue
        # Fails while its owner lives, and where locks do not work, so that it may live.
        with contextlib.suppress(OSError, InputError), volume.locked(left / "lock", wait=False):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder(base: Path | None = None) -> Iterator[Path]:
    """A scratch folder for the current process, readable by its user alone; those of dead processes go first.

    Args:
        base: folder to put it in; None: the system's folder for temporary files.
    """
    base = base or Path(tempfile.gettempdir())
    sweep(base)
    unlocked = Path(tempfile.mkdtemp(prefix=_UNLOCKED, dir=base))
    with (unlocked / "lock").open("a") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: `sweep` finds nothing to delete there
            fcntl.flock(lock, fcntl.LOCK_EX)
        owned = unlocked.rename(base / f"{PREFIX}{unlocked.name.removeprefix(_UNLOCKED)}")
        # A session of its own: neither Ctrl-C nor the kill of a process group ends it before its parent.
        sweeper = subprocess.Popen(["sh", "-c", _SWEEP, str(owned)], stdin=subprocess.PIPE, start_new_session=True)
        try:
            yield owned
        finally:
            shutil.rmtree(owned, ignore_errors=True)
            sweeper.communicate(b"\n")  # not by closing the pipe alone, which a forked process may hold open
