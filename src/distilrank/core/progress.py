"""What a stage says while it works: plain lines that read well in a pod's log.

The form is fixed, `distilrank | STAGE | EVENT | TEXT`, so that `python -m pipelines run` can draw bars from it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

STORAGE_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT)
FULL = re.compile(
    "|".join(
        [*(re.escape(os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT)), "failed to offload data block"]
    )
)
"""How libraries tell of a full disk: in the system's words, and DuckDB of one that its temporary files have filled."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal obeys rather than shows, line breaks and tabs aside: C0, DEL and C1."""
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


def log_event(stage: str, event: str, *parts: str) -> None:
    """Print one line; line breaks within `parts` are folded so that it stays one."""
    print(line(stage, event, *parts), flush=True)


def line(stage: str, event: str, *parts: str) -> str:
    """The line that `announce` prints."""
    assert event in EVENTS, event
    return printable(" | ".join(("distilrank", stage, event, *(" ".join(part.split()) for part in parts))))


def printable(text: str) -> str:
    r"""`text` with control characters as people read them (`\x1b`): a file's content must not command a terminal."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def parse(line: str) -> Event | None:
    """The event that `line` tells of, or None where it is some other output."""
    match = LINE.search(line.strip())
    if match is None or match["event"] not in EVENTS:
        return None
    return Event(match["stage"], match["event"], match["text"] or "")


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON, other scripts as they are and every control character escaped; JSON itself escapes C0 alone."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def storage_refusal(error: BaseException, place: str) -> str:
    """What to say where the storage refuses, be it in the words of a library; empty where the error is another one.

    DuckDB, safetensors and others raise errors of their own for a full disk, which have no error number.

    Args:
        place: what was being written, where the error does not name it.
    """
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        return f"{error.filename or place}: cannot be used ({error.strerror})"
    cause: BaseException | None = error
    while cause is not None:
        if found := FULL.search(str(cause)):
            return f"{place}: cannot be used (the disk is full: {found[0]})"
        cause = cause.__cause__ or cause.__context__
    return ""


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
            log_event(
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
    log_event(stage, "note", f"{what} ({time.monotonic() - started:.1f} s)")
