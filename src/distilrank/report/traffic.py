"""Section on drift of the newest traffic from the candidate's training data and from the champion's reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distilrank.rendering.formatting import readable_name

GROUPS = {
    "query": "Queries",
    "product": "Products",
    "clicks": "Clicks",
    "score": "Scores",
    "embedding": "Texts, by their embeddings",
}
"""Labels of the groups of columns, in the order of the page."""

CHANCE = 0.5
"""ROC-AUC of a classifier that cannot tell two samples apart."""


def drift_section(drift: Mapping[str, Any], *, has_summary: bool) -> dict[str, Any]:
    """Build the section with every column of both comparisons, its distance and its limit.

    Args:
        drift: content of drift.json.
        has_summary: whether the drift stage wrote summary.html.
    """
    comparisons = [drift["candidate"], *([drift["champion"]] if drift.get("champion") else [])]
    return {"has_summary": has_summary, "comparisons": [_comparison(comparison) for comparison in comparisons]}


def _comparison(comparison: Mapping[str, Any]) -> dict[str, Any]:
    columns = comparison["columns"]
    return {
        "comparable": True,
        "embedding": None,
        **comparison,
        "groups": _column_groups(comparison),
        "drifted_columns": [readable_name(column["name"]) for column in columns if column["drifted"]],
        "compared_columns": sum(column["value"] is not None for column in columns),
        "new_query_rows": comparison.get("examples", {}).get("queries")
        or [{"query": query, "rows": None} for query in comparison["new_queries"]],
    }


def _column_groups(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Group the columns; within each group, those with the largest share of their limit come first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for column in comparison["columns"]:
        groups.setdefault(column.get("group", ""), []).append(_column_row(column))
    names = [*(name for name in GROUPS if name in groups), *(name for name in groups if name not in GROUPS)]
    return [
        {
            "label": GROUPS.get(name, name),
            "columns": sorted(groups[name], key=lambda row: row["bar_percent"], reverse=True),
        }
        for name in names
    ]


def _column_row(column: Mapping[str, Any]) -> dict[str, Any]:
    """Format a column for the table; `bar_percent` is -1 if it was not compared."""
    value, limit = column["value"], column["threshold"]
    # The limit is in the bar's middle; its left end is the value that two samples of one distribution would have.
    no_drift = CHANCE if column.get("group") == "embedding" else 0.0
    bar_percent = -1.0
    if value is not None:
        share = (value - no_drift) / (limit - no_drift) / 2 if limit > no_drift else 1.0
        bar_percent = round(100 * min(max(share, 0), 1), 1)
    return {
        **column,
        "label": readable_name(column["name"]),
        "bar_percent": bar_percent,
        "moved": column.get("moved", []),
        "means": [column.get("reference_mean"), column.get("current_mean")],
        "shift": column.get("shift", ""),
        "note": column.get("note", ""),
    }
