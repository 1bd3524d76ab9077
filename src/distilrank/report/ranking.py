"""Sections on relevance: the student against every system, by slice of queries, and query by query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup

from distilrank.core import schemas
from distilrank.evaluation.significance import TIE
from distilrank.rendering import figures
from distilrank.rendering.formatting import format_delta, format_value, join_words, readable_name
from distilrank.rendering.labels import BASELINES, METRICS, SYSTEMS, metric_label
from distilrank.report.comparisons import find_comparison

PLOTTED_METRICS = ("ndcg_at_10", "pair_accuracy", "roc_auc")
"""Metrics whose differences are plotted; the table has all metrics."""

SLICE_COLUMNS = {
    "stratum": "Search frequency",
    "query_words": "Words in the query",
    "query_characters": "Characters in the query",
}
"""Labels of slice columns; other columns are shown by their names."""

MAX_NAMED_SLICES = 4
"""Largest number of slices that a sentence names."""


def relevance_section(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Build the section with every system by every metric, and the student's difference from each baseline."""
    systems = {name: metrics["systems"][name] for name in SYSTEMS if name in metrics["systems"]}
    columns = []
    for key, metric in METRICS.items():
        values = [system[key] for system in systems.values() if system.get(key) is not None]
        best = (max(values) if metric.higher_is_better else min(values)) if values else None
        columns.append({"key": key, "metric": metric, "best": best})
    comparisons = [entry for entry in metrics.get("comparisons", []) if entry["system"] == "student"]
    # Random order is so far off that it would squeeze the other differences into a corner of the plot.
    plotted = [entry for entry in comparisons if entry["baseline"] != "random"]
    plotted_metrics = [key for key in PLOTTED_METRICS if any(entry["metric"] == key for entry in plotted)]
    return {
        "systems": [{"name": name, "label": SYSTEMS[name], "values": values} for name, values in systems.items()],
        "columns": columns,
        "columns_within_queries": sum(metric.is_within_queries for metric in METRICS.values()),
        "sentence": _standing_text(metrics),
        "deltas": Markup(figures.plot_deltas(plotted, plotted_metrics)) if plotted_metrics else "",
        "comparisons": [
            {
                **entry,
                "baseline_label": SYSTEMS.get(entry["baseline"], entry["baseline"]),
                "metric_label": metric.label,
            }
            for key, metric in METRICS.items()
            for entry in comparisons
            if entry["metric"] == key
        ],
        "confidence": metrics.get("protocol", {}).get("confidence", 0.95),
    }


def _standing_text(metrics: Mapping[str, Any]) -> str:
    """Say which baselines the student is better than, on par with or worse than by nDCG@10; empty if none."""
    standings: dict[str, list[str]] = {}
    for baseline, label in BASELINES.items():
        entry = find_comparison(metrics, baseline, "ndcg_at_10")
        if entry:
            is_better, is_worse = entry["ci_low"] > 0, entry["ci_high"] < 0
            standing = "better than" if is_better else "worse than" if is_worse else "on par with"
            standings.setdefault(standing, []).append(label)
    clauses = [f"{standing} {join_words(labels)}" for standing, labels in standings.items()]
    if not clauses:
        return ""
    *others, last = clauses
    return f"By nDCG@10, the student is {', '.join(others)}{', and ' if others else ''}{last}."


# Slices of queries ------------------------------------------------------------------------------------------------


