"""Cron as Kubeflow reads it (robfig/cron, version 1): six fields, seconds first.

Given five, Kubeflow would take the minute for the second and leave the weekday out, so five are completed here. Its
words for periods (@daily, @every) are refused, for they would hide at which moment a run starts.
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
    """One field: what it is called, and what it may hold."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    """Of the values from `low` on."""

    def value(self, text: str) -> int:
        """A number or a name.

        Raises:
            ValueError: it is neither, or out of range.
        """
        if text.lower() in self.names:
            return self.low + self.names.index(text.lower())
        if not re.fullmatch(r"[0-9]{1,2}", text) or not self.low <= int(text) <= self.high:
            names = f" or {self.names[0]}-{self.names[-1]}" if self.names else ""
            raise ValueError(f"{self.name} {text!r}, expected {self.low}-{self.high}{names}")
        return int(text)

    def values(self, term: str) -> list[int]:
        """What a term stands for: `*`, `?`, `2`, `2-5`, each with a step or without; `2/3` runs to the end."""
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
    """The six fields of a cron expression, as Kubeflow takes them.

    Args:
        expression: five fields, or six with the second first.

    Raises:
        ValueError: Kubeflow would refuse it, or it never comes to pass.
    """
    parts = expression.split()
    if len(parts) not in (5, 6):
        raise ValueError(
            f"{expression!r} has {len(parts)} fields, expected five (minute, hour, day, month, weekday), or six with "
            "the second first"
        )
    parts = ["0", *parts] if len(parts) == 5 else parts
    for field, part in zip(FIELDS, parts, strict=True):
        for term in part.split(","):
            field.values(term)
    completed = " ".join(parts)
    if not any(True for _ in itertools.islice(ticks(completed, datetime(2000, 1, 1)), 1)):
        raise ValueError(f"{expression!r} never comes to pass")
    return completed


def ticks(completed: str, after: datetime) -> Iterator[datetime]:
    """The moments after `after`, in its time zone, at which `completed` starts a run.

    A day must match both its fields if one of them has a star, else either of them: in Kubeflow as in cron.
    """
    try:
        yield from CronSim(" ".join(map(_plain, FIELDS, completed.split())), after)
    except CronSimError:  # a day that none of its months has
        return


def _plain(field: Field, part: str) -> str:
    """A field by its values alone, behind a star if it has one: where libraries read steps and Sundays differently."""
    terms = part.split(",")
    if any(term in ("*", "?") for term in terms):
        return "*"
    values = ",".join(str(value) for value in sorted({value for term in terms for value in field.values(term)}))
    starred = [term.replace("?", "*") for term in terms if term[0] in "*?"]
    return ",".join([*starred, values])
