"""The heartbeat of the pod that waits for a TrainJob: a file on the volume that the nodes share."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from time import sleep

from distilrank.core import progress

BEAT_SECONDS = 60.0
SILENT_CHECKS = 3  # after an outage of the volume, the nodes may check the heartbeat before the next beat
JOIN_SECONDS = 5.0


@contextlib.contextmanager
def beating(heartbeat: Path) -> Iterator[None]:
    """Touch `heartbeat` regularly while the body runs, so that the nodes know that somebody waits for them."""
    stopped = threading.Event()
    heartbeat.touch()

    def beat() -> None:
        while not stopped.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a volume that is unreachable may come back
                heartbeat.touch()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(JOIN_SECONDS)  # otherwise it could write while the workspace is being removed


def end_when_orphaned(heartbeat: Path, minutes: float, stage: str) -> None:
    """End this process, with status 1 and one line of `stage`, once the heartbeat has been silent for `minutes`.

    A thread checks it, whatever the other threads do. All changes since the last checkpoint are lost.
    """

    def watch() -> None:
        silent_checks = 0
        while silent_checks < SILENT_CHECKS:
            sleep(BEAT_SECONDS)
            with contextlib.suppress(OSError):
                silent_checks = silent_checks + 1 if _silence(heartbeat) > 60 * minutes else 0
        progress.log_event(
            stage,
            "stopped",
            f"no pod has waited for this training for {minutes:g} minutes (compute.trainjob.orphan_minutes): the run "
            "was terminated, or its pod is gone; a later attempt resumes from the last checkpoint",
        )
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _silence(heartbeat: Path) -> float:
    """Seconds since the last beat, by the clock of the volume: the clocks of two nodes may differ."""
    clock = heartbeat.with_name(f"{heartbeat.name}.clock")
    clock.touch()
    return clock.stat().st_mtime - heartbeat.stat().st_mtime
