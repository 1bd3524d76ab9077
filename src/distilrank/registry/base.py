"""The contract of a registry backend, and the ids and aliases that all backends share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from distilrank.core.errors import InputError

CHAMPION = "champion"
"""The version in use."""
ANCHOR = "anchor"
"""The version that every candidate is compared with, however often the champion changes."""

_VERSION = re.compile(r"v[0-9a-f]{12}")
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,40}")


class Backend(Protocol):
    """One kind of storage; every method raises InputError with one line where storage or its content is bad."""

    uri: str

    def exists(self) -> bool:
        """Whether a registry is there, be it without a version yet."""

    def alias(self, name: str) -> str:
        """The version that alias `name` points to; empty: it was never set."""

    def aliases(self) -> dict[str, str]:
        """The version of every alias, by name, sorted."""

    def versions(self) -> list[str]:
        """Ids of all complete versions, sorted."""

    def manifest(self, version: str) -> dict[str, Any]:
        """What `version` says of itself, its bytes verified."""

    def location(self, version: str) -> str:
        """URI of the folder of `version`."""

    def fetch(self, version: str) -> Path:
        """A local folder with `version`, every byte of it verified; read only."""

    def publish(self, folder: Path, version: str) -> None:
        """Add the content of `folder` as `version`; a no-op where that very content is there already."""

    def move(self, alias: str, version: str, expected: str, *, action: str = "promote", reason: str = "") -> None:
        """Point `alias` to `version`, provided that it points to `expected` (empty: to nothing) at that moment.

        Repeating a move that has succeeded is a no-op.

        Args:
            action: what the history calls it, `promote` or `move`.
            reason: why, for the history.

        Raises:
            RunStopped: the alias points elsewhere; nothing has changed.
        """

    def rollback(self, alias: str = CHAMPION, reason: str = "", expected: str = "") -> str:
        """Take back the latest move of `alias`; returns the version that it pointed to before, and does again.

        A second rollback goes one move further back. Repeating one that failed after the alias had moved, because its
        record could not be written, finishes that one.

        Args:
            reason: why, for the history.
            expected: the version to roll back from; repeating such a rollback is a no-op. Empty: whatever it is.

        Raises:
            InputError: there is no earlier version, or it is damaged; nothing has changed.
            RunStopped: the alias points elsewhere, or someone else moved it meanwhile; nothing has changed.
        """

    def history(self) -> list[dict[str, Any]]:
        """Every move and rollback of every alias, oldest first.

        Keys: `alias`, `action` (promote, move or rollback), `version`, `previous`, `since`, `by`, `reason`; `number`
        (of the alias's records, from 1), `content` (digest of the version's `digest.json`), `before` (digest of the
        alias's record before), `token` (unique), `digest` (of the record itself).

        Raises:
            InputError: a record is damaged or missing.
        """

    def record_test_evaluation(self, test_set: str, candidate: str, sketch: str = "") -> int:
        """Record that a test set has evaluated `candidate` (a version id); a repeated evaluation counts once.

        Args:
            test_set: hexadecimal digest of the test set.
            sketch: sample of its queries (`distilrank.core.sketch`); empty: unknown, so only this test set counts.

        Returns:
            Number of candidates that this test set, or one that shares enough queries (`ledger.SHARED`), has
            evaluated, including this one.
        """

    def collect(self, keep: int, *, dry_run: bool) -> list[str]:
        """Remove versions that nothing needs any more, and return their ids.

        What stays: whatever an alias points to or pointed to in the last `keep` records of its history, and whatever
        was published less than a day ago: its alias may be about to move.
        """

    def verify(self, version: str) -> None:
        """Check every byte of `version` where it is stored, and against every record that names it.

        Raises:
            InputError: naming the file that is damaged.
        """

    def check(self) -> None:
        """Make sure that a version could be published, before any expensive work."""


def version_id(student_digest: str) -> str:
    """The version that a sealed student folder is, or would become."""
    return f"v{student_digest[:12]}"


def is_version_id(text: str) -> bool:
    """Whether `text` has the form of a version id."""
    return _VERSION.fullmatch(text) is not None


def is_alias(text: str) -> bool:
    """Whether `text` may name an alias: lower-case letters, digits and hyphens, and no version's id."""
    return _ALIAS.fullmatch(text) is not None and not is_version_id(text)


def resolve(backend: Backend, name: str) -> str:
    """The version id that `name` stands for: an id, or an alias.

    Raises:
        InputError: the registry has no such version, or no such alias yet.
    """
    version = backend.alias(name) if is_alias(name) else name
    if not version and name == CHAMPION:
        require_champion(backend)
        raise InputError(f"registry {backend.uri}: no champion yet; a promoted run makes one")
    known = backend.versions()
    if not version:
        listed = ", ".join([*backend.aliases(), *known]) or "nothing"
        raise InputError(f"registry {backend.uri}: no alias {name!r}; it has: {listed}")
    if version not in known:
        raise InputError(f"registry {backend.uri}: no version {version!r}; it has: {', '.join(known) or 'none'}")
    return version


def require_champion(backend: Backend) -> None:
    """Refuse a registry that has versions and no champion: it is not a new one, and what was in use is not known.

    Its aliases and their history were lost, or its first promotion never came to its end. To take it for an empty one
    would promote the next student without a comparison, and let every version be collected.

    Raises:
        InputError: with what a person can do about it.
    """
    versions = backend.versions()
    if versions and not backend.alias(CHAMPION):
        raise InputError(
            f"registry {backend.uri}: has versions ({', '.join(versions[:3])}{', ...' if versions[3:] else ''}) but no "
            "champion: its aliases and history were lost, or its first promotion was cut off; restore them, or say "
            "which version is in use (`distilrank registry promote VERSION --reason TEXT`), or begin with another "
            "registry.uri"
        )


def rolled_back(history: Iterable[Mapping[str, Any]], version: str) -> Mapping[str, Any] | None:
    """The record by which `version` stopped being the champion, if a rollback took it out of use and nobody has
    put it back since; else None.

    A gate would pass such a student again each time that a run makes it, the champion before it being worse by
    every measure; whoever rolled back knew something that the measures do not show.

    Args:
        history: of the registry, oldest first.
    """
    latest = None
    for record in history:
        if record["alias"] == CHAMPION and version in (record["version"], record["previous"]):
            latest = record if record["action"] == "rollback" and record["previous"] == version else None
    return latest
