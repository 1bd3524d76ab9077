"""The manifests of the label stage, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distilrank import artifacts
from distilrank.errors import InputError

MANIFEST = "manifest.json"


def combine(folders: list[Path]) -> dict[str, Any]:
    """One manifest of all shards, in order.

    Raises:
        InputError: shards that were labelled by different teachers.
    """
    shards = sorted((artifacts.read_json(folder / MANIFEST) for folder in folders), key=lambda one: one["shard"])
    teachers = {one["teacher"] for one in shards}
    if len(teachers) != 1:
        raise InputError(f"labels of {len(teachers)} different teachers ({', '.join(sorted(teachers))}), expected one")
    return {
        "teacher": teachers.pop(),
        "rows": sum(one["rows"] for one in shards),
        "queries": sum(one["queries"] for one in shards),
        "shards": shards,
    }
