"""Sections on the origin of the results: tasks with their inputs and settings, lineage, and protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distilrank.core import artifacts
from distilrank.rendering.formatting import format_value, readable_name


def tasks_section(folders: Sequence[Path]) -> dict[str, Any]:
    """List duration, memory, inputs and settings of each task, from the record in its folder."""
    rows = []
    for folder in folders:
        record = artifacts.read_record(folder)
        rows.append(
            {
                **record,
                "runtime": record.get("facts", {}).get("runtime", ""),
                "digest": record["sealed"],
                "config": json.dumps(record.get("config", {}), indent=2, ensure_ascii=False),
            }
        )
    longest = max(row["seconds"] for row in rows)
    for row in rows:
        row["bar_percent"] = round(100 * row["seconds"] / longest, 1) if longest else 0
    return {
        "rows": rows,
        "total": sum(row["seconds"] for row in rows),
        "peak": max(row["peak_memory_mib"] for row in rows),
        "started": max(row["started"] for row in rows),
    }


def lineage_rows(verdict: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the versions that the verdict names and the digests of all inputs of the page, as name and value."""
    versions = {key: (verdict.get(key) or {}).get("id", "") for key in ("candidate", "champion", "anchor")}
    return [(name, value) for name, value in (*versions.items(), *inputs.items()) if value]


def setting_rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flatten nested settings to pairs of name and value."""
    return list(_flatten(settings))


def format_setting(value: Any) -> str:
    """Format the value of a setting; an empty list or mapping is `none`."""
    return "none" if value in ([], {}) else format_value(value)


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        name = f"{prefix}, {readable_name(key)}" if prefix else readable_name(key)
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, name)
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value, 1):
                if isinstance(item, Mapping):
                    yield from _flatten(item, f"{name} {number}")
                else:
                    yield f"{name} {number}", format_value(item)
        else:
            yield name, format_setting(value)
