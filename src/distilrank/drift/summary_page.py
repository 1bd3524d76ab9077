"""What moved, on one screen: a self-contained page that needs no network and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distilrank.rendering import templating

WORDS = {"query": "queries", "product": "products shown", "clicks": "clicks", "score": "scores", "embedding": "texts"}
"""What each group of columns is about."""


def render(drift: Mapping[str, Any], consequence: str, pages: Sequence[str], *, task: str) -> str:
    """The page for the content of `drift.json`.

    Args:
        consequence: what follows where traffic has moved away from the champion.
        pages: names of Evidently's pages beside it.
        task: the task on Kubeflow that has each of them as an artifact.
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
    """The page in place of Evidently's where nothing can be compared."""
    return templating.environment().get_template("nothing.html.j2").render(reason=reason)


def _rows(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The columns that have a value, those that moved most first."""
    rows = []
    for column in part["columns"]:
        if column["value"] is None:
            continue
        reach = column["value"] / column["threshold"]
        if column["group"] == "embedding":  # 0.5 is the value of no difference
            reach = max(column["value"] - 0.5, 0) / max(column["threshold"] - 0.5, 1e-9)
        rows.append(
            {
                "label": column["name"].replace("_", " "),
                "about": WORDS[column["group"]],
                "shift": column["shift"],
                "value": f"{column['value']:.3f}",
                "threshold": f"{column['threshold']:.3f}",
                "drifted": column["drifted"],
                "reach": round(min(reach / 2, 1) * 100, 1),
                "order": reach + 1e6 * column["drifted"],
            }
        )
    return sorted(rows, key=lambda row: -row["order"])
