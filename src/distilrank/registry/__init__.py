"""Registry of promoted students: immutable versions, and aliases such as `champion` that point to versions.

A version is a folder with the student (`student/`), the evidence for its promotion (`metrics.json`, `verdict.json`,
`report.html` and the drift pages), the reference for monitoring (`traffic/reference.parquet` and
`traffic/reference_scores.parquet`), its origin (`manifest.json`) and the SHA-256 of every file (`digest.json`). Its id
is derived from the student's bytes. Every move of an alias is recorded, and the records of an alias form a chain.
"""

from __future__ import annotations

from pathlib import Path

from distilrank.config import Registry
from distilrank.core import artifacts, progress
from distilrank.core.errors import InputError
from distilrank.registry import local, mirror
from distilrank.registry.base import (
    ANCHOR,
    CHAMPION,
    Backend,
    is_alias,
    is_version_id,
    require_champion,
    resolve,
    rolled_back,
    version_id,
)

__all__ = [
    "ANCHOR",
    "CHAMPION",
    "Backend",
    "connect",
    "is_alias",
    "is_version_id",
    "locate",
    "open",
    "require_champion",
    "resolve",
    "rolled_back",
    "version_id",
]


def open(uri: str) -> Backend:
    """Open the registry at `uri`: a local folder, as a path or `file://`, or `gs://BUCKET/PREFIX`.

    This reads nothing yet.

    Raises:
        InputError: there is no backend for the URI's scheme.
    """
    return _open(Registry.model_construct(uri=uri))


def connect(config: Registry) -> Backend:
    """Open the registry that `config` describes, with its mirror if it has one. This reads nothing yet.

    Raises:
        InputError: as `open`.
    """
    backend = _open(config)
    return mirror.open(backend, config) if config.mirror else backend


def locate(model: str, registry: str) -> Path:
    """Return the folder of a student.

    A folder without a seal was not written by a stage. Its files cannot be checked, and a note in the log says so.

    Args:
        model: a folder, or an alias or the id of a version in the registry.
        registry: URI of the registry.

    Raises:
        InputError: there is no such folder, and the registry has no such student.
    """
    folder = Path(model)
    if folder.is_dir():
        if not artifacts.is_sealed(folder):
            unchecked = f"{folder}: has no {artifacts.SEAL}, so its files are used without a check"
            progress.log_event("model", "note", unchecked)
        return folder
    backend = open(registry)
    try:
        return backend.fetch(resolve(backend, model)) / "student"
    except InputError as error:
        raise InputError(f"--model {model}: no such folder, and {error}") from None


def _open(config: Registry) -> Backend:
    scheme = config.uri.partition("://")[0] if "://" in config.uri else ""
    if scheme in ("", "file"):
        return local.open(config)
    if scheme == "gs":
        from distilrank.registry import gcs  # the client of Cloud Storage takes more than a second to import

        return gcs.open(config)
    raise InputError(
        f"registry {config.uri!r}: no backend for {scheme}://, expected a local folder (a path, or file://) "
        "or gs://BUCKET/PREFIX"
    )
