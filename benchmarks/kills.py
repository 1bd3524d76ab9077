"""Kill processes and run them again until they complete: at random times, and before each change that they make.

A `Victim` is a function that makes a folder and resumes in it after a kill. `kill` kills victims at random times,
`kill_at_boundaries` kills one before each change of a file, folder or remote object.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import Failed

TIMEOUT_SECONDS = 600.0
"""Time limit of an attempt, after which it counts as hung."""
UNBROKEN = 3
"""Number of runs without a kill; the fastest one gives the range of times for kills."""
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGE_EVENTS = frozenset(
    ("os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.mkdir", "http.client.send")
)
"""Python audit events of changes, besides `open` for writing; every HTTP request counts as one."""


@dataclass(frozen=True)
class Victim:
    """Work that must survive kills."""

    name: str
    make: Callable[[Path], object]
    """Makes an output folder. When called again after a kill, it resumes in the same folder."""
    digest: Callable[[Path], str]
    """Returns the digest of everything in the folder that must not depend on kills."""
    rows: Callable[[Path], Iterable[Hashable]] = lambda folder: ()
    """Returns the keys of the rows in the folder, if it has any: none may be lost or duplicated."""
    progress: Callable[[Path], str] = lambda folder: "somewhere"
    """Describes how far an unfinished folder is, for the distribution of kills."""


def attempt(make: Callable[[Path], object], folder: Path, seconds: float = TIMEOUT_SECONDS) -> bool:
    """Run `make(folder)` in a fork of this process, and return whether it completed within a time limit.

    A fork takes milliseconds and has everything imported. This process must not have started threads.

    Args:
        make: function to run.
        folder: its argument.
        seconds: time after which the fork is killed.

    Raises:
        Failed: the function raised an exception.
    """
    process = multiprocessing.get_context("fork").Process(target=_run_silently, args=(make, folder))
    process.start()
    process.join(seconds)
    process.kill()  # no effect on a process that has ended
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise Failed(f"{make!r}: ended with {process.exitcode}")
    return process.exitcode == 0


def _run_silently(make: Callable[[Path], object], folder: Path) -> None:
    with Path(os.devnull).open("w") as null:
        os.dup2(null.fileno(), 1)
    make(folder)


def killed_before(make: Callable[[Path], object], boundary: int) -> Callable[[Path], object]:
    """Wrap `make` so that it kills its own process just before its change number `boundary`, counted from 0."""

    def run(folder: Path) -> None:
        changes = itertools.count()

        def die(event: str, arguments: tuple[Any, ...]) -> None:
            if _is_change(event, arguments) and next(changes) == boundary:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        make(folder)

    return run


def count_boundaries(make: Callable[[Path], object], folder: Path) -> int:
    """Run `make(folder)` without a kill, and return its number of changes.

    Raises:
        Failed: the function raised an exception or hung.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)

    def run(folder: Path) -> None:
        changes = itertools.count()

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            if _is_change(event, arguments):
                next(changes)

        sys.addaudithook(count)
        make(folder)
        os.write(writer, str(next(changes)).encode())

    try:
        if not attempt(run, folder):
            raise Failed(f"{make!r}: an unbroken run took more than {TIMEOUT_SECONDS:.0f} s")
        return int(os.read(reader, 100))
    finally:
        os.close(reader)
        os.close(writer)


def _is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    return event in CHANGE_EVENTS or (event == "open" and bool(arguments[2] & WRITE_FLAGS))


def spread(count: int, limit: int) -> list[int]:
    """Return at most `limit` of the numbers below `count`, evenly spaced, the first and the last among them."""
    if limit >= count:
        return list(range(count))
    return sorted({round(point) for point in np.linspace(0, count - 1, limit)})


