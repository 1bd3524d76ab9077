"""Cron expressions in Kubeflow's dialect."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from pipelines.recurring_runs import cron


@pytest.mark.parametrize(
    ("expression", "completed"),
    [
        ("0 3 * * 1", "0 0 3 * * 1"),
        ("15 0 3 * * 1", "15 0 3 * * 1"),
        ("*/10 * * * MON-fri", "0 */10 * * * MON-fri"),
        ("0 0 1,15 jan/3 ?", "0 0 0 1,15 jan/3 ?"),
    ],
)
def test_five_fields_get_a_second(expression: str, completed: str) -> None:
    assert cron.complete(expression) == completed


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("@daily", "'@daily' has 1 fields, expected five (minute, hour, day, month, weekday), or six with"),
        ("0 0 3 * * 1 2027", "has 7 fields"),
        ("60 3 * * 1", "minute '60', expected 0-59"),
        ("0 24 * * *", "hour '24', expected 0-23"),
        ("0 3 0 * *", "day of the month '0', expected 1-31"),
        ("0 3 * * 7", "day of the week '7', expected 0-6 or sun-sat"),
        ("0 3 L * *", "day of the month 'L', expected 1-31"),
        ("0 3 15W * *", "day of the month '15W', expected 1-31"),
        ("0 3 * * 1#2", "day of the week '1#2', expected 0-6 or sun-sat"),
        ("0 3 * january *", "month 'january', expected 1-12 or jan-dec"),
        ("0 3 * * fri-mon", "day of the week 'fri-mon', expected a range that begins before its end"),
        ("*/0 3 * * *", "minute '*/0', expected a step of at least 1"),
        ("1--3 3 * * *", "minute '-3', expected 0-59"),
        ("1, 3 * * *", "minute '', expected 0-59"),
        ("0 0 31 2 *", "'0 0 31 2 *' never matches"),
    ],
)
def test_what_kubeflow_would_refuse_or_misread_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        cron.complete(expression)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 13 * fri", "2026-11-27 2026-12-04 2026-12-11 2026-12-13"),  # either day
        ("0 0 */10 * fri", "2026-12-11 2027-01-01 2027-05-21 2027-06-11"),  # both days: one has a star
        ("0 0 * * 5/1", "2026-11-27 2026-11-28 2026-12-04 2026-12-05"),  # to the end, which is Saturday
        ("0 0 1,*/15 * wed", "2026-12-16 2027-03-31 2027-06-16 2027-09-01"),  # a star in a list
    ],
)
def test_ticks_are_those_of_kubeflow(expression: str, expected: str) -> None:
    ticks = cron.ticks(cron.complete(expression), datetime(2026, 11, 24, tzinfo=UTC))
    assert " ".join(f"{next(ticks):%Y-%m-%d}" for _ in range(4)) == expected


def test_ticks_follow_the_clusters_clock() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    ticks = cron.ticks(cron.complete("0 3 * * *"), datetime(2026, 10, 24, tzinfo=berlin))
    hours = [next(ticks).astimezone(UTC).hour for _ in range(3)]
    assert hours == [1, 2, 2]  # summer time ends on the 25th
