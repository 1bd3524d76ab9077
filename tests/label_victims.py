"""Labeling that is killed, from within and from without; without torch, so that forks are cheap."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import damage, kills
from distilrank.config import Label
from distilrank.core import artifacts, progress, schemas
from distilrank.core.errors import InputError
from distilrank.teacher import label_parts

ROWS, PART_ROWS = 90, 8
WINDOWS = -(-ROWS // PART_ROWS)
INPUTS = {"teacher": "t" * 64, "shard": "s" * 64, "part_rows": PART_ROWS}


def candidates(rows: int, per_query: int = 5, seed: int = 0) -> pa.Table:
    """Rows of records.CANDIDATES."""
    draw = np.random.default_rng(seed)
    nouns, colors = (draw.choice(words, rows).tolist() for words in (["sofa", "lamp", "drill"], ["red", "blue", None]))
    table = {
        "query_id": [f"q{seed}-{row // per_query:04d}" for row in range(rows)],
        "query": [f"red {nouns[row - row % per_query]}" for row in range(rows)],
        "product_id": [f"p{row:05d}" for row in range(rows)],
        "title": [f"{color or 'large'} {noun} {row}" for row, (noun, color) in enumerate(zip(nouns, colors))],
        "product_type": nouns,
        "color": colors,
        **{name: pa.nulls(rows, pa.string()) for name in ("brand", "gender", "description")},
        **{name: [0] * rows for name in ("impressions", "clicks")},
        **{name: ["tail"] * rows for name in ("provenance", "stratum")},
    }
    return schemas.conform(pa.table(table), schemas.CANDIDATES, "test")


Scorer = Callable[[pa.Table, progress.Counter], label_parts.Scored]


@dataclass(frozen=True)
class Teacher:
    """A teacher that is a function of the rows."""

    score: Scorer

    def encode(self, rows: pa.Table) -> pa.Table:
        return rows


def score(rows: pa.Table, counter: progress.Counter) -> label_parts.Scored:
    """A logit that depends on the row alone."""
    logits = [zlib.crc32(product.encode()) / 2**32 for product in rows["product_id"].to_pylist()]
    counter.add(rows.num_rows)
    return label_parts.Scored(np.array(logits, np.float32), tokens=3 * rows.num_rows, truncated=1)


def label(folder: Path, *, pause: float = 0, parts: Path | None = None, scorer: Scorer = score, **settings: Any):
    """Label `folder/../shard.parquet` into `folder`; scored windows leave their numbers in `folder/scored`."""
    folder.mkdir(parents=True, exist_ok=True)
    scored = os.open(folder / "scored", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noted(rows: pa.Table, counter: progress.Counter) -> label_parts.Scored:
        os.write(scored, b"%d\n" % (int(rows["product_id"][0].as_py()[1:]) // PART_ROWS))
        time.sleep(pause)
        return scorer(rows, counter)

    parts = parts or folder / "parts"
    labeled = label_parts.label_rows(
        Label(part_rows=PART_ROWS, **settings),
        name="label-00000",
        shard=folder.parent / "shard.parquet",
        fields=("title",),
        parts=label_parts.LabelCheckpoints(parts, INPUTS),
        load=lambda: Teacher(noted),
        device=label_parts.Device("cpu", 3600.0),
        output=folder / "labels.parquet",
    )
    os.close(scored)
    shutil.rmtree(parts, ignore_errors=True)
    return labeled


def scored_windows(folder: Path) -> list[int]:
    """Numbers of the windows that were scored, in order, by all attempts."""
    return [int(line) for line in (folder / "scored").read_text().splitlines()]


def finished_windows(folder: Path) -> set[int]:
    """Numbers of the windows that have a part."""
    return {int(path.stem.removeprefix("part-")) for path in folder.glob("parts/part-*.parquet")}


def rows_of(folder: Path) -> Iterable[Hashable]:
    table = schemas.read(folder / "labels.parquet", schemas.LABELS)
    return zip(*(table.column(name).to_pylist() for name in label_parts.IDS))


def digest(folder: Path) -> str:
    return artifacts.digest_file(folder / "labels.parquet")


def kill_before_each_change(scratch: str) -> dict[str, Any]:
    """Kill once before each change on the disk, then label to the end."""
    root = Path(scratch)
    windows = 5
    schemas.write(candidates(windows * PART_ROWS - 3), root / "shard.parquet", schemas.CANDIDATES)
    assert kills.attempt(label, root / "unbroken")
    expected, rows = digest(root / "unbroken"), list(rows_of(root / "unbroken"))
    assert scored_windows(root / "unbroken") == list(range(windows))
    faults = []
    for change in count():
        folder = root / f"killed-{change}"
        folder.mkdir()
        if kills.attempt(kills.killed_before(label, change), folder):
            break
        finished = finished_windows(folder)
        before = len(scored_windows(folder)) if (folder / "scored").exists() else 0
        assert kills.attempt(label, folder)
        again = finished & set(scored_windows(folder)[before:])
        left = [path.name for path in folder.iterdir() if path.name not in ("scored", "labels.parquet")]
        if digest(folder) != expected or list(rows_of(folder)) != rows or again or left:
            faults.append([change, sorted(again), left])
        shutil.rmtree(folder)
    return {"windows": windows, "changes": change, "faults": faults}


def kill_at_random(scratch: str, number: int, seed: int) -> dict[str, Any]:
    """Kill at random moments."""
    root = Path(scratch)
    schemas.write(candidates(ROWS), root / "label" / "shard.parquet", schemas.CANDIDATES)
    victim = kills.Victim("label", lambda folder: label(folder, pause=0.01), digest, rows_of)
    return kills.kill([victim], number, root, seed)["label"]


def kill_careless(scratch: str, number: int) -> dict[str, Any]:
    """Kill what does not survive it: one that starts again in its leftovers, and one that takes it for complete."""

    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "rows").open("a", buffering=1) as rows:
            for row in range(40):
                rows.write(f"{row}\n")
                time.sleep(0.002)

    def rows(folder: Path) -> list[str]:
        return (folder / "rows").read_text().split()

    def trusting(folder: Path) -> None:
        if not (folder / "rows").exists():
            write(folder)

    victims = [
        kills.Victim(name, make, lambda folder: artifacts.digest_file(folder / "rows"), rows)
        for name, make in (("restarting", write), ("trusting", trusting))
    ]
    return kills.kill(victims, number, Path(scratch), seed=1)


def kill_at_boundaries(scratch: str, limit: int) -> dict[str, Any]:
    """Kill before changes: labeling, which survives it, and a writer that takes an empty file for a complete one."""

    def careless(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "rows").exists():
            handle = (folder / "rows").open("w")
            (folder / "log").touch()
            handle.write("1\n2\n")
            handle.close()

    root = Path(scratch)
    schemas.write(candidates(ROWS), root / "label" / "shard.parquet", schemas.CANDIDATES)
    victims = [
        kills.Victim("label", label, digest, rows_of),
        kills.Victim(
            "careless",
            careless,
            lambda folder: artifacts.digest_file(folder / "rows"),
            lambda folder: (folder / "rows").read_text().split(),
        ),
    ]
    return {victim.name: kills.kill_at_boundaries(victim, limit, root / victim.name) for victim in victims}


def damage_checkpoints(scratch: str, limit: int) -> dict[str, Any]:
    """Change bytes of the checkpoints of labeling, and of those of a writer that does not verify what it reads."""

    def careless(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "half").exists():
            artifacts.write_text(folder / "half", "1")
        artifacts.write_text(folder / "rows", (folder / "half").read_text(errors="replace") + "2")

    root = Path(scratch)
    schemas.write(candidates(ROWS), root / "label" / "shard.parquet", schemas.CANDIDATES)
    labeling = kills.Victim("label", label, digest)
    trusting = kills.Victim("careless", careless, lambda folder: artifacts.digest_file(folder / "rows"))
    return {
        "label": damage.damage_checkpoints(
            labeling, lambda folder: folder.glob("parts/part-*.parquet"), limit, root / "label", seed=1
        ),
        "careless": damage.damage_checkpoints(
            trusting, lambda folder: folder.glob("half"), limit, root / "careless", seed=1
        ),
    }


def label_twice_at_once(scratch: str) -> dict[str, Any]:
    """Two attempts on one folder of parts, with outputs of their own; the first to end tidies up."""
    root = Path(scratch)
    schemas.write(candidates(ROWS), root / "shard.parquet", schemas.CANDIDATES)
    assert kills.attempt(label, root / "alone")
    context = multiprocessing.get_context("fork")
    pauses = {"slow": 0.02, "fast": 0.005}
    attempts = [
        context.Process(target=label, args=(root / name,), kwargs={"pause": pause, "parts": root / "parts"})
        for name, pause in pauses.items()
    ]
    for process in attempts:
        process.start()
    for process in attempts:
        process.join()
    return {
        "ended": [process.exitcode for process in attempts],
        "same": [digest(root / name) == digest(root / "alone") for name in pauses],
        "scored": {name: scored_windows(root / name) for name in pauses},
    }


def run_out_of_disk(folder: str) -> dict[str, Any]:
    """Label on a file system that gets full after some parts, then again with room."""
    root = Path(folder)
    schemas.write(candidates(ROWS), root / "shard.parquet", schemas.CANDIDATES)
    status = os.statvfs(root)
    filler = root / "filler"
    filler.write_bytes(b"x" * (status.f_bavail * status.f_frsize - 40_000))
    work = root / "labels"
    try:
        label(work)
    except InputError as error:
        message = str(error)
    finished = finished_windows(work)
    left = [path.name for path in work.rglob("*.partial")]
    filler.unlink()
    label(work)
    return {
        "message": message,
        "finished": sorted(finished),
        "left": left,
        "scored": scored_windows(work),
        "rows": list(rows_of(work)) == list(zip(*(candidates(ROWS)[name].to_pylist() for name in label_parts.IDS))),
    }


def refuse_large_files(scratch: str) -> str:
    """What labeling says where no file may grow beyond a part's size."""
    root = Path(scratch)
    schemas.write(candidates(ROWS), root / "shard.parquet", schemas.CANDIDATES)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        label(root / "labels")
    except InputError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
        return str(error)
    return "nothing"


if __name__ == "__main__":  # in a mount namespace of its own, see test_labeling
    sys.stdout.write("\n" + json.dumps(run_out_of_disk(sys.argv[1])))
