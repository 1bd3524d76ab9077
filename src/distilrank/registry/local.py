"""A registry in a folder, which may be a volume that several machines mount.

    versions/<id>/      immutable and complete: a version is renamed into place as a whole
    aliases/, history/, looks/      see ledger
    .lock               held while any of these changes

Files and folders are synced to disk before they are renamed into place. A killed process leaves at most a hidden
`*.partial`, which is never read and which the next publication removes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distilrank.config import Registry
from distilrank.core import artifacts, volume
from distilrank.core.errors import InputError, one_line
from distilrank.registry import content
from distilrank.registry.base import CHAMPION, Backend, is_version_id
from distilrank.registry.ledger import TEST_EVALUATIONS, Ledger

FOLDERS = "versions", "aliases", "history", TEST_EVALUATIONS


def open(config: Registry) -> Backend:
    """Open the registry in the folder `config.uri`.

    Raises:
        InputError: the URI has no folder.
    """
    path = config.uri.removeprefix("file://")
    if not path.strip():
        raise InputError(f"registry {config.uri!r}: expected the path of a folder")
    try:
        return Local(Path(path).expanduser().absolute())
    except RuntimeError:
        raise InputError(f"registry {config.uri!r}: no such home folder, expected the path of a folder") from None


class Local(Ledger):
    """Registry in a folder. `registry.Backend` describes the methods."""

    _repair = (
        "; two writers changed it at the same time, so file locks (flock) do not work between their machines: move the "
        "registry to a volume that supports them, and copy the newest file of the alias's history over the alias's file"
    )

    def __init__(self, root: Path) -> None:
        self.root, self.uri = root, str(root)
        self._versions = root / "versions"

    def exists(self) -> bool:
        with self._translating_errors():
            return any((self.root / folder).is_dir() for folder in FOLDERS)

    # Versions -----------------------------------------------------------------------------------------------------

    def versions(self) -> list[str]:
        if not self._versions.is_dir():
            return []
        return sorted(path.name for path in self._versions.iterdir() if is_version_id(path.name) and path.is_dir())

    def manifest(self, version: str) -> dict[str, Any]:
        folder = self._folder(version)
        artifacts.verify(folder, only=[content.MANIFEST])
        return artifacts.read_json(folder / content.MANIFEST)

    def location(self, version: str) -> str:
        return str(self._versions / version)

    def fetch(self, version: str) -> Path:
        folder = self._folder(version)
        self._verify_history(version, content.verify(folder, version), self._heads())
        return folder

    def verify(self, version: str) -> None:
        self._verify_history(version, content.verify(self._folder(version), version), self.history())

    def publish(self, folder: Path, version: str) -> None:
        if not is_version_id(version):
            raise InputError(
                f"registry {self.uri}: {version!r} is not a version id, expected v and 12 hexadecimal digits"
            )
        target = self._versions / version
        with self._translating_errors():
            _make(self._versions)
            self._remove_stale()
            with artifacts.folder_beside(target) as copy:
                artifacts.copy_into(folder, copy)
                content.seal(copy)
                content.verify(copy, version)
                artifacts.settle(copy)
                with self._changing():
                    if not target.exists():
                        artifacts.move_into_place(copy, target)
                        return
                    ours, theirs = (content.read_seal(folder)["files"] for folder in (copy, target))
                    if (name := content.differing(ours, theirs)) is not None:
                        raise InputError(
                            f"{target / name}: version {version} is already published with different content; "
                            f"versions never change"
                        )
                    self._claim(version)

    def check(self) -> None:
        with self._translating_errors():
            _make(self._versions)
            probe = artifacts.temporary_name(self._versions / "writable")
            probe.write_text("writable\n", encoding="utf-8")
            try:
                with volume.locked(probe):
                    pass
            finally:
                probe.unlink()
        self.alias(CHAMPION)

    # Storage operations of the ledger -----------------------------------------------------------------------------

    def _full_path(self, name: str) -> str:
        return str(self.root / name)

    def _read(self, name: str) -> tuple[bytes, Any] | None:
        with self._translating_errors():
            try:
                data = (self.root / name).read_bytes()
            except FileNotFoundError:
                return None
            return data, data

    def _write(self, name: str, data: bytes, token: Any) -> bool:
        path = self.root / name
        file = self._read(name)  # there is no other writer while `_changing` holds the lock
        if (file[1] if file else None) != token:
            return False
        with self._translating_errors():
            _make(path.parent)
            with artifacts.replacing(path) as handle:
                handle.write(data)
            artifacts.sync(path.parent)
        return True

    def _names(self, folder: str) -> list[str]:
        with self._translating_errors():
            try:
                return sorted(path.name for path in (self.root / folder).iterdir() if not path.name.startswith("."))
            except FileNotFoundError:
                return []

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with self._translating_errors():
            _make(self.root)
            with volume.locked(self.root / ".lock"):
                yield

    def _claim(self, version: str) -> str:
        folder = self._folder(version)
        digest = content.read_seal(folder)["digest"]
        os.utime(folder / artifacts.SEAL)
        return digest

    def _ages(self) -> dict[str, tuple[float, Any]]:
        now = time.time()
        seals = {version: self._versions / version / artifacts.SEAL for version in self.versions()}
        # A version without a seal is damaged. Its age of 0 keeps it from being collected before someone has seen it.
        return {
            version: (now - seal.stat().st_mtime if seal.exists() else 0.0, None) for version, seal in seals.items()
        }

    def _remove(self, version: str, token: Any) -> bool:
        partial = artifacts.temporary_name(self._versions / version)
        (self._versions / version).rename(partial)
        artifacts.sync(self._versions)
        shutil.rmtree(partial, ignore_errors=True)  # a concurrent publisher may remove it too, as stale
        return True

    def _sweep(self) -> None:
        self._remove_stale()

    # Internals ----------------------------------------------------------------------------------------------------

    def _folder(self, version: str) -> Path:
        folder = self._versions / version
        if not is_version_id(version) or not folder.is_dir():
            available = ", ".join(self.versions()) or "none"
            raise InputError(f"registry {self.uri}: no version {version!r}; it has: {available}")
        return folder

    def _remove_stale(self) -> None:
        for pattern in ("versions", "aliases", "history/*", f"{TEST_EVALUATIONS}/*"):
            for folder in self.root.glob(pattern):
                artifacts.remove_stale(folder)

    @contextlib.contextmanager
    def _translating_errors(self) -> Iterator[None]:
        """Translate errors of the file system to one line."""
        try:
            yield
        except OSError as error:
            path, reason = error.filename or self.root, error.strerror or one_line(error)
            raise InputError(f"registry {self.root}: cannot use {path} ({reason})") from error


def _make(folder: Path) -> None:
    """Create a folder and sync its parents, so that it survives a crash."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        artifacts.sync(folder.parent)
