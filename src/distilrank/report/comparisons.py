"""Selection of the systems and comparisons of metrics.json that the report shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def drop_duplicates(metrics: dict[str, Any], verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Remove systems that duplicate another one: an anchor that is the champion, or a champion that is the student.

    Args:
        metrics: content of metrics.json of the evaluate stage, which is not modified.
        verdict: content of verdict.json, which has the versions of the systems.
    """
    champion, anchor = ((verdict.get(key) or {}).get("id") for key in ("champion", "anchor"))
    duplicates = {"anchor"} if anchor is not None and anchor == champion else set()
    if verdict.get("outcome") == "unchanged":
        duplicates.add("champion")
    by_system = {
        key: {name: value for name, value in metrics[key].items() if name not in duplicates}
        for key in ("systems", "latency", "reliability", "distribution")
        if isinstance(metrics.get(key), dict)
    }
    comparisons = [entry for entry in metrics.get("comparisons", []) if entry["baseline"] not in duplicates]
    return {**metrics, **by_system, "comparisons": comparisons}


def find_comparison(metrics: Mapping[str, Any], baseline: str, metric: str) -> dict[str, Any] | None:
    """Find the comparison of the student with a baseline by a metric; None if there is none."""
    for entry in metrics.get("comparisons", []):
        if (entry["system"], entry["baseline"], entry["metric"]) == ("student", baseline, metric):
            return entry
    return None
