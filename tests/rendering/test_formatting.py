from __future__ import annotations

import pytest

from distilrank.rendering import formatting


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formatting.format_metric(0.93149), "0.931"),
        (formatting.format_metric(1.0), "1.000"),
        (formatting.format_metric(None), formatting.DASH),
        (formatting.format_delta(0.01312), "+0.0131"),
        (formatting.format_delta(-0.01312), "\N{MINUS SIGN}0.0131"),
        (formatting.format_delta(-0.000001), "+0.0000"),
        (formatting.format_value(1234567), "1\u202f234\u202f567"),
        (formatting.format_value(0.123456), "0.1235"),
        (formatting.format_value(True), "yes"),
        (formatting.format_value(-0.05), "\N{MINUS SIGN}0.05"),
        (formatting.format_percent(0.118), "11.8\u00a0%"),
        (formatting.format_percent(1.0), "100\u00a0%"),
        (formatting.format_value("2026-11-20T08:15:00+00:00"), "2026-11-20 08:15 UTC"),
        (formatting.format_duration(4.21), "4.2 s"),
        (formatting.format_plain(0.93149), "0.9315"),
        (formatting.format_plain(-0.00001), "0.0000"),
        (formatting.format_plain(None), "-"),
        (formatting.format_plain(0.0131, 3, "+"), "+0.013"),
        (formatting.format_plain_interval(-0.0351, 0.095, 3), "[-0.035, 0.095]"),
        (formatting.format_interval(-0.0351, 0.095, 3), "[\N{MINUS SIGN}0.035, 0.095]"),
        (formatting.format_interval(None, 0.095), formatting.DASH),
        (formatting.format_count(1, "query", "queries"), "1 query"),
        (formatting.format_count(2000, "query", "queries"), "2\u202f000 queries"),
        (formatting.format_value(-12345.6), "\N{MINUS SIGN}12\u202f346"),
        (formatting.join_words(["a", "b", "c"]), "a, b and c"),
        (formatting.format_duration(200), "3 min 20 s"),
        (formatting.format_duration(3900), "1 h 5 min"),
    ],
)
def test_numbers_for_people(shown: str, expected: str) -> None:
    assert shown == expected
