"""Cron expressions in the dialect of Kubeflow (robfig/cron, version 1): six fields, seconds first.

Given five fields, Kubeflow would read the minute as the second and drop the weekday, so `complete` prepends a zero.
Shorthands (@daily, @every) are refused, since they do not show when a run starts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from cronsim import CronSim, CronSimError


@dataclass(frozen=True)
class Field:
    """One field of a cron expression: its name and its range of values."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    """Names of the values, starting with that of `low`."""

    def value(self, text: str) -> int:
        """Parse a number or a name.

        Raises:
            ValueError: the text is neither, or out of range.
        """
        if text.lower() in self.names:
            return self.low + self.names.index(text.lower())
        if not re.fullmatch(r"[0-9]{1,2}", text) or not self.low <= int(text) <= self.high:
            names = f" or {self.names[0]}-{self.names[-1]}" if self.names else ""
            raise ValueError(f"{self.name} {text!r}, expected {self.low}-{self.high}{names}")
        return int(text)

    def values(self, term: str) -> list[int]:
        """Expand a term: `*`, `?`, `2` or `2-5`, optionally with a step; `2/3` extends to the end of the range."""
        base, slash, step = term.partition("/")
        if slash and (not re.fullmatch(r"[0-9]{1,2}", step) or int(step) == 0):
            raise ValueError(f"{self.name} {term!r}, expected a step of at least 1")
        first, dash, last = base.partition("-")
        if base in ("*", "?"):
            start, end = self.low, self.high
        else:
            start = self.value(first)
            end = self.value(last) if dash else self.high if slash else start
        if start > end:
            raise ValueError(f"{self.name} {term!r}, expected a range that begins before its end")
        return list(range(start, end + 1, int(step or 1)))


FIELDS = (
    Field("second", 0, 59),
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of the month", 1, 31),
    Field("month", 1, 12, tuple("jan feb mar apr may jun jul aug sep oct nov dec".split())),
    Field("day of the week", 0, 6, tuple("sun mon tue wed thu fri sat".split())),
)


def complete(expression: str) -> str:
    """Return a cron expression with the six fields that Kubeflow expects.

    Args:
        expression: five fields, or six with seconds first.

    Raises:
        ValueError: Kubeflow would refuse the expression, or it never matches.
    """
    parts = expression.split()
    if len(parts) not in (5, 6):
        raise ValueError(
            f"{expression!r} has {len(parts)} fields, expected five (minute, hour, day, month, weekday), or six with "
            "seconds first"
        )
    parts = ["0", *parts] if len(parts) == 5 else parts
    for field, part in zip(FIELDS, parts, strict=True):
        for term in part.split(","):
            field.values(term)
    completed = " ".join(parts)
    if not any(True for _ in itertools.islice(ticks(completed, datetime(2000, 1, 1)), 1)):
        raise ValueError(f"{expression!r} never matches: expected a day that exists in one of its months")
    return completed


def ticks(completed: str, after: datetime) -> Iterator[datetime]:
    """Yield the times after `after`, in its time zone, at which the cron expression `completed` starts a run.

    As in cron, a day must match both day fields if one of them contains a star, otherwise either of them.
    """
    try:
        yield from CronSim(" ".join(map(_expand, FIELDS, completed.split())), after)
    except CronSimError:  # a day that does not exist in any of its months
        return


def _expand(field: Field, part: str) -> str:
    """Write a field as a list of values, with a leading star if it has one; libraries differ in steps and Sundays."""
    terms = part.split(",")
    if any(term in ("*", "?") for term in terms):
        return "*"
    values = ",".join(str(value) for value in sorted({value for term in terms for value in field.values(term)}))
    starred = [term.replace("?", "*") for term in terms if term[0] in "*?"]
    return ",".join([*starred, values])
