"""Change single bytes of sealed folders and of checkpoints, and check that no changed byte is used."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import kills
from benchmarks.machine import Failed
from distilrank.config import Label
from distilrank.core import artifacts
from distilrank.core.errors import InputError


@contextmanager
def changed_byte(path: Path, draw: random.Random) -> Iterator[int]:
    """Change one byte of a non-empty file, drawn at random, to another value; restore the file afterwards.

    Yields:
        Offset of the byte.
    """
    original = path.read_bytes()
    content = bytearray(original)
    offset = draw.randrange(len(content))
    content[offset] ^= draw.randrange(1, 256)
    path.write_bytes(content)
    try:
        yield offset
    finally:
        path.write_bytes(original)


def files(folder: Path) -> list[Path]:
    """Return the non-empty files below a folder, sorted; records of stages are not part of the sealed results."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != artifacts.RECORD and path.stat().st_size
    ]


def damage_sealed(folders: Mapping[str, Path], scratch: Path, repeats: int, seed: int) -> dict[str, Any]:
    """Change a byte of each file of sealed folders in turn, and start a stage with the folder as its input.

    Args:
        folders: sealed folders by name.
        scratch: folder for the stage's output.
        repeats: number of changed bytes per file.
        seed: seed of offsets and values.

    Returns:
        Number of files and of changed bytes; how many bytes the stage refused (`caught`); examples of others.
    """
    draw = random.Random(seed)
    missed: list[str] = []
    count = changed = 0
    for name, folder in folders.items():
        for path in files(folder):
            count += 1
            for _ in range(repeats):
                changed += 1
                with changed_byte(path, draw) as offset:
                    try:
                        with artifacts.stage("damage", scratch / "out", config=Label(), inputs={name: folder}):
                            pass
                        missed.append(f"{name}/{path.relative_to(folder)}, byte {offset}")
                    except InputError:
                        pass
        artifacts.verify(folder, again=True)  # everything is restored
    return {"files": count, "changed_bytes": changed, "caught": changed - len(missed), "missed": missed[:5]}


def damage_checkpoints(
    victim: kills.Victim, checkpoints: Callable[[Path], Iterable[Path]], limit: int, scratch: Path, seed: int
) -> dict[str, Any]:
    """Kill a victim half way, change a byte of one of its checkpoints, run it to its end, and compare its result.

    Args:
        victim: work with checkpoints; deterministic.
        checkpoints: returns the checkpoints in the folder of an unfinished run.
        limit: number of changed bytes; the checkpoints take turns.
        scratch: folder for outputs.
        seed: seed of offsets and values.

    Returns:
        Number of checkpoints and of changed bytes; runs whose result differs from that of an unbroken run.

    Raises:
        Failed: there are no checkpoints to change, or a run does not complete.
    """
    draw = random.Random(seed)
    changes = kills.count_boundaries(victim.make, scratch / "unbroken")
    expected = victim.digest(scratch / "unbroken")
    half = scratch / "half"
    kills.attempt(kills.killed_before(victim.make, changes // 2), half)
    saved = sorted(path.relative_to(half) for path in checkpoints(half))
    if not saved:
        raise Failed(f"{victim.name}: no checkpoint after half of its {changes} changes")
    different: list[str] = []
    for number in range(limit):
        folder = scratch / "damaged"
        shutil.copytree(half, folder)
        path = folder / saved[-1 - number % len(saved)]  # the newest first, which is the one that is loaded
        content = bytearray(path.read_bytes())
        offset = draw.randrange(len(content))
        content[offset] ^= draw.randrange(1, 256)
        path.write_bytes(content)
        if not kills.attempt(victim.make, folder):
            raise Failed(f"{victim.name}: hangs with a changed byte {offset} of {path.name}")
        if victim.digest(folder) != expected:
            different.append(f"{path.name}, byte {offset}")
        shutil.rmtree(folder)
    return {"checkpoints": len(saved), "changed_bytes": limit, "different": len(different), "examples": different[:5]}
