"""SHA-256 digests of bytes, JSON values, files and the library's code."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from pathlib import Path
from typing import Any


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def code_digest() -> str:
    """Return the digest of all files of the package, templates included; a version does not change with edited code."""
    package = Path(str(importlib.resources.files("distilrank")))
    files = (path for pattern in ("*.py", "*.j2") for path in package.rglob(pattern))
    return digest_json({path.relative_to(package).as_posix(): digest_file(path) for path in files})
