"""What a stage says while it works: plain lines that read well in a pod's log.

The form is fixed, `distilrank | STAGE | EVENT | TEXT`, so that `python -m pipelines run` can draw bars from it.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STORAGE_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT)
LINE = re.compile(r"distilrank \| (?P<stage>[\w-]+) \| (?P<event>[\w ]+?)(?: \| (?P<text>.*))?$")
COUNT = re.compile(r"(?P<done>\d+)/(?P<total>\d+) (?P<unit>\w+)(?: \| (?P<text>.*))?$")

FAILURES = ("bad input", "stopped", "failed")
"""How a stage ends early: the user's input, on purpose, or by an error that nobody foresaw."""
EVENTS = ("started", "progress", "note", "outcome", "finished", *FAILURES)
"""What a stage prints. `outcome` carries a JSON object: what the stage decided, for those who read its log."""


@dataclass(frozen=True)
class Event:
    """One line of a stage, parsed: `event` is one of EVENTS."""

    stage: str
    event: str
    text: str


def announce(stage: str, event: str, *parts: str) -> None:
    """Print one line; line breaks within `parts` are folded so that it stays one."""
    print(line(stage, event, *parts), flush=True)


def line(stage: str, event: str, *parts: str) -> str:
    """The line that `announce` prints."""
    assert event in EVENTS, event
    return " | ".join(("distilrank", stage, event, *(" ".join(part.split()) for part in parts)))


def parse(line: str) -> Event | None:
    """The event that `line` tells of, or None where it is some other output."""
    match = LINE.search(line.strip())
    if match is None or match["event"] not in EVENTS:
        return None
    return Event(match["stage"], match["event"], match["text"] or "")


class Counter:
    """Counts units of work and prints a line at most every `interval` seconds, with speed and time left."""

    def __init__(self, stage: str, total: int, unit: str, interval: float = 2.0) -> None:
        self.stage, self.total, self.unit, self.interval = stage, total, unit, interval
        self.done = self.resumed = 0
        self.started = self.printed = time.monotonic()

    def skip(self, count: int) -> None:
        """Count work that an earlier, killed attempt has done; it does not enter the speed."""
        self.done += count
        self.resumed += count

    def add(self, count: int, *notes: str) -> None:
        """Count `count` more units done; `notes` (a loss, say) end the line."""
        self.done += count
        now = time.monotonic()
        if now - self.printed >= self.interval or self.done >= self.total:
            self.printed = now
            speed = (self.done - self.resumed) / max(now - self.started, 1e-9)
            left = (self.total - self.done) / speed if speed > 0 else 0.0
            announce(
                self.stage,
                "progress",
                f"{self.done}/{self.total} {self.unit}",
                f"{speed:.1f} {self.unit}/s",
                f"{left:.0f} s left",
                *notes,
            )


@contextmanager
def timed(stage: str, what: str) -> Iterator[None]:
    """Note how long a step took."""
    started = time.monotonic()
    yield
    announce(stage, "note", f"{what} ({time.monotonic() - started:.1f} s)")
