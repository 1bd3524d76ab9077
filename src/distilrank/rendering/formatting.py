"""Formatting of numbers, times and lists for pages, figures, terminals, verdicts and model cards.

The functions whose names begin with `format_plain` write ASCII, for terminals, logs and files. The other functions
write for pages: a real minus sign, narrow spaces between groups of digits, and a dash where there is no value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"
_ISO_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(?:Z|\+00:00)")


# For terminals, logs and files ------------------------------------------------------------------------------------


def format_plain(value: float | None, places: int = 4, sign: str = "-") -> str:
    """Format a number with a fixed number of decimals (0.9314); - if there is none.

    Args:
        value: the number; one that rounds to zero has no minus sign.
        places: number of decimals.
        sign: "+" prints the sign of positive numbers too.
    """
    return "-" if value is None else f"{value:{sign}z.{places}f}"


def format_plain_interval(low: float, high: float, places: int = 4) -> str:
    """Format a confidence interval: [-0.0035, 0.0095]."""
    return f"[{format_plain(low, places)}, {format_plain(high, places)}]"


def format_plain_value(value: float | str | None) -> str:
    """Format the value or bound of a check: numbers with 4 significant digits, texts unchanged; - if there is none."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4g}"


# For pages --------------------------------------------------------------------------------------------------------


def format_metric(value: float | None, places: int = 3) -> str:
    """Format a metric, a probability or a p-value: 0.931, or a dash."""
    return DASH if value is None else _typeset(format_plain(value, places))


def format_delta(value: float | None, places: int = 4) -> str:
    """Format a difference with its sign: +0.0131, or a dash."""
    return DASH if value is None else _typeset(format_plain(value, places, "+"))


def format_interval(low: float | None, high: float | None, places: int = 4) -> str:
    """Format a confidence interval: [−0.0035, 0.0095], or a dash."""
    return DASH if low is None or high is None else _typeset(format_plain_interval(low, high, places))


def format_bound(value: Any, digits: int = 4) -> str:
    """Format the value or bound of a check: numbers with significant digits; a dash for a text, e.g. a version id."""
    if isinstance(value, str) or value is None:
        return DASH
    return _typeset(f"{value:.{digits}g}") if isinstance(value, float) else format_value(value)


def format_value(value: Any) -> str:
    """Format any value: integers in groups of three digits, others with 4 significant digits, times without seconds."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) >= 1000):
        return _group(int(value))
    if isinstance(value, float):
        return _group(round(value)) if abs(value) >= 10_000 else _typeset(f"{value:.4g}")
    if isinstance(value, list | tuple):
        return ", ".join(format_value(part) for part in value)
    return _ISO_TIME.sub(r"\1 \2 UTC", str(value))


def format_count(number: int, singular: str, plural: str = "") -> str:
    """Format a count with its noun: `1 query`, `2 queries`; `plural` is needed unless it is `singular` with an s."""
    return f"{format_value(number)} {singular if number == 1 else plural or singular + 's'}"


def format_percent(share: float | None) -> str:
    """Format a share in [0, 1] as a percentage with up to 3 digits: 11.8 %, or a dash."""
    if share is None:
        return DASH
    percentage = 100 * share
    places = 0 if percentage >= 99.95 or percentage == round(percentage) else 1
    return f"{percentage:.{places}f}\N{NO-BREAK SPACE}%"


def format_duration(seconds: float | None) -> str:
    """Format a duration: 4.2 s, 3 min 20 s or 1 h 5 min, or a dash."""
    if seconds is None:
        return DASH
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_milliseconds(value: float | None) -> str:
    """Format milliseconds with 3 significant digits: 6.93 ms, or a dash."""
    return DASH if value is None else f"{value:.3g} ms"


def join_words(words: Sequence[str]) -> str:
    """Join at least one word with commas, and `and` before the last."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def readable_name(key: str) -> str:
    """Format a key of a file or of the configuration as words: `new_query_share` is `new query share`."""
    return key.replace("_", " ")


def _typeset(text: str) -> str:
    return text.replace("-", MINUS)


def _group(number: int) -> str:
    return _typeset(f"{number:,}".replace(",", NARROW_SPACE))
