"""A small teacher that trains in seconds, for tests of the loop and of the stage."""

from __future__ import annotations

import hashlib
from pathlib import Path

from distilrank.config import Compute, Lora, Optimizer, Teacher
from distilrank.core import artifacts, schemas
from distilrank.teacher import train as teacher
from tests.small_pairs import pairs

CPU = Compute(device="cpu", precision="fp32", threads=1)


def write_judgements(folder: Path) -> Path:
    """Write judgements as the prepare stage does, a few of each split."""
    for split, seed in (("train", 1), ("dev", 2), ("test", 3)):
        schemas.write(pairs(24, 6, seed), folder / f"{split}.parquet", schemas.JUDGED)
    artifacts.write_json(folder / "protocol.json", {"relevant_from": 0.75})
    artifacts.seal(folder)
    return folder


def config(models: Path, **changes) -> Teacher:
    optimizer = {"epochs": 4, "learning_rate": 3e-3, "batch_tokens": 300, "evaluations": 3}
    settings = {"model": str(models / "decoder"), "lora": Lora(rank=4, alpha=8), "lift_over_bm25": -1.0, "max_ece": 1.0}
    settings["min_deviation"] = 0  # of weights so small and random
    return Teacher(**settings | changes | {"optimizer": Optimizer(**optimizer | changes.get("optimizer", {}))})


def train(teacher_config: Teacher, judgements: Path, output: Path, **compute) -> Path:
    compute = CPU.model_copy(update=compute)
    teacher.train(teacher_config, compute, judgements=judgements, model_digest="d" * 64, output=output)
    return output


def digest(folder: Path) -> dict[str, str]:
    names = ("model.safetensors", "adapter/adapter_model.safetensors", "metrics.json", "distilrank.json")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
