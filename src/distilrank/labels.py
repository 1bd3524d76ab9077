"""Label stage: every candidate of a shard is scored once by the teacher; a killed task goes on where it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distilrank import artifacts, progress, records
from distilrank.config import Compute, Label
from distilrank.errors import InputError, RunStopped
from distilrank.label_manifest import MANIFEST, combine
from distilrank.scorer import Scorer


def _finished_part(path: Path, rows: pa.Table) -> bool:
    """Whether an earlier attempt has left the labels of exactly these rows."""
    if not path.exists():
        return False
    try:
        part = records.read(path, records.LABELS)
    except InputError:
        return False  # damaged: written again
    return all(part.column(name).equals(rows.column(name)) for name in ("query_id", "product_id"))


def label(config: Label, compute: Compute, *, shard: str, candidates: Path, teacher: Path, output: Path) -> int:
    """Score the candidates of `shard` and return how many rows there are.

    Args:
        shard: name of the shard, `shard-00000`.
        candidates: sealed folder of the prepare stage.
        teacher: sealed folder of the teacher stage.
        output: gets `labels.parquet` (raw logits, in the shard's order) and, last, `manifest.json`.

    Parts of `config.part_rows` rows are kept in `config.resume` under a key of all that decides the logits, so that a
    later attempt takes them over and other inputs never mix with them.

    Raises:
        InputError: a shard or teacher whose bytes do not match their digest.
        RunStopped: all logits are equal: the teacher has collapsed.
    """
    name = shard.replace("shard", "label")
    with artifacts.stage(name, output, config=config) as record:
        record.inputs["candidates"] = artifacts.verify(candidates, [f"{shard}.parquet"])
        record.inputs["teacher"] = artifacts.verify(teacher)
        rows = records.read(candidates / f"{shard}.parquet", records.CANDIDATES)
        shard_digest = artifacts.read_json(candidates / artifacts.SEAL)["files"][f"{shard}.parquet"]
        # what the logits depend on, and how they are cut into parts
        parts_of = {
            "shard": shard_digest,
            "teacher": record.inputs["teacher"],
            "compute": compute.model_dump(include={"device", "precision"}),
            "rows": config.part_rows,
        }
        key = artifacts.digest_json(parts_of)[:16]
        parts = Path(config.resume) / f"{shard}-{key}" if config.resume else output / "parts"
        counter = progress.Counter(name, rows.num_rows, "pairs")
        scorer: Scorer | None = None
        tables = []
        for number, start in enumerate(range(0, rows.num_rows, config.part_rows)):
            batch = rows.slice(start, config.part_rows)
            path = parts / f"part-{number:05d}.parquet"
            if _finished_part(path, batch):
                counter.skip(batch.num_rows)
            else:
                if scorer is None:
                    threads = config.threads or compute.threads
                    scorer = Scorer.load(teacher, compute.model_copy(update={"threads": threads}), config.score_tokens)
                    record.facts["runtime"] = scorer.runtime.describe()
                logits = scorer.score(batch, counter)
                broken = int((~np.isfinite(logits)).sum())
                if broken:
                    raise RunStopped(f"{name}: {broken} of {len(logits)} logits are not finite; the teacher is broken")
                columns = [batch.column("query_id"), batch.column("product_id"), pa.array(logits)]
                part = pa.table(columns, schema=records.LABELS)
                records.write(part, path, records.LABELS)
            tables.append(records.read(path, records.LABELS))
        labels = pa.concat_tables(tables)
        logits = labels.column("logit").to_numpy()
        if labels.num_rows > 1 and np.ptp(logits) == 0:
            raise RunStopped(f"{name}: all {labels.num_rows} logits are {logits[0]:g}; the teacher has collapsed")
        records.write(labels, output / "labels.parquet", records.LABELS)
        manifest: dict[str, Any] = {
            "shard": shard,
            "rows": labels.num_rows,
            "queries": len(set(labels.column("query_id").to_pylist())),
            "teacher": record.inputs["teacher"],
            "candidates": shard_digest,
            "labels": artifacts.digest_file(output / "labels.parquet"),
            "logits": {
                "mean": float(logits.mean()),
                "deviation": float(logits.std()),
                "min": float(logits.min()),
                "max": float(logits.max()),
                "distinct": len(np.unique(logits)),
            },
        }
        artifacts.write_json(output / MANIFEST, manifest)
        record.facts |= {"pairs": labels.num_rows, "resumed": counter.resumed}
        shutil.rmtree(parts, ignore_errors=True)  # another attempt may have been quicker
    return labels.num_rows


def read(folders: list[Path], candidates: Path, teacher: Path) -> pa.Table:
    """Candidates with the teacher's logits: records.CANDIDATES and a column `logit`.

    Raises:
        InputError: a shard without labels, labels of another teacher or of other candidates, or damaged files.
    """
    manifest = combine(folders)
    if manifest["teacher"] != artifacts.sealed_digest(teacher):
        raise InputError(
            f"labels by the teacher {manifest['teacher'][:12]}, expected {artifacts.sealed_digest(teacher)[:12]}"
        )
    sealed = artifacts.read_json(candidates / artifacts.SEAL)["files"]
    by_shard = {artifacts.read_json(folder / MANIFEST)["shard"]: folder for folder in folders}
    expected = sorted(name.removesuffix(".parquet") for name in sealed if name.endswith(".parquet"))
    if sorted(by_shard) != expected:
        raise InputError(f"labels of {', '.join(sorted(by_shard))}, expected {', '.join(expected)}")
    artifacts.verify(candidates, [f"{shard}.parquet" for shard in expected])
    tables = []
    for one in manifest["shards"]:
        folder, shard = by_shard[one["shard"]], one["shard"]
        path = folder / "labels.parquet"
        if one["candidates"] != sealed[f"{shard}.parquet"]:
            raise InputError(f"{folder / MANIFEST}: labels of other candidates than {candidates / shard}.parquet")
        if artifacts.digest_file(path) != one["labels"]:
            raise InputError(f"{path}: differs from the digest in {folder / MANIFEST}; the file is corrupt")
        rows = records.read(candidates / f"{shard}.parquet", records.CANDIDATES)
        tables.append(rows.append_column("logit", records.read(path, records.LABELS).column("logit")))
    return pa.concat_tables(tables)
