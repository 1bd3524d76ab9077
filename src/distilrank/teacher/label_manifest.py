"""The manifests of the label stage, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distilrank.core import artifacts
from distilrank.core.errors import InputError


def _digest(manifest: dict[str, Any]) -> str:
    return artifacts.digest_json({key: value for key, value in manifest.items() if key != "digest"})


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of one shard's labels, with the digest of its own content."""
    artifacts.write_json(folder / artifacts.MANIFEST, manifest | {"digest": _digest(manifest)})


def read(folder: Path) -> dict[str, Any]:
    """The manifest of one shard's labels.

    Raises:
        InputError: it is missing, or not as it was written.
    """
    path = folder / artifacts.MANIFEST
    manifest = artifacts.read_json(path)
    if manifest.get("digest") != _digest(manifest):
        raise InputError(f"{path}: differs from the digest that it holds of itself; it was changed or damaged")
    return manifest


def _read_all(folders: list[Path]) -> list[dict[str, Any]]:
    """The manifests of all shards, in order, of one teacher and of one folder each."""
    shards = sorted((read(folder) for folder in folders), key=lambda one: one["shard"])
    if not shards:
        raise InputError("labels of no shard, expected at least one")
    names = [one["shard"] for one in shards]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"labels of {', '.join(twice)} in more than one folder, expected each shard once")
    teachers = {one["teacher"] for one in shards}
    if len(teachers) != 1:
        raise InputError(f"labels of {len(teachers)} different teachers ({', '.join(sorted(teachers))}), expected one")
    return shards


def combine(folders: list[Path]) -> dict[str, Any]:
    """One manifest of all shards, in order; `work` is their sum, seconds and hours over all devices.

    Raises:
        InputError: a manifest that was changed, a shard twice, or shards that were labeled by different teachers.
    """
    shards = _read_all(folders)
    works = [one["work"] for one in shards]
    work = {key: sum(one[key] for one in works) for key in ("pairs", "tokens", "truncated", "seconds", "device_hours")}
    prices = [one["price"] for one in works]
    return {
        "teacher": shards[0]["teacher"],
        "rows": sum(one["rows"] for one in shards),
        "queries": sum(one["queries"] for one in shards),
        "work": {
            **work,
            "rows_per_second": round(work["pairs"] / work["seconds"], 1) if work["seconds"] else None,
            "device": ", ".join(sorted({one["device"] for one in works})),
            "price": None if None in prices else round(sum(prices), 4),
        },
        "shards": shards,
    }


def identity(folders: list[Path]) -> str:
    """Digest of what the labels are, whatever they took: the same after any number of kills.

    Raises:
        InputError: as `combine` does.
    """
    kept = ("shard", "teacher", "candidates", "rows", "labels")
    return artifacts.digest_json([{key: one[key] for key in kept} for one in _read_all(folders)])
