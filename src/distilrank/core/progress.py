"""Log lines of a stage while it works, plain enough to read in the log of a pod.

Their form is fixed, `distilrank | STAGE | EVENT | TEXT`, so that `python -m pipelines run` can draw bars from them.
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

from distilrank.core.errors import one_line

STORAGE_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT)
FULL = re.compile(
    "|".join(
        [*(re.escape(os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT)), "failed to offload data block"]
    )
)
"""Texts by which libraries report a full disk: the system's, and DuckDB's when its temporary files have filled it."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal executes instead of showing them: C0, DEL and C1, except line breaks and tabs."""
LINE = re.compile(r"distilrank \| (?P<stage>[\w-]+) \| (?P<event>[\w ]+?)(?: \| (?P<text>.*))?$")
COUNT = re.compile(r"(?P<done>\d+)/(?P<total>\d+) (?P<unit>\w+)(?: \| (?P<text>.*))?$")

FAILURES = ("bad input", "stopped", "failed")
"""Events of a stage that ends early: by bad input, on purpose, or by an unexpected error."""
EVENTS = ("started", "progress", "note", "outcome", "finished", *FAILURES)
"""Events that a stage prints. The text of `outcome` is a JSON object with the decision, for readers of the log."""


@dataclass(frozen=True)
class Event:
    """A parsed log line of a stage; `event` is one of EVENTS."""

    stage: str
    event: str
    text: str


def log_event(stage: str, event: str, *parts: str) -> None:
    """Print one log line; line breaks within `parts` are folded into spaces."""
    print(line(stage, event, *parts), flush=True)


def line(stage: str, event: str, *parts: str) -> str:
    """Return the line that `log_event` prints."""
    assert event in EVENTS, event
    return printable(" | ".join(("distilrank", stage, event, *(one_line(part, None) for part in parts))))


def printable(text: str) -> str:
    r"""Return `text` with control characters escaped (`\x1b`), so that no content of a file controls a terminal."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def parse(line: str) -> Event | None:
    """Return the event of a log line, or None if the line is other output."""
    match = LINE.search(line.strip())
    if match is None or match["event"] not in EVENTS:
        return None
    return Event(match["stage"], match["event"], match["text"] or "")


def json_text(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON that keeps other scripts and escapes every control character; JSON escapes only C0."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def storage_refusal(error: BaseException, target: str) -> str:
    """Return a message if the storage refuses (full, read-only, no permission); empty for any other error.

    DuckDB, safetensors and others raise their own errors for a full disk, without an error number.

    Args:
        error: the error.
        target: what was being written, for errors that do not name it.
    """
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        return f"{error.filename or target}: cannot be used ({error.strerror})"
    cause: BaseException | None = error
    while cause is not None:
        if match := FULL.search(str(cause)):
            return f"{target}: cannot be used (the disk is full: {match[0]})"
        cause = cause.__cause__ or cause.__context__
    return ""


class Counter:
    """Counts units of work, and prints a line with speed and remaining time at most every `interval` seconds."""

    def __init__(self, stage: str, total: int, unit: str, interval: float = 2.0) -> None:
        self.stage, self.total, self.unit, self.interval = stage, total, unit, interval
        self.done = self.resumed = 0
        self.started = self.printed = time.monotonic()

    def skip(self, count: int) -> None:
        """Count work of an earlier, killed attempt; it does not count toward the speed."""
        self.done += count
        self.resumed += count

    def add(self, count: int, *notes: str) -> None:
        """Count `count` further units as done; `notes`, such as a loss, are added to the line."""
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
def timed(stage: str, step: str) -> Iterator[None]:
    """Log how long the body took; `step` is in the past tense: `digested the data`."""
    started = time.monotonic()
    yield
    log_event(stage, "note", f"{step} ({time.monotonic() - started:.1f} s)")
