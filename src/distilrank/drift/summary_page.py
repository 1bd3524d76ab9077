"""The page that summarizes drift on one screen: self-contained, without scripts, readable offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distilrank.rendering import templating

GROUP_LABELS = {
    "query": "queries",
    "product": "products shown",
    "clicks": "clicks",
    "score": "scores",
    "embedding": "texts",
}
"""What the columns of each group are about."""


def render(drift: Mapping[str, Any], consequence: str, pages: Sequence[str], *, task: str) -> str:
    """Render the page.

    Args:
        drift: content of `drift.json`.
        consequence: what a drifted champion leads to.
        pages: file names of Evidently's pages in the same folder.
        task: the Kubeflow task whose artifacts these pages are.
    """
    parts = []
    if drift["candidate"]:
        parts.append(("The candidate", "Does what it learned from represent the newest traffic?", drift["candidate"]))
    if drift["champion"]:
        parts.append(("The champion", f"Has traffic moved away from it? {consequence}", drift["champion"]))
    shown = [
        {"label": label, "question": question, **part, "rows_shown": _rows(part)} for label, question, part in parts
    ]
    return templating.environment().get_template("drift.html.j2").render(parts=shown, pages=pages, task=task)


def render_nothing(reason: str) -> str:
    """Render the page that replaces Evidently's if nothing can be compared."""
    return templating.environment().get_template("nothing.html.j2").render(reason=reason)


def _rows(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Table rows of the columns that have a distance, the largest shift relative to its limit first."""
    rows = []
    for column in part["columns"]:
        if column["value"] is None:
            continue
        reach = column["value"] / column["threshold"]
        if column["group"] == "embedding":  # an AUC of 0.5 means no difference
            reach = max(column["value"] - 0.5, 0) / max(column["threshold"] - 0.5, 1e-9)
        rows.append(
            {
                "label": column["name"].replace("_", " "),
                "about": GROUP_LABELS[column["group"]],
                "shift": column["shift"],
                "value": f"{column['value']:.3f}",
                "threshold": f"{column['threshold']:.3f}",
                "drifted": column["drifted"],
                "reach": round(min(reach / 2, 1) * 100, 1),
                "order": reach + 1e6 * column["drifted"],
            }
        )
    return sorted(rows, key=lambda row: -row["order"])
