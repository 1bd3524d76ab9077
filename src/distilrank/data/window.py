"""The days of a log, and the window of it that a run reads."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta

from distilrank.config import Window
from distilrank.core import progress
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data import log_store
from distilrank.data.log_store import UNTIMED, LogStore
from distilrank.data.sources import base


def days_of(store: LogStore, log: base.Log) -> dict[date, int]:
    """Rows of each day of the log.

    Raises:
        InputError: no row has a time.
    """
    days: Counter[date] = Counter()
    for found in store.summaries(log):
        for day, rows in found["days"].items():
            if day != UNTIMED:
                days[date.fromisoformat(day)] += rows
    if not days:
        raise InputError(
            f"log: none of its {len(log.parts)} files has a row with a time, expected some{_why_untimed(store, log)}"
        )
    return dict(days)


def _why_untimed(store: LogStore, log: base.Log) -> str:
    """What is wrong with most rows of the first file that has any, to be added to a message."""
    for part, found in zip(log.parts, store.summaries(log), strict=True):
        if found["days"]:
            problems = Problems(collect=True)
            with log_store.connect(store.folder) as connection:
                log_store.create_events(connection)
                part.load(connection, problems)
            most = max((problem for problem in problems if not problem.fatal), key=lambda one: one.rows, default=None)
            return f"; {most.line()}" if most else ""
    return ""


def resolve_window(window: Window, schedule_time: str, days: dict[date, int]) -> tuple[str, str, str]:
    """Reference start, newest start and newest end, all midnights; a window starts inclusive, ends exclusive.

    `latest` ends with the newest day of the log, `schedule` before the day of the schedule time, which is not over.
    """
    first, last = min(days), max(days)
    if window.end == "latest":
        # A shop's clock may be ahead of ours by some hours; a row of next year is a mistake, and no newest day.
        tomorrow = datetime.now(UTC).date() + timedelta(days=1)
        last = max((day for day in days if day <= tomorrow), default=last)
        if max(days) > last:
            progress.log_event(
                "preflight", "note", f"the log has days in the future, up to {max(days)}: they are left out"
            )
        end = last + timedelta(days=1)
    elif window.end == "schedule":
        now = datetime.now(UTC).isoformat(timespec="seconds")
        end = parse_time(schedule_time or now, "window.end is 'schedule', but the run's schedule time").date()
    else:
        end = parse_time(window.end, "window.end").date()
    try:
        newest_start = end - timedelta(days=window.newest_days)
        reference_start = newest_start - timedelta(days=window.days)
    except OverflowError:
        raise InputError(
            f"window: {window.days} and {window.newest_days} days before {end} begin before the calendar does"
        ) from None
    spans = {"training window": (reference_start, newest_start), "newest traffic": (newest_start, end)}
    for name, (start, stop) in spans.items():
        if not any(start <= day < stop for day in days):
            raise InputError(
                f"window: no impressions in the {name} ({start} to {stop}, exclusive); "
                f"the log runs from {first} to {last}"
            )
    missing = [
        day
        for number in range(window.days + window.newest_days)
        if (day := reference_start + timedelta(days=number)) not in days and first < day
    ]
    if missing:
        some = ", ".join(map(str, missing[:5])) + (" and more" if len(missing) > 5 else "")
        progress.log_event("preflight", "note", f"the log has no row on {len(missing)} days of the window: {some}")
    return tuple(f"{day}T00:00:00+00:00" for day in (reference_start, newest_start, end))  # type: ignore[return-value]


def parse_time(text: str, what: str) -> datetime:
    """A time in ISO 8601, in UTC where it names no zone.

    Raises:
        InputError: it is none; `what` names it in the message.
    """
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InputError(f"{what} is {text!r}, expected an ISO 8601 time such as 2026-03-31T00:00:00Z") from None
