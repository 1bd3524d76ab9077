"""Estimate time and cost of teacher training and labeling from real rows and a short timed sample of real work."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from distilrank.config import Compute, Label, Teacher
from distilrank.core import artifacts, progress, schemas
from distilrank.modeling import adapters, batching, encoding, pretrained, references
from distilrank.modeling.runtime import Runtime, setup_runtime
from distilrank.modeling.scorer import load_encoder
from distilrank.modeling.torch_backend import load_model, score_encoded
from distilrank.training import loop, losses

ESTIMATE = "estimate.json"
STAGE = "estimate"
SAMPLE_ROWS = 2000
"""Candidates whose tokens are counted, as a sample of all; and most rows of a timed sample."""
SECONDS = 20.0
"""Time for which training and scoring are each measured, after a warm-up batch."""


def estimate(
    teacher: Teacher, label: Label, compute: Compute, *, judgements: Path, candidates: Path, output: Path
) -> dict[str, Any]:
    """Time the untrained teacher model on real rows; the model is discarded.

    Args:
        judgements: sealed folder of the prepare stage.
        candidates: sealed folder of the prepare stage.
        output: gets `estimate.json`.

    Returns:
        For `training` and `labeling`: rows, tokens, tokens_per_second, device_hours, and price (None where
        `compute.price_per_hour` is 0); tokens of labeling are those of all shards. Compilation is not timed.
    """
    inputs = {"judgements": judgements, "candidates": candidates}
    with artifacts.stage(STAGE, output, config=teacher, inputs=inputs) as record:
        record.inputs |= {"judgements": artifacts.verify(judgements), "candidates": artifacts.verify(candidates)}
        runtime = setup_runtime(compute)
        judged = schemas.read(judgements / "train.parquet", schemas.JUDGED)
        dev = schemas.read(judgements / "dev.parquet", schemas.JUDGED)
        folder = references.resolve(teacher.model)
        loop.seed_everything(teacher.optimizer.seed)
        base = load_model(folder, runtime)
        encoder = load_encoder(folder, teacher.text, teacher.kind, pretrained.inputs(folder, base))
        encoded, dev_encoded = (encoding.encode_table(encoder, table, teacher.text) for table in (judged, dev))
        shards = sorted(candidates.glob("shard-*.parquet"))
        rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
        with pq.ParquetFile(shards[0]) as file:
            first = pa.Table.from_batches([next(file.iter_batches(SAMPLE_ROWS))])
        sample = encoding.encode_table(encoder, first, teacher.text)

        base.config.pad_token_id = encoder.pad_token_id
        with progress.timed(STAGE, "timed scoring"):
            scoring_rate = _rate(
                lambda part: score_encoded(base, part, runtime.device, label.score_tokens), sample, label.score_tokens
            )
        train_batch = _learner(
            teacher, runtime, adapters.Adapted(base, teacher.lora), judged.column("target").to_numpy()
        )
        with progress.timed(STAGE, "timed training"):
            training_rate = _rate(train_batch, encoded, teacher.optimizer.batch_tokens)

        evaluation_tokens = teacher.optimizer.evaluations * len(dev_encoded.ids)
        tokens = round(rows * len(sample.ids) / max(len(sample), 1))
        training_tokens = len(encoded.ids) * teacher.optimizer.epochs
        result = {
            "runtime": runtime.describe(),
            "training": _bill(
                len(encoded),
                training_tokens,
                training_rate,
                training_tokens / training_rate + evaluation_tokens / scoring_rate,
                compute,
            ),
            "labeling": _bill(rows, tokens, scoring_rate, tokens / scoring_rate, compute) | {"shards": len(shards)},
        }
        artifacts.write_json(output / ESTIMATE, result)
        artifacts.seal(output)
    return result


def _rate(work: Callable[[encoding.Tokens], object], tokens: encoding.Tokens, budget: int) -> float:
    """Tokens a second, over batches of `budget` tokens for SECONDS."""
    batches = batching.sequential_batches(np.argsort(tokens.queries, kind="stable"), tokens.lengths, budget)
    work(tokens.take(batches[0]))
    done, began = 0, time.perf_counter()
    while True:
        for batch in batches:
            work(tokens.take(batch))
            done += int(tokens.lengths[batch].sum())
            if time.perf_counter() - began >= SECONDS:
                return done / (time.perf_counter() - began)


def _learner(
    config: Teacher, runtime: Runtime, adapted: adapters.Adapted, target: np.ndarray
) -> Callable[[encoding.Tokens], None]:
    logits = loop.Logits(adapted.model, runtime.device)
    trained = adapted.trained().values()
    adamw = torch.optim.AdamW(trained, lr=config.optimizer.learning_rate, fused=True)
    logits.train()

    def step(tokens: encoding.Tokens) -> None:
        goal = torch.full((len(tokens),), float(target.mean()), device=runtime.device)
        with torch.autocast(runtime.device.type, torch.bfloat16, enabled=runtime.bf16 and not adapted.folds):
            value = losses.soft_cross_entropy(logits(tokens, np.arange(len(tokens))), goal)
        value.backward()
        adamw.step()
        adamw.zero_grad()
        adapted.fold()

    return step


def _bill(rows: int, tokens: int, rate: float, seconds: float, compute: Compute) -> dict[str, Any]:
    hours = seconds / 3600
    return {
        "rows": rows,
        "tokens": tokens,
        "tokens_per_second": round(rate, 1),
        "device_hours": round(hours, 4),
        "price": round(hours * compute.price_per_hour, 2) if compute.price_per_hour else None,
    }
