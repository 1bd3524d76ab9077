"""The label stage: the teacher scores every candidate of a shard once; a killed task resumes where it stopped."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from distilrank.config import Compute, Label
from distilrank.core import artifacts, progress, schemas
from distilrank.core.errors import InputError
from distilrank.evaluation import score_spread
from distilrank.modeling import compilation, encoding
from distilrank.modeling.runtime import setup_runtime
from distilrank.modeling.scorer import CHUNK_ROWS, DESCRIPTION, METRICS, Scorer
from distilrank.modeling.torch_backend import TorchBackend, score_encoded
from distilrank.teacher import label_manifest
from distilrank.teacher.label_parts import IDS, Device, LabelCheckpoints, Scored, label_rows

LABELS = "labels.parquet"


def label(config: Label, compute: Compute, *, shard: str, candidates: Path, teacher: Path, output: Path) -> int:
    """Score the candidates of `shard` and return the number of its rows.

    Args:
        shard: name of the shard, `shard-00000`.
        candidates: sealed folder of the prepare stage.
        teacher: sealed folder of the teacher stage.
        output: gets `labels.parquet` (raw logits, in the shard's order) and `manifest.json`, and is sealed last.

    Parts of `config.part_rows` rows are kept in `compute.checkpoint_dir` under a key of everything that determines the
    logits, so that a later attempt reuses them and other inputs never mix with them. They are removed when the shard is
    complete.

    Raises:
        InputError: a shard or teacher whose bytes do not match their digest; columns that are not those of candidates;
            parts that were moved here from other inputs; storage that refuses.
        RunStopped: logits that are not finite or hardly differ: the teacher is broken, or has collapsed.
    """
    name = shard.replace("shard", "label")
    inputs = {"candidates": candidates, "teacher": teacher}
    read = [f"{shard}.parquet"]
    with artifacts.stage(name, output, config=config, inputs=inputs, only={"candidates": read}) as record:
        (output / artifacts.MANIFEST).unlink(missing_ok=True)
        record.inputs["candidates"] = artifacts.verify(candidates, read)
        record.inputs["teacher"] = artifacts.verify(teacher)
        compute = compute.model_copy(update={"threads": config.threads or compute.threads})
        runtime = setup_runtime(compute)
        shard_path = candidates / f"{shard}.parquet"
        shard_digest = artifacts.read_json(candidates / artifacts.SEAL)["files"][f"{shard}.parquet"]
        key = {
            "shard": shard_digest,
            "teacher": record.inputs["teacher"],
            "part_rows": config.part_rows,
            "score_tokens": config.score_tokens,
            "device": runtime.device.type,  # as resolved: another node may resolve `auto` to another
            "dtype": str(runtime.dtype),
            **compute.model_dump(include={"compile", "deterministic"}),
            "versions": [artifacts.code_digest(), torch.__version__, transformers.__version__],
        }
        folder = (
            Path(compute.checkpoint_dir) / f"{shard}-{artifacts.digest_json(key)[:16]}"
            if compute.checkpoint_dir
            else output / "parts"
        )
        cuda = runtime.device.type == "cuda"
        device = Device(torch.cuda.get_device_name() if cuda else runtime.device.type, compute.price_per_hour)
        labeled = label_rows(
            config,
            name=name,
            shard=shard_path,
            fields=artifacts.read_json(teacher / DESCRIPTION)["text"]["fields"],
            parts=LabelCheckpoints(folder, key),
            load=lambda: _load(name, teacher, config, compute, pq.read_metadata(shard_path).num_rows),
            device=device,
            output=output / LABELS,
        )
        label_manifest.write(
            output,
            {
                "shard": shard,
                "rows": labeled.rows,
                "queries": labeled.queries,
                "teacher": record.inputs["teacher"],
                "candidates": shard_digest,
                "labels": artifacts.digest_file(output / LABELS),
                "logits": score_spread.spread(labeled.logits),
                "work": device.cost_summary(labeled.work),
            },
        )
        artifacts.seal(output, only=[LABELS, artifacts.MANIFEST])  # not the parts, which are deleted
        record.facts |= {"runtime": runtime.describe(), "pairs": labeled.rows, "resumed": labeled.resumed}
        progress.log_event(name, "note", f"{labeled.rows} pairs took {device.format(labeled.work)}")
    # Last, so that a kill before this line costs nothing.
    shutil.rmtree(folder, ignore_errors=True)
    return labeled.rows


@dataclass(frozen=True)
class _Teacher:
    """Encodes and scores in separate calls, so that one can run while the other does."""

    scorer: Scorer
    network: TorchBackend

    def encode(self, rows: pa.Table) -> encoding.Tokens:
        return encoding.encode_table(self.scorer.encoder, rows, self.scorer.text)

    def score(self, encoded: encoding.Tokens, counter: progress.Counter) -> Scored:
        network = self.network
        logits = score_encoded(network.model, encoded, network.runtime.device, self.scorer.tokens, counter)
        return Scored(logits, len(encoded.ids), encoded.truncated)


def _load(name: str, teacher: Path, config: Label, compute: Compute, pairs: int) -> _Teacher:
    """Load the teacher, compiled if the whole shard is large enough, regardless of how many rows remain."""
    scorer = Scorer.load(teacher, compute, backend="torch", tokens=config.score_tokens)
    network = cast(TorchBackend, scorer.backend)
    tokens = pairs * artifacts.read_json(teacher / METRICS)["tokens_per_pair"]
    compilation.compile_layers(
        name, network.model, compute, network.runtime, 2 * compilation.weights(network.model) * tokens
    )
    return _Teacher(scorer, network)


def read(folders: list[Path], candidates: Path, teacher: Path, rows: int = CHUNK_ROWS) -> Iterator[pa.Table]:
    """Candidates with the teacher's logits, at most `rows` at a time: schemas.CANDIDATES and a column `logit`.

    All digests are checked before the first table.

    Raises:
        InputError: a shard without labels or with two, labels of another teacher or of other candidates, or damaged
            files.
    """
    manifests = label_manifest.combine(folders)["shards"]
    expected = artifacts.sealed_digest(teacher)
    if manifests[0]["teacher"] != expected:
        raise InputError(f"labels by the teacher {manifests[0]['teacher'][:12]}, expected {expected[:12]}")
    if not any(manifest["rows"] for manifest in manifests):
        raise InputError(f"{candidates}: no candidate is labeled, expected some to learn from")
    sealed = artifacts.read_json(candidates / artifacts.SEAL)["files"]
    by_shard = {label_manifest.read(folder)["shard"]: folder for folder in folders}
    shards = sorted(name.removesuffix(".parquet") for name in sealed if name.endswith(".parquet"))
    if sorted(by_shard) != shards:
        raise InputError(f"labels of {', '.join(sorted(by_shard))}, expected {', '.join(shards)}")
    artifacts.verify(candidates, [f"{shard}.parquet" for shard in shards])
    files = []
    for manifest in manifests:
        shard = candidates / f"{manifest['shard']}.parquet"
        folder = by_shard[manifest["shard"]]
        if manifest["candidates"] != sealed[shard.name]:
            raise InputError(f"{folder / artifacts.MANIFEST}: labels of other candidates than {shard}")
        if not (folder / LABELS).is_file():
            raise InputError(f"{folder / LABELS}: missing, although {folder / artifacts.MANIFEST} tells of it")
        if artifacts.digest_file(folder / LABELS) != manifest["labels"]:
            raise InputError(
                f"{folder / LABELS}: differs from the digest in {folder / artifacts.MANIFEST}; the file is corrupt"
            )
        files.append((shard, folder / LABELS))
    return itertools.chain.from_iterable(_read_shard(*file, rows) for file in files)


def _read_shard(shard: Path, labeled: Path, rows: int) -> Iterator[pa.Table]:
    labels = schemas.read(labeled, schemas.LABELS)
    start = 0
    for batch in pq.ParquetFile(shard).iter_batches(rows):
        table = schemas.conform(pa.Table.from_batches([batch]), schemas.CANDIDATES, str(shard))
        shard_labels = labels.slice(start, len(table))
        if not all(table.column(name).equals(shard_labels.column(name)) for name in IDS):
            raise InputError(f"{labeled}: not the rows of {shard} in their order")
        logits = shard_labels.column("logit").to_numpy()
        if not np.isfinite(logits).all():
            row = start + int(np.flatnonzero(~np.isfinite(logits))[0])
            raise InputError(f"{labeled}: row {row + 1}, logit {labels['logit'][row].as_py()}, expected a finite one")
        yield table.append_column(schemas.LABELS.field("logit"), shard_labels.column("logit"))
        start += len(table)
    if start != len(labels):
        raise InputError(f"{labeled}: {len(labels)} rows, expected the {start} of {shard}")
