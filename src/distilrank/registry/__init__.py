"""Where promoted students live: immutable versions, and the alias `champion` that names the one in use.

A version is a folder: `student/` (what was promoted), `metrics.json`, `verdict.json`, `report.html`, `drift.html`
(why), `traffic/reference.parquet` with `traffic/reference_scores.parquet` (what monitoring compares with), and
`manifest.json` (what it was made from). Its id comes from the student's bytes.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, Protocol

from distilrank.errors import InputError

CHAMPION = "champion"
BACKENDS = {"": "local", "file": "local"}
"""Module of this package for each scheme of a registry's URI; a plain path has none."""

_VERSION = re.compile(r"v[0-9a-f]{12}")


class Backend(Protocol):
    """One kind of storage; every method raises InputError with one line where storage or its content is bad."""

    uri: str

    def champion(self) -> str:
        """The version in use; empty: none has been promoted yet."""

    def versions(self) -> list[str]:
        """Ids of all complete versions, sorted."""

    def manifest(self, version: str) -> dict[str, Any]:
        """What `version` says of itself."""

    def fetch(self, version: str) -> Path:
        """A local folder with `version`, every byte of it verified; read only."""

    def publish(self, folder: Path, version: str) -> None:
        """Add the content of `folder` as `version`; a no-op where that very content is there already."""

    def move(self, alias: str, version: str, expected: str) -> None:
        """Point `alias` to `version`, provided that it points to `expected` (empty: to nothing) at that moment.

        Repeating a move that has succeeded is a no-op.

        Raises:
            RunStopped: the alias points elsewhere; nothing has changed.
        """

    def rollback(self) -> str:
        """Take back the champion's promotion; returns the version in use before it, now in use again.

        A second rollback goes one promotion further back.

        Raises:
            InputError: there is no earlier champion, or it is damaged; nothing has changed.
        """

    def history(self) -> list[dict[str, Any]]:
        """Every promotion and rollback, oldest first: `alias`, `action`, `version`, `previous`, `since`, `by`."""

    def check(self) -> None:
        """Make sure that a version could be published, before any expensive work."""


def open(uri: str) -> Backend:
    """The registry at `uri`: a local folder, as a path or `file://`. Nothing is read or made yet.

    Raises:
        InputError: there is no backend for the URI's scheme.
    """
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme not in BACKENDS:
        raise InputError(f"registry {uri!r}: no backend for {scheme}://, expected a local folder (a path, or file://)")
    module = importlib.import_module(f"distilrank.registry.{BACKENDS[scheme]}")
    return module.open(uri)


def version_id(student_digest: str) -> str:
    """The version that a sealed student folder is, or would become."""
    return f"v{student_digest[:12]}"


def is_version_id(text: str) -> bool:
    """Whether `text` has the form of a version id."""
    return _VERSION.fullmatch(text) is not None


def resolve(backend: Backend, name: str) -> str:
    """The version id that `name` stands for: an id, or `champion`.

    Raises:
        InputError: the registry has no such version, or no champion yet.
    """
    version = backend.champion() if name == CHAMPION else name
    if not version:
        raise InputError(f"registry {backend.uri}: no champion yet; a promoted run makes one")
    if version not in backend.versions():
        known = ", ".join(backend.versions()) or "none"
        raise InputError(f"registry {backend.uri}: no version {version!r}; it has: {known}")
    return version
