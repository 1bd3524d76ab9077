"""Section on the data of a run: judgements by split, labels, and the counts of the data profile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from distilrank.core import artifacts, schemas
from distilrank.rendering import figures
from distilrank.rendering.formatting import format_value, readable_name

PROFILE_SECTIONS = ("rows", "queries", "impressions", "windows", "candidates", "lengths")
"""Sections of profile.json that the page shows, in this order; profile.html has all of them."""

UNUSED_SPLITS = {"unlabeled_train": "judged, used as unlabeled", "beyond_limit": "beyond the limit, not used"}
"""Labels of the judged pairs that are in no split, by their key in profile.json."""


def data_section(profile: Path, judgements: Path, labels: Mapping[str, Any]) -> dict[str, Any]:
    """Build the section on the data that the models were trained and tested on.

    Args:
        profile: folder with profile.json.
        judgements: folder with protocol.json and a table of judged pairs per split.
        labels: the combined manifest of all shards.
    """
    counts = artifacts.read_json(profile / "profile.json")
    protocol = artifacts.read_json(judgements / "protocol.json")
    tables = {
        split: schemas.read(judgements / f"{split}.parquet", schemas.JUDGED) for split in ("train", "dev", "test")
    }
    targets = np.concatenate([table["target"].to_numpy() for table in tables.values()])
    return {
        "splits": _split_rows(tables, counts.get("splits", {})),
        "pairs": len(targets),
        "queries": sum(_count_queries(table) for table in tables.values()),
        "labels": {**labels, "shards": len(labels["shards"])},
        "source": protocol.get("source", ""),
        "targets": Markup(figures.plot_targets(targets, protocol.get("relevant_from"))),
        "tables": [profile_table(key, counts[key]) for key in PROFILE_SECTIONS if counts.get(key)],
        "dropped": [
            (f"{problem['where']}: {problem['what']}", problem["rows"]) for problem in counts.get("dropped", [])
        ],
    }


def _split_rows(tables: Mapping[str, pa.Table], profiled: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """Count pairs and queries and average the targets of each split, and of the judged pairs that are in no split."""
    rows = [
        {
            "name": name,
            "pairs": table.num_rows,
            "queries": _count_queries(table),
            "target": float(np.mean(table["target"].to_numpy())) if table.num_rows else None,
        }
        for name, table in tables.items()
    ]
    for key, label in UNUSED_SPLITS.items():
        counts = profiled.get(key)
        if counts and counts["pairs"]:
            rows.append({"name": label, **counts, "target": None})
    return rows


def _count_queries(table: pa.Table) -> int:
    return len(table["query_id"].unique())


def profile_table(key: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Format a section of the profile as a table.

    Where the section's values are mappings with the same keys, those keys are the columns; other values
    then go into the note. Otherwise every value is one cell.
    """
    mappings = [value for value in section.values() if isinstance(value, dict)]
    is_table = len(mappings) > 1 and all(list(value) == list(mappings[0]) for value in mappings)
    columns = list(mappings[0]) if is_table else []
    rows, notes = [], []
    for name, value in section.items():
        if not columns:
            rows.append((readable_name(name), [_cell_text(value)]))
        elif isinstance(value, dict):
            rows.append((readable_name(name), [format_value(value[column]) for column in columns]))
        else:
            notes.append(f"{readable_name(name)}: {format_value(value)}")
    return {
        "name": readable_name(key),
        "columns": [readable_name(column) for column in columns],
        "rows": rows,
        "note": "; ".join(notes),
    }


def _cell_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{readable_name(name)} {format_value(part)}" for name, part in value.items())
    return format_value(value)
