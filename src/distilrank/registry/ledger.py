"""Aliases, their history, and the test evaluations of candidates, for every kind of storage.

    aliases/<alias>.json              latest record of an alias; a promotion replaces it by compare-and-swap
    history/<alias>/<number>.json     records of an alias, each written once
    looks/<test set>/<candidate>      a test evaluation, written once
    looks/sketches/<test set>         a sample of the test set's queries, written once; earlier releases wrote none

A record enters the history after its alias has moved. A process that is killed in between, or that may not write to the
history, leaves it one record short. Readers complete the history from the alias in memory; the storage is completed
when the operation is repeated, or before the alias moves again. Numbers are therefore consecutive and unique.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from distilrank.core import artifacts
from distilrank.core import sketch as sketches
from distilrank.core.errors import InputError, RunStopped
from distilrank.registry import content
from distilrank.registry.base import CHAMPION, Backend, is_alias, is_version_id, require_champion

MINIMUM_AGE = 24 * 3600.0
"""Seconds for which a version without an alias is kept. Its alias usually moves minutes after it was published."""
SHARED = 0.25
"""Share of common queries from which an evaluation on one test set counts for the other too (docs/decisions.md)."""
READERS = 8
"""Number of records that are read at the same time, since each may be a request."""

TEST_EVALUATIONS = "looks"
"""Folder of the test evaluations. Its name is that of existing registries."""
SKETCHES = f"{TEST_EVALUATIONS}/sketches"

_DIGEST = re.compile(r"[0-9a-f]{8,64}")

Record = dict[str, Any]


class Ledger(ABC):
    """The methods of `registry.Backend` that need only to read, list and conditionally write small files."""

    uri: str
    _repair = ""
    """Advice if alias and history disagree, on storage that may have admitted two writers at once."""

    # Operations of the storage ------------------------------------------------------------------------------------

    @abstractmethod
    def versions(self) -> list[str]:
        """See `Backend`."""

    @abstractmethod
    def location(self, version: str) -> str:
        """See `Backend`."""

    @abstractmethod
    def fetch(self, version: str) -> Path:
        """See `Backend`."""

    @abstractmethod
    def _full_path(self, name: str) -> str:
        """Return the path or URI of the file `name`, for messages."""

    @abstractmethod
    def _read(self, name: str) -> tuple[bytes, Any] | None:
        """Return the content of the file and a token of its current state; None if there is no such file."""

    @abstractmethod
    def _write(self, name: str, data: bytes, token: Any) -> bool:
        """Replace the file if its state is still that of `token` (None: it must not exist); False if it is not."""

    @abstractmethod
    def _names(self, folder: str) -> list[str]:
        """Return the sorted names of the files and folders directly in `folder`."""

    @abstractmethod
    def _changing(self) -> AbstractContextManager[None]:
        """Lock out other writers, if the storage has locks. If not, `_write` alone resolves conflicts."""

    @abstractmethod
    def _claim(self, version: str) -> str:
        """Protect a version from `collect` as if it had just been published, and return its digest.

        Raises:
            InputError: there is no such version.
        """

    @abstractmethod
    def _ages(self) -> dict[str, tuple[float, Any]]:
        """Return, for every version, the seconds since it was published or claimed, and a token for `_remove`."""

    @abstractmethod
    def _remove(self, version: str, token: Any) -> bool:
        """Remove a version, unless it was claimed after `token` was issued; False if it stays."""

    @abstractmethod
    def _sweep(self) -> None:
        """Remove the partial files of killed publishers."""

    # Reading ------------------------------------------------------------------------------------------------------

    def alias(self, name: str) -> str:
        head = self._head(name)
        return head[0]["version"] if head else ""

    def aliases(self) -> dict[str, str]:
        return {name: self.alias(name) for name in self._aliases()}

    def history(self) -> list[Record]:
        records: list[tuple[str, Record]] = []
        for alias in self._aliases():
            latest = ""  # clocks differ, so the numbers define the order within an alias
            for record in self._chain(alias):
                latest = max(latest, record["since"])
                records.append((latest, record))
        return [record for _, record in sorted(records, key=lambda pair: pair[0])]

    # Changing -----------------------------------------------------------------------------------------------------

    def move(self, alias: str, version: str, expected: str, *, action: str = "promote", reason: str = "") -> None:
        with self._changing():
            entry = self._head(alias)
            head = entry[0] if entry else None
            current, previous = (head["version"], head["previous"]) if head else ("", "")
            if head and current == version and expected in (version, previous):
                self._log(head)
                return
            if current != expected:
                raise self._lost(alias, current, expected, f"{version} is not promoted")
            self._swap(alias, version, entry, action, reason)

    def rollback(self, alias: str = CHAMPION, reason: str = "", expected: str = "") -> str:
        with self._changing():
            entry = self._head(alias)
            if not entry:
                if alias == CHAMPION:
                    require_champion(cast(Backend, self))
                state = "no champion yet" if alias == CHAMPION else f"{alias} was never set"
                raise InputError(f"registry {self.uri}: {state}, so there is nothing to roll back")
            head = entry[0]
            is_done = head["previous"] == expected if expected else self._read(_log_name(head)) is None
            if head["action"] == "rollback" and is_done:  # an interrupted or repeated attempt
                self._log(head)
                return head["version"]
            if expected not in ("", head["version"]):
                raise self._lost(alias, head["version"], expected, "nothing is rolled back")
            # A move pushes a version onto a stack and a rollback pops it, so a second rollback goes further back.
            stack: list[str] = []
            for record in self._chain(alias)[: head["number"]]:
                stack = stack[:-1] if record["action"] == "rollback" else [*stack, record["version"]]
            if len(stack) < 2:
                raise InputError(
                    f"registry {self.uri}: {head['version']} is the first {alias}, so there is nothing to roll back to"
                )
            self.fetch(stack[-2])
            self._swap(alias, stack[-2], entry, "rollback", reason)
            return stack[-2]

    def record_test_evaluation(self, test_set: str, candidate: str, sketch: str = "") -> int:
        if not _DIGEST.fullmatch(test_set):
            raise InputError(f"registry {self.uri}: {test_set!r} is not a test set, expected the digest of a test set")
        if not is_version_id(candidate):
            raise InputError(f"registry {self.uri}: {candidate!r} is not a candidate, expected the id of a version")
        if sketch and not sketches.is_sketch(sketch):
            raise InputError(f"registry {self.uri}: the sketch of test set {test_set[:12]} is damaged; evaluate again")
        # The sketch comes first, so that of two concurrent evaluations on overlapping sets at least one sees the other.
        sketched = self._names(SKETCHES) if sketch else []
        if sketch and test_set not in sketched:
            with self._changing():
                self._write(f"{SKETCHES}/{test_set}", content.encode({"sketch": sketch}), None)
        if candidate not in self._names(f"{TEST_EVALUATIONS}/{test_set}"):
            record = {"since": _now(), "by": _who()}
            with self._changing():
                self._write(f"{TEST_EVALUATIONS}/{test_set}/{candidate}", content.encode(record), None)
        overlapping = self._overlapping(test_set, sketch) if sketch else []
        folders = [f"{TEST_EVALUATIONS}/{name}" for name in (test_set, *overlapping)]
        candidates = {name for folder in folders for name in self._names(folder)}
        return len(candidates | {candidate})

    def collect(self, keep: int, *, dry_run: bool) -> list[str]:
        if keep < 1:
            raise InputError(f"registry {self.uri}: keep is {keep}, expected at least 1")
        with self._changing():
            # Ages are read first: a version claimed later has a new token, and one claimed before is too young.
            ages = self._ages()
            needed = self._needed(keep)
            removable = [version for version, (age, _) in ages.items() if age > MINIMUM_AGE and version not in needed]
            if removable:
                require_champion(cast(Backend, self))
            if dry_run:
                return sorted(removable)
            removed = [version for version in sorted(removable) if self._remove(version, ages[version][1])]
            self._sweep()
            return removed

    # Internals ----------------------------------------------------------------------------------------------------

    def _overlapping(self, test_set: str, sketch: str) -> list[str]:
        """Return the other test sets that share enough queries with this one."""
        others = [name for name in self._names(SKETCHES) if name != test_set]
        names = [f"{SKETCHES}/{other}" for other in others]
        with ThreadPoolExecutor(READERS) as pool:
            contents = list(pool.map(self._read, names))
        overlapping = []
        for other, name, read in zip(others, names, contents, strict=True):
            theirs = content.decode(read[0], self._full_path(name)).get("sketch") if read else None
            if not sketches.is_sketch(theirs):
                raise InputError(f"{self._full_path(name)}: damaged, expected the sketch of a test set")
            if sketches.shared(sketch, theirs) >= SHARED:
                overlapping.append(other)
        return overlapping

    def _aliases(self) -> list[str]:
        current = {name.removesuffix(".json") for name in self._names("aliases") if name.endswith(".json")}
        # The file of an alias that has a history but no file was lost; reading that alias reports it.
        return [name for name in sorted(current | set(self._names("history"))) if is_alias(name)]

    def _head(self, alias: str) -> tuple[Record, Any] | None:
        """Return the latest record of an alias and the token of its file; None if it was never set."""
        if not is_alias(alias):
            raise InputError(
                f"registry {self.uri}: {alias!r} is not an alias, expected lower-case letters, digits and hyphens"
            )
        name = f"aliases/{alias}.json"
        file = self._read(name)
        if file is None and self._names(f"history/{alias}"):
            file = self._read(name)  # it may have been set meanwhile, since the history is written later
            if file is None:
                raise InputError(
                    f"{self._full_path(name)}: is missing, but {alias} has a history; restore it from there"
                )
        return (self._parse(name, file[0], alias), file[1]) if file else None

    def _parse(self, name: str, data: bytes, alias: str, number: int | None = None) -> Record:
        record = content.decode(data, self._full_path(name))
        digest = artifacts.digest_json({key: value for key, value in record.items() if key != "digest"})
        if record.get("digest") != digest:
            raise InputError(f"{self._full_path(name)}: damaged, its digest does not match the record")
        if record.get("alias") != alias or number not in (None, record.get("number")):
            raise InputError(
                f"{self._full_path(name)}: holds record {record.get('number')} of {record.get('alias')!r}, "
                "expected the record that its name states"
            )
        return record

    def _chain(self, alias: str) -> list[Record]:
        """Return all records of an alias, oldest first, and check that each follows the one before."""
        # Listed before the alias is read, since a record is written only after its alias has moved.
        listed = self._names(f"history/{alias}")
        entry = self._head(alias)
        head = entry[0] if entry else None
        for number, name in enumerate(listed, start=1):
            expected = _log_name({"alias": alias, "number": number})
            if expected != f"history/{alias}/{name}":
                raise InputError(f"{self._full_path(expected)}: is missing, although {name} exists")
        names = [f"history/{alias}/{name}" for name in listed]
        with ThreadPoolExecutor(READERS) as pool:
            contents = list(pool.map(self._read, names))
        records = []
        for number, (name, read) in enumerate(zip(names, contents, strict=True), start=1):
            if read is None:
                raise InputError(f"{self._full_path(name)}: was removed while the history was read")
            records.append(self._parse(name, read[0], alias, number))
        if head is None and not records:
            return []
        if head is None or head["number"] < len(records):
            state = f"is record {head['number']}" if head else "is missing"
            path = self._full_path(f"aliases/{alias}.json")
            raise InputError(
                f"{path}: {state}, but the history of {alias} has {len(records)} records; the file was replaced"
            )
        records += self._later(alias, len(records), head)
        if records[-1] != head:
            path = self._full_path(_log_name(head))
            raise InputError(f"{path}: differs from the record in the file of {alias}{self._repair}")
        for before, record in zip([None, *records], records, strict=False):
            if record["before"] != (before["digest"] if before else ""):
                path = self._full_path(_log_name(record))
                raise InputError(f"{path}: does not follow the previous record; one of the two was replaced")
        return records

    def _later(self, alias: str, listed: int, head: Record) -> list[Record]:
        """Return the records after the first `listed`, since the alias may have moved after its history was listed."""
        records = []
        for number in range(listed + 1, head["number"]):
            name = _log_name({"alias": alias, "number": number})
            read = self._read(name)
            if read is None:
                raise InputError(
                    f"{self._full_path(name)}: is missing, although the alias is at record {head['number']}"
                )
            records.append(self._parse(name, read[0], alias, number))
        return [*records, head] if head["number"] > listed else []

    def _swap(self, alias: str, version: str, entry: tuple[Record, Any] | None, action: str, reason: str) -> None:
        """Move an alias, provided that its record and token are still those of `entry`.

        Raises:
            RunStopped: the alias has moved in the meantime.
        """
        head, token = entry or (None, None)
        if head:
            self._log(head)
        digest = self._claim(version)
        record = {
            "alias": alias,
            "number": head["number"] + 1 if head else 1,
            "action": action,
            "version": version,
            "content": digest,
            "previous": head["version"] if head else "",
            "since": _now(),
            "by": _who(),
            "reason": reason,
            "before": head["digest"] if head else "",
            "token": uuid.uuid4().hex,
        }
        record["digest"] = artifacts.digest_json(record)
        if not self._write(f"aliases/{alias}.json", content.encode(record), token):
            current, expected = self.alias(alias), head["version"] if head else ""
            outcome = "nothing is rolled back" if action == "rollback" else f"{version} is not promoted"
            raise self._lost(alias, current, expected, outcome)
        try:
            self._log(record)
        except InputError as error:
            raise InputError(
                f"{error}; {alias} is already {version} and only this record is missing: repeat the command to add it"
            ) from None

    def _lost(self, alias: str, current: str, expected: str, outcome: str) -> RunStopped:
        return RunStopped(
            f"registry {self.uri}: {alias} is {current or 'not set'}, expected {expected or 'not set'}; "
            f"someone else moved it in the meantime, so it stays and {outcome}"
        )

    def _log(self, record: Record) -> None:
        name, data = _log_name(record), content.encode(record)
        existing = self._read(name)
        if existing is None and not self._write(name, data, None):  # another promoter may complete the history too
            existing = self._read(name)
        if existing is not None and existing[0] != data:
            path = self._full_path(name)
            raise InputError(f"{path}: damaged, it differs from the record that {record['alias']} had{self._repair}")

    def _needed(self, keep: int) -> set[str]:
        """Return the versions in the last `keep` records of each alias."""
        chains = [self._chain(alias) for alias in self._aliases()]
        return {record["version"] for chain in chains for record in chain[-keep:]}

    def _verify_history(self, version: str, digest: str, records: Iterable[Record]) -> None:
        """Check the digest of a version against all records that name it.

        Raises:
            InputError: an alias was pointed to different content.
        """
        for record in records:
            if record["version"] == version and record["content"] != digest:
                path = f"{self.location(version)}/{artifacts.SEAL}"
                raise InputError(
                    f"{path}: digest {digest[:12]} differs from {record['content'][:12]}, to which {record['alias']} "
                    f"was pointed; the version was replaced"
                )

    def _heads(self) -> list[Record]:
        entries = (self._head(alias) for alias in self._aliases())
        return [entry[0] for entry in entries if entry]


def _log_name(record: Record) -> str:
    return f"history/{record['alias']}/{record['number']:08d}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user of a container may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