def slices_section(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Build forest plots of the student against each baseline by slice; None if no slice was compared."""
    slices = metrics.get("slices", {})
    if not slices.get("rows"):
        return None
    significance_level = 1 - metrics.get("protocol", {}).get("confidence", 0.95)
    keys = {(entry["baseline"], entry["metric"]) for row in slices["rows"] for entry in row["comparisons"]}
    forests = []
    for baseline, metric in sorted(keys, key=_forest_rank):
        if baseline in metrics["systems"]:
            rows = _forest_rows(slices["rows"], baseline, metric, significance_level)
            forests.append(
                {
                    "baseline": SYSTEMS[baseline],
                    "against": BASELINES[baseline],
                    "metric": metric_label(metric),
                    "rows": rows,
                    "sentence": _slices_text(rows, BASELINES[baseline], metric_label(metric)),
                    "limit": _add_positions(rows),
                }
            )
    too_small = [
        f"{_slice_label(row['column'])} = {row['value']} ({format_value(row['queries'])})"
        for row in slices.get("left_out", [])
    ]
    return {"forests": forests, "min_queries": slices["min_queries"], "too_small": too_small}


def _forest_rank(key: tuple[str, str]) -> tuple[int, bool, str, str]:
    """Return the sort key that puts the most important comparison, with the champion by nDCG@10, first."""
    baseline, metric = key
    order = ("champion", "bm25", "anchor")
    return order.index(baseline) if baseline in order else len(order), metric != "ndcg_at_10", baseline, metric


def _slice_label(column: str) -> str:
    return SLICE_COLUMNS.get(column, readable_name(column).capitalize())


def _forest_rows(
    slice_rows: Sequence[Mapping[str, Any]], baseline: str, metric: str, significance_level: float
) -> list[dict[str, Any]]:
    """List one row per slice; `tone` is `better` or `worse` if the difference is significant by Holm's correction."""
    rows = []
    for row in slice_rows:
        for entry in row["comparisons"]:
            if (entry["baseline"], entry["metric"]) != (baseline, metric):
                continue
            is_significant = entry["p_holm"] is not None and entry["p_holm"] < significance_level
            rows.append(
                {
                    **entry,
                    "column": _slice_label(row["column"]),
                    "value": row["value"],
                    "queries": row["queries"],
                    "pairs": row["pairs"],
                    "student_value": row["systems"].get("student", {}).get(metric),
                    "baseline_value": row["systems"].get(baseline, {}).get(metric),
                    "tone": "level" if not is_significant else "better" if entry["delta"] > 0 else "worse",
                }
            )
    return rows


def _add_positions(rows: list[dict[str, Any]]) -> float:
    """Add the position of its interval to each row, in percent of the plot's width; return the limit at 100 %."""
    limit = 1.08 * max((abs(row[key]) for row in rows for key in ("ci_low", "ci_high")), default=0) or 0.01
    for row in rows:
        for key in ("ci_low", "delta", "ci_high"):
            row[f"{key}_percent"] = round(50 + 50 * row[key] / limit, 2)
    return limit


def _slices_text(rows: Sequence[Mapping[str, Any]], baseline: str, metric: str) -> str:
    """Name the slices on which the student is significantly worse or better than the baseline."""
    clauses = []
    for tone in ("worse", "better"):
        slices = [
            f"{row['column'].lower()} = {row['value']} ({format_delta(row['delta'], 3)})"
            for row in rows
            if row["tone"] == tone
        ]
        if slices:
            more = len(slices) - MAX_NAMED_SLICES
            named = [*slices[:MAX_NAMED_SLICES], *([f"{more} more"] if more > 0 else [])]
            clauses.append(f"significantly {tone} than {baseline} for {join_words(named)}")
    if clauses:
        return f"By {metric}, the student is {', and '.join(clauses)}."
    return f"By {metric}, the student does not differ significantly from {baseline} in any of {len(rows)} slices."


# Query by query ---------------------------------------------------------------------------------------------------


def queries_section(evaluation: Path, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Build the section on wins and losses by query; None if student or baseline was not measured.

    Args:
        evaluation: folder of the evaluate stage, with per_query.parquet.
        metrics: content of its metrics.json.
    """
    examples = metrics.get("examples") or {}
    if examples.get("baseline", "bm25") not in metrics["systems"]:  # the baseline is the champion, which is the student
        examples = {}
    baseline = examples.get("baseline") or ("champion" if "champion" in metrics["systems"] else "bm25")
    table = schemas.read(evaluation / "per_query.parquet", schemas.PER_QUERY)
    student, other = (table.filter(pc.field("system") == name).sort_by("query_id") for name in ("student", baseline))
    if not student.num_rows or student["query_id"] != other["query_id"]:
        return None
    deltas = student["ndcg_at_10"].to_numpy() - other["ndcg_at_10"].to_numpy()
    return {
        "baseline": BASELINES[baseline],
        "wins": int((deltas > TIE).sum()),
        "ties": int((np.abs(deltas) <= TIE).sum()),
        "losses": int((deltas < -TIE).sum()),
        "total": len(deltas),
        "figure": Markup(figures.plot_query_deltas(deltas, BASELINES[baseline])),
        **{side: [_example(query, baseline) for query in examples.get(side, [])] for side in ("best", "worst")},
    }


def _example(query: Mapping[str, Any], baseline: str) -> dict[str, Any]:
    """Format a query with the top products of the student and of the baseline."""
    systems = {"student": "student", "baseline": baseline}
    lists = [{"label": SYSTEMS[system], "products": query[key]} for key, system in systems.items()]
    return {"query": query["query"], "delta": query["delta"], "lists": lists}
