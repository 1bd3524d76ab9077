"""The content of a version: its files are sealed, and every byte is verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distilrank.core import artifacts
from distilrank.core.errors import InputError
from distilrank.registry.base import version_id

MANIFEST = "manifest.json"


def encode(value: dict[str, Any]) -> bytes:
    """Serialize `value` in the only form that the registry accepts, so that any changed byte is detected."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def decode(data: bytes, source: str) -> dict[str, Any]:
    """Read what `encode` wrote.

    Raises:
        InputError: `source` is not a JSON object in that form.
    """
    value = parse(data, source)
    try:
        is_canonical = encode(value) == data
    except (ValueError, RecursionError):  # a surrogate, NaN, or deeply nested brackets
        is_canonical = False
    if not is_canonical:
        raise InputError(f"{source}: damaged, expected a JSON object exactly as it was written")
    return value


def parse(data: bytes, source: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: `source` is not a JSON object.
    """
    return artifacts.parse_json(data, source)


def seal(folder: Path) -> str:
    """Write the digests of all files of a version into its folder, and return the digest of the whole version."""
    (folder / artifacts.RECORD).unlink(missing_ok=True)  # a seal does not cover the record of a stage
    return artifacts.seal(folder)


def read_seal(folder: Path) -> dict[str, Any]:
    """Read the seal of a version and check its own digest. It has `digest` and, by name, `files`.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / artifacts.SEAL
    try:
        return parse_seal(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None


def parse_seal(data: bytes, source: str) -> dict[str, Any]:
    """Parse the bytes of a seal (see `read_seal`)."""
    sealed = decode(data, source)
    if not isinstance(sealed.get("files"), dict) or artifacts.digest_json(sealed["files"]) != sealed.get("digest"):
        raise InputError(f"{source}: damaged, its digest does not match its own list of files")
    for name in sealed["files"]:
        artifacts.check_member(name, source)
    return sealed


def verify(folder: Path, version: str) -> str:
    """Check every byte of a version and that its id belongs to its student; return its digest.

    Files that this process has hashed before are hashed again, since a server may reload a version weeks later.

    Raises:
        InputError: a file is damaged, missing or not listed.
    """
    read_seal(folder)
    if (folder / artifacts.RECORD).exists():
        raise InputError(f"{folder / artifacts.RECORD}: not listed in the version's {artifacts.SEAL}; it was added")
    digest = artifacts.verify(folder, again=True)
    student = artifacts.verify(folder / "student")  # each of these files has just been hashed
    if version_id(student) != version:
        raise InputError(f"{folder / 'student'}: is the student of version {version_id(student)}, expected {version}")
    return digest


def differing(ours: dict[str, str], theirs: dict[str, str]) -> str | None:
    """Return the first file whose digest differs between two versions; None if there is none."""
    return next((name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)), None)
