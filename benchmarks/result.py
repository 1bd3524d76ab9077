"""Output of benchmarks: progress on standard error, one line of JSON on standard output."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any

from scipy.stats import beta


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"benchmark | {text}", file=sys.stderr, flush=True)


def bar(name: str, value: float, bound: float | str, holds: bool) -> dict[str, Any]:
    """Return a figure with its required bound, and whether the bound holds."""
    return {"name": name, "value": round(value, 5), "bound": bound, "holds": bool(holds)}


def at_most(name: str, value: float, bound: float) -> dict[str, Any]:
    """Return a bar that holds for values up to `bound`."""
    return bar(name, value, bound, value <= bound)


def at_least(name: str, value: float, bound: float) -> dict[str, Any]:
    """Return a bar that holds for values from `bound` upwards."""
    return bar(name, value, bound, value >= bound)


def report(benchmark: str, machine: dict[str, Any], figures: dict[str, Any], bars: list[dict[str, Any]]) -> None:
    """Print the bars as a table to standard error, and all results as a line of JSON to standard output."""
    for row in bars:
        say(f"{row['name']:<44} {row['value']:>12} bound {row['bound']:>7}  {'holds' if row['holds'] else 'FAILS'}")
    figures = figures | {"at": datetime.now(UTC).isoformat(timespec="seconds")}
    print(json.dumps({"benchmark": benchmark, "machine": machine, "figures": figures, "bars": bars}))


def clopper_pearson(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided confidence interval of a rate.

    Source: Clopper and Pearson, Biometrika 26, 1934.
    """
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, hits, trials - hits + 1) if hits else 0.0
    high = beta.ppf(1 - tail, hits + 1, trials - hits) if hits < trials else 1.0
    return float(low), float(high)