def kill_at_boundaries(victim: Victim, limit: int, scratch: Path) -> dict[str, Any]:
    """Kill a victim once before each of its changes, run it again to its end, and compare with an unbroken run.

    Args:
        victim: work to kill; deterministic.
        limit: maximum number of kills, evenly spaced over all changes.
        scratch: folder for outputs.

    Returns:
        Number of changes and kills; runs with another digest (`different`); rows lost and doubled.
    """
    if not attempt(victim.make, scratch / "first"):  # may write caches of bytecode, which later runs do not
        raise Failed(f"{victim.name}: an unbroken run took more than {TIMEOUT_SECONDS:.0f} s")
    unbroken = scratch / "unbroken"
    changes = count_boundaries(victim.make, unbroken)
    expected, rows = victim.digest(unbroken), Counter(victim.rows(unbroken))
    kills = different = lost = doubled = 0
    for boundary in spread(changes, limit):
        folder = scratch / f"boundary-{boundary}"
        kills += not attempt(killed_before(victim.make, boundary), folder)
        if not attempt(victim.make, folder):
            raise Failed(f"{victim.name}: killed before change {boundary}, it hangs when it runs again")
        resumed_rows = Counter(victim.rows(folder))
        different += victim.digest(folder) != expected
        lost += (rows - resumed_rows).total()
        doubled += (resumed_rows - rows).total()
        shutil.rmtree(folder)
    print(f"benchmark | {victim.name}: {kills} kills before {changes} changes", file=sys.stderr, flush=True)
    return {"changes": changes, "kills": kills, "different": different, "lost": lost, "doubled": doubled}


def kill(victims: Sequence[Victim], kills: int, scratch: Path, seed: int) -> dict[str, Any]:
    """Kill runs of the victims at random times, and run them again until they complete.

    Args:
        victims: work to kill, in equal shares.
        kills: total number of kills.
        scratch: folder for outputs.
        seed: seed of the times, which are uniform over the duration of an unbroken run.

    Returns:
        Results by victim; see `_kill_one`.
    """
    share, remainder = divmod(kills, len(victims))
    return {
        victim.name: _kill_one(
            victim, share + (index < remainder), scratch / victim.name, np.random.default_rng([seed, index])
        )
        for index, victim in enumerate(victims)
    }


def _kill_one(victim: Victim, kills: int, scratch: Path, draw: np.random.Generator) -> dict[str, Any]:
    durations, digests = [], set()
    for number in range(UNBROKEN):
        unbroken = scratch / f"unbroken-{number}"
        started = time.perf_counter()
        if not attempt(victim.make, unbroken):
            raise Failed(f"{victim.name}: an unbroken run took more than {TIMEOUT_SECONDS:.0f} s")
        durations.append(time.perf_counter() - started)
        digests.add(victim.digest(unbroken))
    if len(digests) > 1:
        raise Failed(f"{victim.name}: unbroken runs differ from each other, so the effect of kills cannot be measured")
    seconds, expected, rows = min(durations), digests.pop(), Counter(victim.rows(unbroken))
    kills_by_progress: Counter[str] = Counter()
    runs = different = lost = doubled = 0
    while kills_by_progress.total() < kills:
        folder = scratch / "killed"
        # Slightly longer than an unbroken run, so that a victim that never resumes also completes at some point.
        while not attempt(
            victim.make,
            folder,
            draw.uniform(0, 1.1 * seconds) if kills_by_progress.total() < kills else TIMEOUT_SECONDS,
        ):
            kills_by_progress[victim.progress(folder)] += 1
        resumed_rows = Counter(victim.rows(folder))
        runs += 1
        different += victim.digest(folder) != expected
        lost += (rows - resumed_rows).total()
        doubled += (resumed_rows - rows).total()
        shutil.rmtree(folder)
        count = kills_by_progress.total()
        print(f"benchmark | {victim.name}: {count}/{kills} kills, {runs} runs", file=sys.stderr, flush=True)
    return {
        "kills": kills_by_progress.total(),
        "kills_by_progress": dict(sorted(kills_by_progress.items())),
        "runs": runs,
        "rows": rows.total(),
        "unbroken_seconds": round(seconds, 3),
        "different": different,
        "lost": lost,
        "doubled": doubled,
    }
