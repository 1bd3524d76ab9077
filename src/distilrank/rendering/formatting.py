"""Numbers, times and lists of words as the pages print them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from distilrank.rendering import figures

DASH = "\N{EN DASH}"
ISO_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(?:Z|\+00:00)")


def measure_text(value: float | None, places: int = 3) -> str:
    """A measure as papers print it, .931, or a dash where there is none."""
    return DASH if value is None else _bare(f"{value:.{places}f}")


def delta_text(value: float | None, places: int = 4) -> str:
    """A difference with its sign, +.0131, or a dash."""
    return DASH if value is None else _bare(f"{value:+z.{places}f}")


def bound_text(value: Any, digits: int = 4) -> str:
    """What a check was held to: numbers as papers print them; a version's id is told by the check's sentence."""
    if isinstance(value, str) or value is None:
        return DASH
    return _bare(f"{value:.{digits}g}") if isinstance(value, float) else figure_text(value)


def _bare(text: str) -> str:
    """The number without its leading zero, and with a real minus."""
    return re.sub(r"^([+-]?)0\.", r"\1.", text).replace("-", figures.MINUS)


def figure_text(value: Any) -> str:
    """Any value: whole numbers in groups of three digits, others to 4 significant digits, times without seconds."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) >= 1000):
        return f"{int(value):,}".replace(",", "\u202f").replace("-", figures.MINUS)
    if isinstance(value, float):
        return (
            f"{value:,.0f}".replace(",", "\u202f")
            if abs(value) >= 10000
            else f"{value:.4g}".replace("-", figures.MINUS)
        )
    if isinstance(value, list | tuple):
        return ", ".join(figure_text(part) for part in value)
    return ISO_TIME.sub(r"\1 \2 UTC", str(value))


def percent_text(value: float | None) -> str:
    """A share in [0, 1] as a percentage of up to 3 digits."""
    if value is None:
        return DASH
    percentage = 100 * value
    places = 0 if percentage >= 99.95 or percentage == round(percentage) else 1
    return f"{percentage:.{places}f}\u00a0%"


def duration_text(seconds: float | None) -> str:
    """Seconds as 4.2 s, 3 min 20 s or 1 h 5 min."""
    if seconds is None:
        return DASH
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def listing(words: Sequence[str]) -> str:
    """The words with commas, and `and` before the last."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
