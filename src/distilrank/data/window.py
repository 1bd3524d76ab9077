"""The days of a log, and its two windows that a run reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from distilrank.config import Window
from distilrank.core import progress
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data import log_store
from distilrank.data.log_aggregates import UNTIMED
from distilrank.data.log_store import LogStore
from distilrank.data.sources.base import Log

_NAMED_DAYS = 5


@dataclass(frozen=True)
class LogWindow:
    """The two windows of a log that a run reads, and the digest of the data behind them.

    The training window is [reference_start, newest_start), the newest traffic [newest_start, newest_end). All three are
    midnights in UTC in ISO 8601; they are empty where the log has no times.
    """

    reference_start: str = ""
    newest_start: str = ""
    newest_end: str = ""
    data_digest: str = ""
    """Digest of all input data of the windows; empty if it was not recorded."""

    @classmethod
    def of_days(cls, reference: date, newest: date, end: date) -> LogWindow:
        """The windows [reference, newest) and [newest, end)."""
        return cls(*(f"{day}T00:00:00+00:00" for day in (reference, newest, end)))

    @property
    def is_timed(self) -> bool:
        """Whether the log has times, and with them a window of newest traffic."""
        return bool(self.newest_start)

    @property
    def first_day(self) -> str:
        """First day of the training window, YYYY-MM-DD; empty without times."""
        return self.reference_start[:10]

    @property
    def newest_day(self) -> str:
        """First day of the newest traffic, YYYY-MM-DD; empty without times."""
        return self.newest_start[:10]

    @property
    def end_day(self) -> str:
        """Day after the last day of the newest traffic, YYYY-MM-DD; empty without times."""
        return self.newest_end[:10]

    def has_day(self, day: str) -> bool:
        """Whether a day (YYYY-MM-DD) lies in one of the windows; without times, every day does."""
        return not self.end_day or self.first_day <= day < self.end_day


def count_rows_by_day(store: LogStore, log: Log) -> dict[date, int]:
    """Number of rows of each day of the log.

    Raises:
        InputError: no row has a time.
    """
    rows_by_day: Counter[date] = Counter()
    for summary in store.summaries(log):
        for day, rows in summary["days"].items():
            if day != UNTIMED:
                rows_by_day[date.fromisoformat(day)] += rows
    if not rows_by_day:
        raise InputError(
            f"log: none of its {len(log.parts)} files has a row with a time, expected at least one"
            f"{_why_untimed(store, log)}"
        )
    return dict(rows_by_day)


def _why_untimed(store: LogStore, log: Log) -> str:
    """The most frequent problem of the first file that has rows, to append to a message."""
    for part, summary in zip(log.parts, store.summaries(log), strict=True):
        if summary["days"]:
            problems = Problems(collect=True)
            with log_store.connect(store.folder) as connection:
                log_store.create_events(connection)
                part.load(connection, problems)
            not_fatal = [problem for problem in problems if not problem.fatal]
            most_frequent = max(not_fatal, key=lambda problem: problem.rows, default=None)
            return f"; {most_frequent.line()}" if most_frequent else ""
    return ""


def resolve_window(window: Window, schedule_time: str, days: Collection[date]) -> LogWindow:
    """Return the windows of a log that a run reads.

    Args:
        window: the configuration. Its `end` is `latest` (the newest day of the log is the last), `schedule` (the last
            complete day before the schedule time is the last) or a time.
        schedule_time: ISO 8601; empty: now.
        days: number of rows of each day of the log.

    Raises:
        InputError: a window holds no day of the log, or a time is not ISO 8601.
    """
    end = _resolve_end(window.end, schedule_time, days)
    try:
        newest_start = end - timedelta(days=window.newest_days)
        reference_start = newest_start - timedelta(days=window.days)
    except OverflowError:
        raise InputError(
            f"window: {window.days} and {window.newest_days} days before {end} begin before year 1"
        ) from None
    last = _last_plausible_day(days) if window.end == "latest" else max(days)
    spans = {"training window": (reference_start, newest_start), "newest traffic": (newest_start, end)}
    for name, (start, stop) in spans.items():
        if not any(start <= day < stop for day in days):
            raise InputError(
                f"window: no impressions in the {name} ({start} to {stop}, exclusive); "
                f"the log runs from {min(days)} to {last}"
            )
    length = window.days + window.newest_days
    expected_days = [reference_start + timedelta(days=number) for number in range(length)]
    missing = [day for day in expected_days if day not in days and day > min(days)]
    if missing:
        named = ", ".join(map(str, missing[:_NAMED_DAYS])) + (" and more" if len(missing) > _NAMED_DAYS else "")
        progress.log_event("preflight", "note", f"the log has no row on {len(missing)} days of the window: {named}")
    return LogWindow.of_days(reference_start, newest_start, end)


def _resolve_end(end: str, schedule_time: str, days: Collection[date]) -> date:
    """The day after the last day of the newest traffic."""
    if end == "latest":
        last = _last_plausible_day(days)
        if max(days) > last:
            progress.log_event(
                "preflight", "note", f"the log has days in the future, up to {max(days)}: they are left out"
            )
        return last + timedelta(days=1)
    if end == "schedule":
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return parse_time(schedule_time or now, "window.end is 'schedule', but the run's schedule time").date()
    return parse_time(end, "window.end").date()


def _last_plausible_day(days: Collection[date]) -> date:
    """The last day up to tomorrow: a shop's clock may be hours ahead, but a row from next year is an error."""
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    return max((day for day in days if day <= tomorrow), default=max(days))


def parse_time(text: str, what: str) -> datetime:
    """Parse a time in ISO 8601; without a zone, it is UTC.

    Args:
        text: the time.
        what: name of the time in the message.

    Raises:
        InputError: the text is not a time.
    """
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InputError(f"{what} is {text!r}, expected an ISO 8601 time such as 2026-03-31T00:00:00Z") from None
