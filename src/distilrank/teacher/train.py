"""Teacher stage: fine-tune a language model on human judgements, as a one-logit classifier with soft targets."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from distilrank.config import Compute, Label, Teacher
from distilrank.core import artifacts, progress, schemas
from distilrank.core.errors import RunStopped
from distilrank.evaluation import metrics, score_spread
from distilrank.modeling import adapters, batching, compilation, encoding, packing, parity, pretrained, references
from distilrank.modeling.runtime import Runtime, setup_runtime
from distilrank.modeling.scorer import DESCRIPTION, METRICS, calibrate, describe, load_encoder
from distilrank.modeling.torch_backend import load_model, narrow_base, save_tokenizer, score_encoded
from distilrank.teacher import quality
from distilrank.training import launch, losses
from distilrank.training import loop as training
from distilrank.training.checkpoints import Checkpoints

MIN_DISTINCT = Label().min_distinct  # a teacher that labeling would refuse is refused before


class TeacherResult(NamedTuple):
    """Dev nDCG@10 of the saved teacher, and by how much it exceeds BM25's."""

    dev_ndcg_at_10: float
    lift_over_bm25: float


def dev_ndcg(dev: pa.Table, scores: np.ndarray) -> float:
    """nDCG@10 of `scores` on the dev judgements, mean over queries."""
    return metrics.mean_ndcg(
        dev.column("query_id").to_numpy(), dev.column("product_id").to_numpy(), dev.column("gain").to_numpy(), scores
    )


def train(config: Teacher, compute: Compute, *, judgements: Path, model_digest: str, output: Path) -> TeacherResult:
    """Fine-tune, keep the best weights on dev, calibrate, and save adapter and merged model.

    A killed training goes on from its last checkpoint in `compute.checkpoint_dir`. With several processes or nodes the
    same stage runs in each of them.

    Args:
        judgements: sealed folder of the prepare stage.
        model_digest: digest of the pretrained model that `config.model` names, as preflight resolved it.
        output: gets the merged model (safetensors, tokenizer), `adapter/`, `distilrank.json`, `metrics.json`,
            `quality.json` and `disagreements.csv`.

    Raises:
        RunStopped: the teacher is not worth labeling with: its lift over BM25, its calibration or the spread of its
            scores misses a minimum; or the loss is no longer finite.
        InputError: damaged judgements, a model that cannot be loaded, a device that is not there.
    """
    inputs = {"judgements": judgements}
    if launch.is_distributed(compute):
        with artifacts.announcing("teacher"):
            artifacts.require(inputs)
            result = launch.run(
                "teacher",
                config,
                compute,
                folders={"judgements": judgements},
                values={"model_digest": model_digest},
                output=output,
            )
        return TeacherResult(**result)
    with artifacts.stage("teacher", output, config=config, inputs=inputs) as record:
        record.inputs |= {"judgements": artifacts.verify(judgements), "model": model_digest}
        runtime = setup_runtime(compute)
        progress.log_event("teacher", "note", runtime.describe())
        fitting = schemas.read(judgements / "train.parquet", schemas.JUDGED)
        dev = schemas.read(judgements / "dev.parquet", schemas.JUDGED)
        with progress.timed("teacher", f"loaded {config.model}"):
            folder = references.resolve(config.model)
            training.seed_everything(config.optimizer.seed)
            base = load_model(folder, runtime)
        encoder = load_encoder(folder, config.text, config.kind, pretrained.inputs(folder, base))
        if base.config.pad_token_id is None or isinstance(encoder, encoding.PromptEncoder):  # others count from it
            base.config.pad_token_id = encoder.pad_token_id
        if isinstance(encoder, encoding.PairEncoder):
            parity.check(encoder, base, dev)
        adapted = adapters.Adapted(base, config.lora)
        encoded, dev_encoded = (encoding.encode_table(encoder, table, config.text) for table in (fitting, dev))
        truncated = encoded.truncated + dev_encoded.truncated
        if truncated:
            progress.log_event("teacher", "note", f"{truncated} pairs beyond text.max_tokens: their products are cut")
        record.facts |= {
            "runtime": runtime.describe(),
            "pairs": fitting.num_rows,
            "tokens": len(encoded.ids),
            "truncated": truncated,
        }
        checkpoints = training.checkpoints_of("teacher", compute, runtime, record.inputs, config)
        outcome = _fit(config, compute, runtime, adapted, fitting, encoded, dev, dev_encoded, checkpoints)
        if not launch.is_main():
            return TeacherResult(outcome.best, 0.0)  # the first process does what one can do alone
        compared = dev_encoded.take(np.arange(min(len(dev_encoded), parity.DEV_PAIRS)))
        trained = score_encoded(adapted.model, compared, runtime.device, config.score_tokens)
        merged = adapted.merged(output / "adapter")
        narrow_base(merged, runtime.dtype)
        merged.save_pretrained(output)
        artifacts.follow_umask(output)  # the adapter included
        save_tokenizer(encoder, output)
        describe(
            output, role="teacher", encoder=encoder, text=config.text, tokens=config.score_tokens, base=config.model
        )
        logits = calibrate(output, dev, config.calibration, compute)
        difference = parity.compare(output, trained, logits[: len(trained)], runtime)
        assessed = quality.assess(
            dev,
            logits,
            artifacts.read_json(output / DESCRIPTION)["calibration"],
            relevant_from=artifacts.read_json(judgements / "protocol.json")["relevant_from"],
            count=config.disagreements,
            seed=config.optimizer.seed,
        )
        assessed.write(output)
        reached = assessed.figures["agreement"]["all"]["ndcg_at_10"]
        artifacts.write_json(
            output / METRICS,
            {
                "curve": outcome.curve,
                "best_step": outcome.best_step,
                "dev": reached,
                "max_difference_to_trained": difference,
                "tokens_per_pair": len(encoded.ids) / max(len(encoded), 1),
            },
        )
        record.facts["dev"] = reached
        error = assessed.figures["calibration"]["ece"]
        progress.log_event(
            "teacher",
            "note",
            f"dev nDCG@10 {reached['teacher']:.4f}, BM25 {reached['bm25']:.4f}, random {reached['random']:.4f}; "
            f"calibration error {error:.3f}; saved, its logits are within {difference:.2g} of the trained ones",
        )
        _refuse(config, reached, error, score_spread.describe_collapse(logits, config.min_deviation, MIN_DISTINCT))
        artifacts.seal(output)
        checkpoints.clear()
    return TeacherResult(reached["teacher"], reached["teacher"] - reached["bm25"])


