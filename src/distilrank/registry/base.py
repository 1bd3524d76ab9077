"""The contract of a registry backend, and the ids and aliases that all backends share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from distilrank.core.errors import InputError

CHAMPION = "champion"
"""Alias of the version in use."""
ANCHOR = "anchor"
"""Alias of the version that every candidate is compared with, however often the champion changes."""

_VERSION = re.compile(r"v[0-9a-f]{12}")
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,40}")


class Backend(Protocol):
    """A registry in one kind of storage.

    Every method raises InputError with one line if the storage fails or its content is damaged.
    """

    uri: str

    def exists(self) -> bool:
        """Whether the registry exists, even if it has no version yet."""

    def alias(self, name: str) -> str:
        """Return the version that alias `name` points to; empty if it was never set."""

    def aliases(self) -> dict[str, str]:
        """Return the version of every alias, sorted by alias."""

    def versions(self) -> list[str]:
        """Return the sorted ids of all complete versions."""

    def manifest(self, version: str) -> dict[str, Any]:
        """Return the manifest of `version`, after its bytes have been verified."""

    def location(self, version: str) -> str:
        """Return the URI of the folder of `version`."""

    def fetch(self, version: str) -> Path:
        """Return a read-only local folder with `version`, after every byte has been verified."""

    def publish(self, folder: Path, version: str) -> None:
        """Add the content of `folder` as `version`; a no-op if the version already exists with the same content."""

    def move(self, alias: str, version: str, expected: str, *, action: str = "promote", reason: str = "") -> None:
        """Point `alias` to `version`, provided that it still points to `expected` (empty: it is not set).

        Repeating a move that has succeeded is a no-op.

        Args:
            alias: the alias to move.
            version: id of its new version.
            expected: id of its current version.
            action: name of the operation in the history, `promote` or `move`.
            reason: reason for the history.

        Raises:
            RunStopped: the alias points elsewhere; nothing has changed.
        """

    def rollback(self, alias: str = CHAMPION, reason: str = "", expected: str = "") -> str:
        """Undo the latest move of `alias`, and return the version that it points to again.

        A second rollback undoes one more move. If a rollback failed after the alias had moved, because its record could
        not be written, repeating it completes it.

        Args:
            alias: the alias to roll back.
            reason: reason for the history.
            expected: version to roll back from, which makes repeating the rollback a no-op; empty for any version.

        Raises:
            InputError: there is no earlier version, or it is damaged; nothing has changed.
            RunStopped: the alias points elsewhere, or someone else moved it in the meantime; nothing has changed.
        """

    def history(self) -> list[dict[str, Any]]:
        """Return every move and rollback of every alias, oldest first.

        Keys: `alias`, `action` (promote, move or rollback), `version`, `previous`, `since`, `by`, `reason`; `number`
        (consecutive for each alias, from 1), `content` (digest of the version's `digest.json`), `before` (digest of
        the alias's previous record), `token` (unique), `digest` (of the record itself).

        Raises:
            InputError: a record is damaged or missing.
        """

    def record_test_evaluation(self, test_set: str, candidate: str, sketch: str = "") -> int:
        """Record that a candidate was evaluated on a test set; a repeated evaluation counts once.

        Args:
            test_set: hexadecimal digest of the test set.
            candidate: id of the version that the candidate would become.
            sketch: sample of the test set's queries (`distilrank.core.sketch`); empty if unknown, in which case
                overlapping test sets are not counted.

        Returns:
            Number of candidates evaluated on this test set, or on one that shares enough queries (`ledger.SHARED`),
            including this one.
        """

    def collect(self, keep: int, *, dry_run: bool) -> list[str]:
        """Remove versions that are no longer needed, and return their ids.

        Versions that an alias names in the last `keep` records of its history stay. So do versions published less than
        a day ago, since an alias may be about to move to them.

        Args:
            keep: number of latest records of each alias, at least 1.
            dry_run: return the ids without removing anything.
        """

    def verify(self, version: str) -> None:
        """Check every byte of `version` in the storage, and its digest against every record that names it.

        Raises:
            InputError: a file is damaged; the message names it.
        """

    def check(self) -> None:
        """Check, before any expensive work, that a version can be published."""


def version_id(student_digest: str) -> str:
    """Return the id of the version that a student with this digest is, or would become."""
    return f"v{student_digest[:12]}"


def is_version_id(text: str) -> bool:
    """Whether `text` has the form of a version id."""
    return _VERSION.fullmatch(text) is not None


def is_alias(text: str) -> bool:
    """Whether `text` can name an alias: lower-case letters, digits and hyphens, and not the id of a version."""
    return _ALIAS.fullmatch(text) is not None and not is_version_id(text)


def resolve(backend: Backend, name: str) -> str:
    """Return the id of the version that `name`, an id or an alias, refers to.

    Raises:
        InputError: the registry has no such version, or no such alias yet.
    """
    version = backend.alias(name) if is_alias(name) else name
    if not version and name == CHAMPION:
        require_champion(backend)
        raise InputError(f"registry {backend.uri}: no champion yet; a promoted run makes one")
    versions = backend.versions()
    if not version:
        listed = ", ".join([*backend.aliases(), *versions]) or "nothing"
        raise InputError(f"registry {backend.uri}: no alias {name!r}; it has: {listed}")
    if version not in versions:
        raise InputError(f"registry {backend.uri}: no version {version!r}; it has: {', '.join(versions) or 'none'}")
    return version


def require_champion(backend: Backend) -> None:
    """Refuse a registry that has versions but no champion, since the version in use is unknown.

    Its aliases and their history were lost, or its first promotion was interrupted. If it were treated as an empty
    registry, the next student would be promoted without a comparison, and every version could be collected.

    Raises:
        InputError: the registry has versions but no champion; the message names the remedies.
    """
    versions = backend.versions()
    if versions and not backend.alias(CHAMPION):
        raise InputError(
            f"registry {backend.uri}: has versions ({', '.join(versions[:3])}{', ...' if versions[3:] else ''}) but no "
            "champion: its aliases and history were lost, or its first promotion was interrupted; restore them, "
            "state which version is in use (`distilrank registry promote VERSION --reason TEXT`), or use another "
            "registry.uri"
        )


def rolled_back(history: Iterable[Mapping[str, Any]], version: str) -> Mapping[str, Any] | None:
    """Return the rollback that took `version` out of use, unless it was promoted again; None if there is none.

    The gate would pass such a student each time that a run trains it, since its metrics are better than those of the
    restored champion. The person who rolled it back had a reason that the metrics do not show.

    Args:
        history: records of the registry, oldest first.
        version: id of the version.
    """
    latest = None
    for record in history:
        if record["alias"] == CHAMPION and version in (record["version"], record["previous"]):
            latest = record if record["action"] == "rollback" and record["previous"] == version else None
    return latest
