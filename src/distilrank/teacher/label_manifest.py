"""The manifests of the label stage, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distilrank.core import artifacts
from distilrank.core.errors import InputError


def _digest(manifest: dict[str, Any]) -> str:
    return artifacts.digest_json({key: value for key, value in manifest.items() if key != "digest"})


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of one shard's labels, with the digest of its content."""
    artifacts.write_json(folder / artifacts.MANIFEST, manifest | {"digest": _digest(manifest)})


def read(folder: Path) -> dict[str, Any]:
    """Read the manifest of one shard's labels.

    Raises:
        InputError: it is missing, or was changed since it was written.
    """
    path = folder / artifacts.MANIFEST
    manifest = artifacts.read_json(path)
    if manifest.get("digest") != _digest(manifest):
        raise InputError(f"{path}: differs from the digest that it holds of itself; it was changed or damaged")
    return manifest


def _read_all(folders: list[Path]) -> list[dict[str, Any]]:
    """Read the manifests of all shards in order; check that each shard occurs once, with the same teacher."""
    shards = sorted((read(folder) for folder in folders), key=lambda manifest: manifest["shard"])
    if not shards:
        raise InputError("labels of no shard, expected at least one")
    names = [manifest["shard"] for manifest in shards]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"labels of {', '.join(twice)} in more than one folder, expected each shard once")
    teachers = {manifest["teacher"] for manifest in shards}
    if len(teachers) != 1:
        raise InputError(f"labels of {len(teachers)} different teachers ({', '.join(sorted(teachers))}), expected one")
    return shards


def combine(folders: list[Path]) -> dict[str, Any]:
    """One manifest of all shards, in order; `work` is their sum, seconds and hours over all devices.

    Raises:
        InputError: a changed manifest, a duplicate shard, or shards labeled by different teachers.
    """
    shards = _read_all(folders)
    work_items = [manifest["work"] for manifest in shards]
    work = {
        key: sum(manifest[key] for manifest in work_items)
        for key in ("pairs", "tokens", "truncated", "seconds", "device_hours")
    }
    prices = [manifest["price"] for manifest in work_items]
    return {
        "teacher": shards[0]["teacher"],
        "rows": sum(manifest["rows"] for manifest in shards),
        "queries": sum(manifest["queries"] for manifest in shards),
        "work": {
            **work,
            "rows_per_second": round(work["pairs"] / work["seconds"], 1) if work["seconds"] else None,
            "device": ", ".join(sorted({manifest["device"] for manifest in work_items})),
            "price": None if None in prices else round(sum(prices), 4),
        },
        "shards": shards,
    }


def identity(folders: list[Path]) -> str:
    """Digest of the labels without their cost: the same after any number of kills.

    Raises:
        InputError: as `combine` does.
    """
    keys = ("shard", "teacher", "candidates", "rows", "labels")
    return artifacts.digest_json([{key: manifest[key] for key in keys} for manifest in _read_all(folders)])
