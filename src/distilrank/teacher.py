"""Teacher stage: fine-tune a language model on human judgements, as a one-logit classifier with soft targets."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import PreTrainedModel

from distilrank import artifacts, batching, encoding, losses, measures, models, progress, records, training
from distilrank import compute as computing
from distilrank.config import Compute, Lora, Teacher
from distilrank.errors import RunStopped
from distilrank.scorer import calibrate, collate, describe, load_encoder, load_model, score_encoded


class TeacherResult(NamedTuple):
    """Dev nDCG@10 of the saved teacher, and by how much it exceeds BM25's."""

    dev_ndcg_at_10: float
    lift_over_bm25: float


def add_adapters(model: PreTrainedModel, lora: Lora) -> torch.nn.Module:
    """Freeze `model` and give it LoRA adapters and a trainable head, those in fp32; rank 0: train all weights."""
    if lora.rank == 0:
        return model.float()
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
    )
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # bf16 would lose the small steps of the optimiser
    return adapted


def dev_ndcg(dev: pa.Table, scores: np.ndarray) -> float:
    """nDCG@10 of `scores` on the dev judgements, mean over queries."""
    return measures.mean_ndcg(
        dev.column("query_id").to_numpy(), dev.column("product_id").to_numpy(), dev.column("gain").to_numpy(), scores
    )


def train(config: Teacher, compute: Compute, *, judgements: Path, model_digest: str, output: Path) -> TeacherResult:
    """Fine-tune, keep the best weights on dev, calibrate, and save adapter and merged model.

    Args:
        judgements: sealed folder of the prepare stage.
        model_digest: digest of the pretrained model that `config.model` names, as preflight resolved it.
        output: gets the merged model (safetensors, tokenizer), `adapter/`, `distilrank.json` and `metrics.json`.

    Raises:
        RunStopped: the teacher does not beat BM25 on dev by `lift_over_bm25`: its labels are not worth their cost.
        InputError: damaged judgements, a model that cannot be loaded, a device that is not there.
    """
    with artifacts.stage("teacher", output, config=config) as record:
        record.inputs |= {"judgements": artifacts.verify(judgements), "model": model_digest}
        runtime = computing.setup(compute)
        progress.announce("teacher", "note", runtime.describe())
        fitting = records.read(judgements / "train.parquet", records.JUDGED)
        dev = records.read(judgements / "dev.parquet", records.JUDGED)
        with progress.timed("teacher", f"loaded {config.model}"):
            folder = models.resolve(config.model)
            training.seed_everything(config.optimiser.seed)
            base = load_model(folder, runtime)
        encoder = load_encoder(folder, config.text, config.kind)
        pad_token = base.config.pad_token_id = encoder.tokenizer.pad_token_id
        model = add_adapters(base, config.lora)

        encoded, dev_encoded = (encoding.encode_table(encoder, table, config.text) for table in (fitting, dev))
        targets = torch.from_numpy(fitting.column("target").to_numpy().copy())
        lengths = encoding.lengths(encoded)
        rng = np.random.default_rng(config.optimiser.seed)
        epochs = [
            batching.shuffled(lengths, np.ones_like(lengths), config.optimiser.batch_tokens, rng)
            for _ in range(config.optimiser.epochs)
        ]

        def loss(current: torch.nn.Module, rows: np.ndarray) -> torch.Tensor:
            inputs = collate([encoded[row] for row in rows], pad_token, runtime.device)
            return losses.soft_cross_entropy(current(**inputs).logits[:, 0], targets[rows].to(runtime.device))

        def evaluate(current: torch.nn.Module) -> float:
            return dev_ndcg(dev, score_encoded(current, dev_encoded, pad_token, runtime.device, config.score_tokens))

        outcome = training.fit(
            "teacher", model, epochs=epochs, loss=loss, evaluate=evaluate, optimiser=config.optimiser, runtime=runtime
        )
        merged = model
        if config.lora.rank:
            model.save_pretrained(output / "adapter", safe_serialization=True)
            merged = model.merge_and_unload()  # the adapters' small matmuls would cost scoring more than the model
        merged.to(runtime.dtype).save_pretrained(output)
        encoder.tokenizer.save_pretrained(output)
        describe(
            output, role="teacher", encoder=encoder, text=config.text, tokens=config.score_tokens, base=config.model
        )
        logits = calibrate(output, dev, config.calibration, compute)
        random = np.random.default_rng(config.optimiser.seed).random(dev.num_rows)
        reached = {
            "teacher": dev_ndcg(dev, logits),
            "bm25": dev_ndcg(dev, dev.column("bm25").to_numpy()),
            "random": dev_ndcg(dev, random),
        }
        artifacts.write_json(
            output / "metrics.json",
            {"curve": outcome.curve, "best_step": outcome.best_step, "dev": reached},
        )
        record.facts |= {
            "runtime": runtime.describe(),
            "pairs": fitting.num_rows,
            "tokens": int(lengths.sum()),
            "dev": reached,
        }
        lift = reached["teacher"] - reached["bm25"]
        if lift <= config.lift_over_bm25:
            raise RunStopped(
                f"teacher: dev nDCG@10 {reached['teacher']:.4f} against BM25's {reached['bm25']:.4f}, expected a lift "
                f"above {config.lift_over_bm25:g} before labelling: give it more judgements, epochs or a larger model "
                "(teacher.optimiser, teacher.model), or lower teacher.lift_over_bm25"
            )
        compared = f"dev nDCG@10 {reached['teacher']:.4f}, BM25 {reached['bm25']:.4f}, random {reached['random']:.4f}"
        progress.announce("teacher", "note", compared)
        artifacts.seal(output)
    return TeacherResult(reached["teacher"], lift)
