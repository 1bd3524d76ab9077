from __future__ import annotations

from datetime import date

import pytest

from distilrank.config import Window
from distilrank.core.errors import InputError
from distilrank.data.window import LogWindow, resolve_window

DAYS = [date(2026, 3, day) for day in range(1, 31)]


def test_a_window_is_its_days_from_the_first_to_before_the_last() -> None:
    window = LogWindow.of_days(date(2026, 3, 1), date(2026, 3, 8), date(2026, 3, 10))
    assert window.is_timed
    assert (window.first_day, window.newest_day, window.end_day) == ("2026-03-01", "2026-03-08", "2026-03-10")
    days = ("2026-02-28", "2026-03-01", "2026-03-09", "2026-03-10", "none")
    assert [window.has_day(day) for day in days] == [False, True, True, False, False]


def test_a_log_without_times_has_one_window_with_every_row() -> None:
    window = LogWindow()
    assert not window.is_timed and window.has_day("none") and window.first_day == window.end_day == ""


def test_future_days_are_skipped_by_latest_and_named_by_a_fixed_end() -> None:
    days = [*DAYS, date(2999, 1, 1)]
    resolved = resolve_window(Window(end="latest", days=7, newest_days=2), "", days)
    assert resolved == LogWindow.of_days(date(2026, 3, 22), date(2026, 3, 29), date(2026, 3, 31))
    with pytest.raises(InputError, match="the log runs from 2026-03-01 to 2999-01-01"):
        resolve_window(Window(end="2025-03-01", days=7, newest_days=2), "", days)