def _fit(
    config: Teacher,
    compute: Compute,
    runtime: Runtime,
    adapted: adapters.Adapted,
    fitting: pa.Table,
    encoded: encoding.Tokens,
    dev: pa.Table,
    dev_encoded: encoding.Tokens,
    checkpoints: Checkpoints,
) -> training.Outcome:
    rng = np.random.default_rng(config.optimizer.seed)
    budget = config.optimizer.batch_tokens
    together = encoded.queries if config.batches == "queries" else None
    epochs = [
        batching.random_batches(encoded.lengths, budget, rng, together)
        if packing.is_packed(adapted.model)
        else batching.shuffled_batches(encoded.lengths, np.ones_like(encoded.lengths), budget, rng)
        for _ in range(config.optimizer.epochs)
    ]
    per_weight = 4 if config.lora.rank else 6  # frozen weights need no gradients of their own
    operations = per_weight * compilation.weights(adapted.model) * len(encoded.ids) * config.optimizer.epochs
    compilation.compile_layers("teacher", adapted.model, compute, runtime, operations)
    targets = torch.from_numpy(fitting.column("target").to_numpy().copy()).to(runtime.device)
    raters = torch.from_numpy(fitting.column("raters").to_numpy().astype(np.float32)).to(runtime.device)
    thresholds = losses.Thresholds(config.levels).to(runtime.device) if config.objective == "ordinal" else None

    def loss(current: torch.nn.Module, rows: np.ndarray) -> torch.Tensor:
        logits, target = current(encoded, rows), targets[rows]
        weight = raters[rows] if config.weighting == "raters" else None
        if thresholds is not None:
            return losses.ordinal_cross_entropy(logits, target, thresholds(), weight)
        return losses.soft_cross_entropy(logits, target, weight)

    def evaluate(current: torch.nn.Module) -> float:
        return dev_ndcg(dev, training.score_together(current, dev_encoded, runtime.device, config.score_tokens))

    def name_rows(rows: np.ndarray) -> str:
        first = fitting.slice(int(rows[0]), 1).to_pylist()[0]
        return f"rows {', '.join(map(str, rows[:8]))} of train.parquet, first {first['query']!r}, {first['product_id']}"

    return training.fit(
        "teacher",
        training.Logits(adapted.model, runtime.device, thresholds),
        epochs=epochs,
        loss=loss,
        evaluate=evaluate,
        name_rows=name_rows,
        optimizer=config.optimizer,
        runtime=runtime,
        checkpoints=checkpoints,
        checkpoint_seconds=compute.checkpoint_seconds,
        autocast=not adapted.folds,
        after_step=adapted.fold,
    )


def _refuse(config: Teacher, reached: dict[str, float], error: float, collapse: str | None) -> None:
    """Stop the run before anything is spent on labels that are not worth it."""
    advice = "give it more judgements, epochs or a larger model (teacher.optimizer, teacher.model)"
    lift = reached["teacher"] - reached["bm25"]
    if collapse:
        raise RunStopped(f"teacher: {collapse}; {advice}")
    if config.lift_over_bm25 > -1 and lift <= config.lift_over_bm25:
        raise RunStopped(
            f"teacher: dev nDCG@10 {reached['teacher']:.4f} against BM25's {reached['bm25']:.4f}, expected a lift "
            f"above {config.lift_over_bm25:g} before labeling: {advice}, or lower teacher.lift_over_bm25"
        )
    if error > config.max_ece:
        raise RunStopped(
            f"teacher: calibration error (ECE) {error:.3f} on dev, expected at most {config.max_ece:g} before "
            f"labeling: {advice}, try teacher.calibration: isotonic, or raise teacher.max_ece"
        )
