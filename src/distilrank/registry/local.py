"""A registry in a folder, which may be a volume that several machines mount.

    versions/<id>/          immutable; renamed into place whole, so what is there is complete
    aliases/champion.json   the alias: its latest record
    history.jsonl           every record of every alias, a line each
    .lock                   held while anything of the above changes

Whoever is killed leaves at most a hidden `*.partial`, which nobody reads and a later publish removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distilrank import artifacts
from distilrank.errors import InputError, RunStopped
from distilrank.registry import CHAMPION, is_version_id, version_id

STALE_SECONDS = 24 * 3600
"""Age from which a `*.partial` counts as left over; publishing takes minutes."""


def open(uri: str) -> Local:
    """The registry in the folder `uri`.

    Raises:
        InputError: `uri` names no folder.
    """
    path = uri.removeprefix("file://")
    if not path.strip():
        raise InputError(f"registry {uri!r}: expected the path of a folder")
    return Local(Path(path).expanduser().absolute())


class Local:
    """See registry.Backend for the contract."""

    def __init__(self, root: Path) -> None:
        self.root, self.uri = root, str(root)
        self._versions = root / "versions"
        self._history = root / "history.jsonl"

    # Reading ------------------------------------------------------------------------------------------------------

    def champion(self) -> str:
        return self._record(CHAMPION).get("version", "")

    def versions(self) -> list[str]:
        if not self._versions.is_dir():
            return []
        return sorted(path.name for path in self._versions.iterdir() if is_version_id(path.name) and path.is_dir())

    def manifest(self, version: str) -> dict[str, Any]:
        return artifacts.read_json(self._folder(version) / "manifest.json")

    def fetch(self, version: str) -> Path:
        folder = self._folder(version)
        _verify(folder, version)
        return folder

    def history(self) -> list[dict[str, Any]]:
        records = self._logged()
        return records + self._unlogged(records)

    # Changing -----------------------------------------------------------------------------------------------------

    def publish(self, folder: Path, version: str) -> None:
        if not is_version_id(version):
            raise InputError(f"registry {self.uri}: {version!r} is no version id, expected v and 12 hexadecimal digits")
        target = self._versions / version
        # The copy takes over its source's age, so it is this folder around it that tells how old the attempt is.
        partial = self._versions / f".{version}.{uuid.uuid4().hex[:8]}.partial"
        with _storage(self.root):
            self._versions.mkdir(parents=True, exist_ok=True)
            self._remove_stale()
            try:
                partial.mkdir()
                copy = Path(shutil.copytree(folder, partial / version))
                artifacts.seal(copy)
                _verify(copy, version)
                with self._lock():
                    if not target.exists():
                        copy.rename(target)
                    elif (differing := _differing(copy, target)) is not None:
                        raise InputError(
                            f"{target / differing}: version {version} is published already, with other content; "
                            f"versions never change"
                        )
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def move(self, alias: str, version: str, expected: str) -> None:
        self._folder(version)
        with _storage(self.root), self._lock():
            record = self._record(alias)
            current = record.get("version", "")
            if current == version and expected in (version, record["previous"]):
                return
            if current != expected:
                raise RunStopped(
                    f"registry {self.uri}: {alias} is {current or 'not set'}, expected {expected or 'not set'}; "
                    f"someone else moved it meanwhile, so it stays and {version} is not promoted"
                )
            self._set(alias, "promote", version, previous=current)

    def rollback(self) -> str:
        with _storage(self.root), self._lock():
            current = self.champion()
            # Promotions stack up and a rollback takes the top one off, so a second rollback goes further back.
            stack: list[str] = []
            for record in self.history():
                if record["alias"] == CHAMPION and record["action"] == "promote":
                    stack = [*stack, record["version"]] if record["previous"] else [record["version"]]
                elif record["alias"] == CHAMPION:
                    stack = stack[:-1]
            if not current:
                raise InputError(f"registry {self.uri}: no champion yet, so there is nothing to roll back")
            if len(stack) < 2:
                raise InputError(f"registry {self.uri}: {current} is the first champion, nothing to roll back to")
            target = stack[-2]
            self.fetch(target)
            self._set(CHAMPION, "rollback", target, previous=current)
            return target

    def check(self) -> None:
        with _storage(self.root):
            self._versions.mkdir(parents=True, exist_ok=True)
            probe = self._versions / f".{uuid.uuid4().hex[:8]}.partial"
            probe.write_text("writable\n", encoding="utf-8")
            probe.unlink()
        self.champion()

    # Parts --------------------------------------------------------------------------------------------------------

    def _folder(self, version: str) -> Path:
        folder = self._versions / version
        if not is_version_id(version) or not folder.is_dir():
            known = ", ".join(self.versions()) or "none"
            raise InputError(f"registry {self.uri}: no version {version!r}; it has: {known}")
        return folder

    def _record(self, alias: str) -> dict[str, Any]:
        """The latest record of `alias`; empty where it was never set."""
        path = self.root / "aliases" / f"{alias}.json"
        if not path.exists():
            return {}
        record = artifacts.read_json(path)
        if not isinstance(record, dict) or not is_version_id(str(record.get("version"))):
            raise InputError(f"{path}: got {record!r}, expected a record with a version")
        return record

    def _set(self, alias: str, action: str, version: str, previous: str) -> None:
        """Point `alias` to `version` and log it. The lock is held."""
        self._complete_log()
        record = {
            "alias": alias,
            "action": action,
            "version": version,
            "previous": previous,
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "by": _who(),
        }
        artifacts.write_json(self.root / "aliases" / f"{alias}.json", record)
        self._append(record)

    def _complete_log(self) -> None:
        """Repair what a kill left: half a line at the log's end, or an alias that moved without a line."""
        if self._history.exists():
            text = self._history.read_bytes()
            if not text.endswith(b"\n"):
                os.truncate(self._history, text.rfind(b"\n") + 1)
        for record in self._unlogged(self._logged()):
            self._append(record)

    def _unlogged(self, logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # An alias moves before its record is logged, so a kill in between leaves the log one record short.
        latest = {record["alias"]: record for record in logged}
        aliases = sorted(path.stem for path in (self.root / "aliases").glob("[!.]*.json"))
        return [record for record in map(self._record, aliases) if record != latest.get(record["alias"])]

    def _append(self, record: dict[str, Any]) -> None:
        with self._history.open("a", encoding="utf-8") as log:
            log.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _logged(self) -> list[dict[str, Any]]:
        try:
            text = self._history.read_bytes()
        except FileNotFoundError:
            return []
        records = []
        for number, line in enumerate(text.split(b"\n")[:-1], start=1):  # what follows the last break is half a line
            try:
                records.append(json.loads(line))
            except (json.JSONDecodeError, UnicodeDecodeError):
                raise InputError(f"{self._history}: line {number} is not JSON ({line[:60]!r})") from None
        return records

    def _remove_stale(self) -> None:
        for folder in (self._versions, self.root / "aliases"):
            for path in folder.glob(".*.partial"):
                with contextlib.suppress(FileNotFoundError):  # another publisher may be removing it too
                    if time.time() - path.stat().st_mtime > STALE_SECONDS:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        # flock, not lockf: it also keeps threads of one process apart, and closing another handle does not drop it.
        with (self.root / ".lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


@contextlib.contextmanager
def _storage(root: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line."""
    try:
        yield
    except OSError as error:
        place, reason = error.filename or root, error.strerror or " ".join(str(error).split())[:200]
        raise InputError(f"registry {root}: cannot use {place} ({reason})") from error


def _verify(folder: Path, version: str) -> None:
    """Check every byte of a version, and that its student is the one that its id stands for."""
    artifacts.verify(folder)
    digest = artifacts.verify(folder / "student")
    if version_id(digest) != version:
        raise InputError(f"{folder / 'student'}: is version {version_id(digest)}, expected {version}")


def _differing(left: Path, right: Path) -> str | None:
    """The first file in which two sealed folders differ, or None."""
    ours, theirs = (artifacts.read_json(folder / artifacts.SEAL)["files"] for folder in (left, right))
    return next((name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)), None)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user that has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
