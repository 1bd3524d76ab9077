"""Aliases, their history, and which candidates each test set has evaluated: the same on every kind of storage.

    aliases/<alias>.json              an alias: its latest record, replaced by compare-and-swap; that is the promotion
    history/<alias>/<number>.json     its records, each written once
    looks/<test set>/<candidate>      a test evaluation, written once
    looks/sketches/<test set>         a sample of its queries, written once; those of earlier releases have none

A record enters the history after its alias has moved, so whoever is killed in between, or may not write there, leaves
the history one short: it is completed from the alias, for readers in memory, and in the storage when the same act is
repeated or before the alias moves again. So numbers have no gap, and no two records have the same one.
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
"""Seconds for which a published version is kept although no alias names it; from publishing to moving takes minutes."""
SHARED = 0.25
"""Share of common queries from which an evaluation on one test set counts for the other too: docs/decisions.md."""
READERS = 8
"""Records that are read at a time: each may be a request."""

TEST_EVALUATIONS = "looks"
"""Folder of the test evaluations, by its name in every registry so far."""
SKETCHES = f"{TEST_EVALUATIONS}/sketches"

_DIGEST = re.compile(r"[0-9a-f]{8,64}")

Record = dict[str, Any]


class Ledger(ABC):
    """What of a registry.Backend follows from reading, listing and conditionally writing small files by name."""

    uri: str
    _repair = ""
    """What to do where alias and history disagree, if the storage may have let two writers in at once."""

    # What the storage gives ---------------------------------------------------------------------------------------

    @abstractmethod
    def versions(self) -> list[str]:
        """See Backend."""

    @abstractmethod
    def location(self, version: str) -> str:
        """See Backend."""

    @abstractmethod
    def fetch(self, version: str) -> Path:
        """See Backend."""

    @abstractmethod
    def _place(self, name: str) -> str:
        """What a person calls the file `name`."""

    @abstractmethod
    def _read(self, name: str) -> tuple[bytes, Any] | None:
        """The content of the file, and a token that stands for it as it is now; None: there is none."""

    @abstractmethod
    def _write(self, name: str, data: bytes, token: Any) -> bool:
        """Replace the file that `token` stands for (None: there must be none) as a whole; False: it is another one."""

    @abstractmethod
    def _names(self, folder: str) -> list[str]:
        """Names of the files and folders right in `folder`, without it, sorted."""

    @abstractmethod
    def _changing(self) -> AbstractContextManager[None]:
        """Keeps other writers away where the storage can; else `_write` alone decides."""

    @abstractmethod
    def _claim(self, version: str) -> str:
        """The digest of a complete version, which from now on is as safe from `collect` as a new one.

        Raises:
            InputError: there is no such version.
        """

    @abstractmethod
    def _ages(self) -> dict[str, tuple[float, Any]]:
        """Of every version: seconds since it was published or claimed, and what `_remove` needs to know."""

    @abstractmethod
    def _remove(self, version: str, known: Any) -> bool:
        """Remove a version, unless it has been claimed since `known`; False: it stays."""

    @abstractmethod
    def _sweep(self) -> None:
        """Remove what publishers that were killed have left behind."""

    # Reading ------------------------------------------------------------------------------------------------------

    def alias(self, name: str) -> str:
        found = self._head(name)
        return found[0]["version"] if found else ""

    def aliases(self) -> dict[str, str]:
        return {name: self.alias(name) for name in self._aliases()}

    def history(self) -> list[Record]:
        records: list[tuple[str, Record]] = []
        for alias in self._aliases():
            latest = ""  # clocks differ: the order within an alias is that of its numbers
            for record in self._chain(alias):
                latest = max(latest, record["since"])
                records.append((latest, record))
        return [record for _, record in sorted(records, key=lambda pair: pair[0])]

    # Changing -----------------------------------------------------------------------------------------------------

    def move(self, alias: str, version: str, expected: str, *, action: str = "promote", reason: str = "") -> None:
        with self._changing():
            found = self._head(alias)
            head = found[0] if found else None
            current, previous = (head["version"], head["previous"]) if head else ("", "")
            if head and current == version and expected in (version, previous):
                self._log(head)
                return
            if current != expected:
                raise self._lost(alias, current, expected, f"{version} is not promoted")
            self._swap(alias, version, found, action, reason)

    def rollback(self, alias: str = CHAMPION, reason: str = "", expected: str = "") -> str:
        with self._changing():
            found = self._head(alias)
            if not found:
                if alias == CHAMPION:
                    require_champion(cast(Backend, self))
                state = "no champion yet" if alias == CHAMPION else f"{alias} was never set"
                raise InputError(f"registry {self.uri}: {state}, so there is nothing to roll back")
            head = found[0]
            done = head["previous"] == expected if expected else self._read(_log_name(head)) is None
            if head["action"] == "rollback" and done:  # by an attempt that did not come to its end, or was repeated
                self._log(head)
                return head["version"]
            if expected not in ("", head["version"]):
                raise self._lost(alias, head["version"], expected, "nothing is rolled back")
            # Moves stack up and a rollback takes the top one off, so a second rollback goes further back.
            stack: list[str] = []
            for record in self._chain(alias)[: head["number"]]:
                stack = stack[:-1] if record["action"] == "rollback" else [*stack, record["version"]]
            if len(stack) < 2:
                raise InputError(
                    f"registry {self.uri}: {head['version']} is the first {alias}, nothing to roll back to"
                )
            self.fetch(stack[-2])
            self._swap(alias, stack[-2], found, "rollback", reason)
            return stack[-2]

    def record_test_evaluation(self, test_set: str, candidate: str, sketch: str = "") -> int:
        if not _DIGEST.fullmatch(test_set):
            raise InputError(f"registry {self.uri}: {test_set!r} is no test set, expected the digest of one")
        if not is_version_id(candidate):
            raise InputError(f"registry {self.uri}: {candidate!r} is no candidate, expected a version's id")
        if sketch and not sketches.is_sketch(sketch):
            raise InputError(f"registry {self.uri}: the sketch of test set {test_set[:12]} is damaged; evaluate again")
        # The sketch comes first: of two concurrent evaluations on overlapping sets, at least one finds the other.
        known = self._names(SKETCHES) if sketch else []
        if sketch and test_set not in known:
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
            # Ages first: what is claimed after that is found changed, what was claimed before is too young.
            ages = self._ages()
            needed = self._needed(keep)
            doomed = [version for version, (age, _) in ages.items() if age > MINIMUM_AGE and version not in needed]
            if doomed:
                require_champion(cast(Backend, self))
            if dry_run:
                return sorted(doomed)
            removed = [version for version in sorted(doomed) if self._remove(version, ages[version][1])]
            self._sweep()
            return removed

    # Parts --------------------------------------------------------------------------------------------------------

    def _overlapping(self, test_set: str, sketch: str) -> list[str]:
        """The other test sets that have enough of this one's queries."""
        others = [name for name in self._names(SKETCHES) if name != test_set]
        names = [f"{SKETCHES}/{other}" for other in others]
        with ThreadPoolExecutor(READERS) as pool:
            contents = list(pool.map(self._read, names))
        found = []
        for other, name, read in zip(others, names, contents, strict=True):
            theirs = content.decode(read[0], self._place(name)).get("sketch") if read else None
            if not sketches.is_sketch(theirs):
                raise InputError(f"{self._place(name)}: damaged, expected the sketch of a test set")
            if sketches.shared(sketch, theirs) >= SHARED:
                found.append(other)
        return found

    def _aliases(self) -> list[str]:
        set_now = {name.removesuffix(".json") for name in self._names("aliases") if name.endswith(".json")}
        # One that has a history and no file was lost: whoever reads it is told so.
        return [name for name in sorted(set_now | set(self._names("history"))) if is_alias(name)]

    def _head(self, alias: str) -> tuple[Record, Any] | None:
        """The latest record of an alias and the token of its file; None: it was never set."""
        if not is_alias(alias):
            raise InputError(
                f"registry {self.uri}: {alias!r} is no alias, expected lower-case letters, digits and hyphens"
            )
        name = f"aliases/{alias}.json"
        found = self._read(name)
        if found is None and self._names(f"history/{alias}"):
            found = self._read(name)  # set meanwhile, since its history comes after it
            if found is None:
                raise InputError(f"{self._place(name)}: is missing, but {alias} has a history; restore it from there")
        return (self._parse(name, found[0], alias), found[1]) if found else None

    def _parse(self, name: str, data: bytes, alias: str, number: int | None = None) -> Record:
        record = content.decode(data, self._place(name))
        digest = artifacts.digest_json({key: value for key, value in record.items() if key != "digest"})
        if record.get("digest") != digest:
            raise InputError(f"{self._place(name)}: damaged, its digest does not match the record")
        if record.get("alias") != alias or number not in (None, record.get("number")):
            raise InputError(
                f"{self._place(name)}: holds record {record.get('number')} of {record.get('alias')!r}, "
                "expected the one that its name says"
            )
        return record

    def _chain(self, alias: str) -> list[Record]:
        """All records of an alias, oldest first, each checked to follow the one before."""
        # Listed before the alias is read: a record is there only after its alias has moved.
        listed = self._names(f"history/{alias}")
        found = self._head(alias)
        head = found[0] if found else None
        for number, name in enumerate(listed, start=1):
            wanted = _log_name({"alias": alias, "number": number})
            if wanted != f"history/{alias}/{name}":
                raise InputError(f"{self._place(wanted)}: is missing, although {name} is there")
        names = [f"history/{alias}/{name}" for name in listed]
        with ThreadPoolExecutor(READERS) as pool:
            contents = list(pool.map(self._read, names))
        records = []
        for number, (name, read) in enumerate(zip(names, contents, strict=True), start=1):
            if read is None:
                raise InputError(f"{self._place(name)}: removed while it was read")
            records.append(self._parse(name, read[0], alias, number))
        if head is None and not records:
            return []
        if head is None or head["number"] < len(records):
            state = f"is record {head['number']}" if head else "is missing"
            place = self._place(f"aliases/{alias}.json")
            raise InputError(f"{place}: {state}, but {alias} has a history of {len(records)}; the file was replaced")
        records += self._later(alias, len(records), head)
        if records[-1] != head:
            place = self._place(_log_name(head))
            raise InputError(f"{place}: differs from the record that {alias} has{self._repair}")
        for before, record in zip([None, *records], records, strict=False):
            if record["before"] != (before["digest"] if before else ""):
                place = self._place(_log_name(record))
                raise InputError(f"{place}: does not follow the record before it; one of the two was replaced")
        return records

    def _later(self, alias: str, known: int, head: Record) -> list[Record]:
        """The records after the first `known`: the alias may have moved on since its history was listed."""
        records = []
        for number in range(known + 1, head["number"]):
            name = _log_name({"alias": alias, "number": number})
            read = self._read(name)
            if read is None:
                raise InputError(f"{self._place(name)}: is missing, although the alias is at record {head['number']}")
            records.append(self._parse(name, read[0], alias, number))
        return [*records, head] if head["number"] > known else []

    def _swap(self, alias: str, version: str, found: tuple[Record, Any] | None, action: str, reason: str) -> None:
        """Move an alias from the record and token that were `found`.

        Raises:
            RunStopped: it has moved since.
        """
        head, token = found or (None, None)
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
                f"{error}; {alias} is {version} already and only this record is missing: repeat the command to add it"
            ) from None

    def _lost(self, alias: str, current: str, expected: str, outcome: str) -> RunStopped:
        return RunStopped(
            f"registry {self.uri}: {alias} is {current or 'not set'}, expected {expected or 'not set'}; "
            f"someone else moved it meanwhile, so it stays and {outcome}"
        )

    def _log(self, record: Record) -> None:
        name, data = _log_name(record), content.encode(record)
        there = self._read(name)
        if there is None and not self._write(name, data, None):  # another promoter completes the history too
            there = self._read(name)
        if there is not None and there[0] != data:
            place = self._place(name)
            raise InputError(f"{place}: damaged, it differs from the record that {record['alias']} had{self._repair}")

    def _needed(self, keep: int) -> set[str]:
        """Versions that an alias names, or named in its last `keep` records."""
        chains = [self._chain(alias) for alias in self._aliases()]
        return {record["version"] for chain in chains for record in chain[-keep:]}

    def _verify_history(self, version: str, digest: str, records: Iterable[Record]) -> None:
        """Refuse a version of which an alias's record knows another content.

        Raises:
            InputError: it is not the content that the alias was pointed to.
        """
        for record in records:
            if record["version"] == version and record["content"] != digest:
                place = f"{self.location(version)}/{artifacts.SEAL}"
                raise InputError(
                    f"{place}: digest {digest[:12]} differs from {record['content'][:12]}, which {record['alias']} was "
                    f"pointed to; the version was replaced"
                )

    def _heads(self) -> list[Record]:
        found = (self._head(alias) for alias in self._aliases())
        return [one[0] for one in found if one]


def _log_name(record: Record) -> str:
    return f"history/{record['alias']}/{record['number']:08d}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user that has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
