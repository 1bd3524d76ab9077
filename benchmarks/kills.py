"""Processes that are killed at random moments and started again until they come to their end."""

from __future__ import annotations

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

LONGEST = 600.0  # seconds after which an attempt hangs
UNBROKEN = 3  # runs before the kills, the quickest of which tells when to kill


@dataclass(frozen=True)
class Victim:
    """Work that must survive being killed."""

    name: str
    make: Callable[[Path], object]
    """Makes an output folder; called again after a kill, it goes on in the same one."""
    digest: Callable[[Path], str]
    """Of all in that folder that must not depend on kills."""
    rows: Callable[[Path], Iterable[Hashable]] = lambda folder: ()
    """Keys of the rows in it, where there are any: none may be lost, none may be there twice."""
    progress: Callable[[Path], str] = lambda folder: "somewhere"
    """How far an unfinished folder is, for the tally of where the kills fell."""


def attempt(make: Callable[[Path], object], folder: Path, seconds: float = LONGEST) -> bool:
    """Run `make(folder)` in a fork of this process, killed after so many seconds; return whether it came to its end.

    Forks are made in milliseconds and have everything imported. This process must not have started threads.

    Raises:
        Failed: it raised.
    """
    process = multiprocessing.get_context("fork").Process(target=_quietly, args=(make, folder))
    process.start()
    process.join(seconds)
    process.kill()  # nothing happens to one that has ended
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise Failed(f"{make!r}: ended with {process.exitcode}")
    return process.exitcode == 0


def _quietly(make: Callable[[Path], object], folder: Path) -> None:
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    make(folder)


def kill(victims: Sequence[Victim], kills: int, scratch: Path, seed: int) -> dict[str, Any]:
    """Kill so many runs of the victims, in equal shares, at moments drawn from the length of an unbroken run.

    Returns:
        Figures by victim; see `_kill_one`.
    """
    share, more = divmod(kills, len(victims))
    return {
        victim.name: _kill_one(victim, share + (at < more), scratch / victim.name, np.random.default_rng([seed, at]))
        for at, victim in enumerate(victims)
    }


def _kill_one(victim: Victim, kills: int, scratch: Path, draw: np.random.Generator) -> dict[str, Any]:
    took, digests = [], set()
    for number in range(UNBROKEN):
        unbroken = scratch / f"unbroken-{number}"
        began = time.perf_counter()
        if not attempt(victim.make, unbroken):
            raise Failed(f"{victim.name}: an unbroken run took more than {LONGEST:.0f} s")
        took.append(time.perf_counter() - began)
        digests.add(victim.digest(unbroken))
    if len(digests) > 1:
        raise Failed(f"{victim.name}: unbroken runs differ from each other, so kills cannot be told from chance")
    seconds, expected, rows = min(took), digests.pop(), Counter(victim.rows(unbroken))
    fell: Counter[str] = Counter()
    runs = different = lost = doubled = 0
    while fell.total() < kills:
        folder = scratch / "killed"
        # A little longer than an unbroken run, so that also one that never finds anything to resume would end.
        while not attempt(victim.make, folder, draw.uniform(0, 1.1 * seconds) if fell.total() < kills else LONGEST):
            fell[victim.progress(folder)] += 1
        found = Counter(victim.rows(folder))
        runs += 1
        different += victim.digest(folder) != expected
        lost += (rows - found).total()
        doubled += (found - rows).total()
        shutil.rmtree(folder)
        print(f"benchmark | {victim.name}: {fell.total()}/{kills} kills, {runs} runs", file=sys.stderr, flush=True)
    return {
        "kills": fell.total(),
        "fell": dict(sorted(fell.items())),
        "runs": runs,
        "rows": rows.total(),
        "unbroken_seconds": round(seconds, 3),
        "different": different,
        "lost": lost,
        "doubled": doubled,
    }
