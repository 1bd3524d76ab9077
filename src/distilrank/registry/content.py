"""The bytes of a version: sealed, and checked to the last one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distilrank.core import artifacts
from distilrank.core.errors import InputError
from distilrank.registry.base import version_id

MANIFEST = "manifest.json"


def encode(value: dict[str, Any]) -> bytes:
    """The one form in which the registry writes `value`: a byte that differs shows, be it white space."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def decode(data: bytes, place: str) -> dict[str, Any]:
    """Read what `encode` wrote.

    Raises:
        InputError: naming `place`; it is something else, or not in that form.
    """
    value = parse(data, place)
    try:
        same = encode(value) == data
    except (ValueError, RecursionError):  # a surrogate, no number, or brackets within brackets
        same = False
    if not same:
        raise InputError(f"{place}: damaged, expected a JSON object in the form in which it was written")
    return value


def parse(data: bytes, place: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: naming `place`; it is something else.
    """
    return artifacts.parse_json(data, place)


def seal(folder: Path) -> str:
    """Write the digests of all files of a version into it, and return the digest of them all."""
    (folder / artifacts.RECORD).unlink(missing_ok=True)  # no seal covers a stage's record
    return artifacts.seal(folder)


def read_seal(folder: Path) -> dict[str, Any]:
    """The seal of a version, itself intact: `digest` and, by name, `files`.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / artifacts.SEAL
    try:
        return parse_seal(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None


def parse_seal(data: bytes, place: str) -> dict[str, Any]:
    """See read_seal."""
    sealed = decode(data, place)
    if not isinstance(sealed.get("files"), dict) or artifacts.digest_json(sealed["files"]) != sealed.get("digest"):
        raise InputError(f"{place}: damaged, its digest does not match its own list of files")
    for name in sealed["files"]:
        artifacts.check_member(name, place)
    return sealed


def verify(folder: Path, version: str) -> str:
    """Check every byte of a version, and that its student is the one that its id stands for; return its digest.

    What this process has hashed before is hashed again: a server may load a version weeks after it did so before.

    Raises:
        InputError: naming the file that is damaged, missing or too many.
    """
    read_seal(folder)
    if (folder / artifacts.RECORD).exists():
        raise InputError(f"{folder / artifacts.RECORD}: not listed in the version's {artifacts.SEAL}; it was added")
    digest = artifacts.verify(folder, again=True)
    student = artifacts.verify(folder / "student")  # of which each file has just been hashed
    if version_id(student) != version:
        raise InputError(f"{folder / 'student'}: is version {version_id(student)}, expected {version}")
    return digest


def differing(ours: dict[str, str], theirs: dict[str, str]) -> str | None:
    """The first file whose digest differs between two versions, or None."""
    return next((name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)), None)
