"""The teacher stage: fine-tune a language model on human judgements, as a one-logit classifier with soft targets."""

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
from distilrank.training import launch, loop, losses
from distilrank.training.checkpoints import Checkpoints

MIN_DISTINCT = Label().min_distinct  # so that a teacher that labeling would refuse is refused earlier


class TeacherResult(NamedTuple):
    """Dev nDCG@10 of the saved teacher, and by how much it exceeds BM25's."""

    dev_ndcg_at_10: float
    lift_over_bm25: float


def train(config: Teacher, compute: Compute, *, judgements: Path, model_digest: str, output: Path) -> TeacherResult:
    """Fine-tune, keep the weights that are best on dev, calibrate, and save adapter and merged model.

    A killed training resumes from its last checkpoint in `compute.checkpoint_dir`. With several processes or nodes
    this function runs in each of them.

    Args:
        config: the section `teacher`.
        compute: device, precision, processes, and where checkpoints are kept.
        judgements: sealed folder of the prepare stage.
        model_digest: digest of the pretrained model that `config.model` names, as preflight resolved it.
        output: folder to write: the merged model (safetensors, tokenizer), `adapter/`, `distilrank.json`,
            `metrics.json`, `quality.json` and `disagreements.csv`.

    Raises:
        RunStopped: the teacher is too poor to label with (its lift over BM25, its calibration or the spread of its
            scores misses a minimum), or its loss is not finite.
        InputError: damaged judgements, a model that cannot be loaded, a device that is not available.
    """
    inputs = {"judgements": judgements}
    if launch.is_distributed(compute):
        with artifacts.logging_failure("teacher"):
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
        judged = schemas.read(judgements / "train.parquet", schemas.JUDGED)
        dev = schemas.read(judgements / "dev.parquet", schemas.JUDGED)
        with progress.timed("teacher", f"loaded {config.model}"):
            folder = references.resolve(config.model)
            loop.seed_everything(config.optimizer.seed)
            base = load_model(folder, runtime)
        encoder = load_encoder(folder, config.text, config.kind, pretrained.inputs(folder, base))
        # a decoder's classifier finds the last token of a prompt by its pad token
        if base.config.pad_token_id is None or isinstance(encoder, encoding.PromptEncoder):
            base.config.pad_token_id = encoder.pad_token_id
        if isinstance(encoder, encoding.PairEncoder):
            parity.check(encoder, base, dev)
        adapted = adapters.Adapted(base, config.lora)
        tokens, dev_tokens = (encoding.encode_table(encoder, table, config.text) for table in (judged, dev))
        truncated = tokens.truncated + dev_tokens.truncated
        if truncated:
            progress.log_event(
                "teacher", "note", f"{truncated} pairs exceed text.max_tokens: their products are shortened"
            )
        record.facts |= {
            "runtime": runtime.describe(),
            "pairs": judged.num_rows,
            "tokens": len(tokens.ids),
            "truncated": truncated,
        }
        checkpoints = loop.open_checkpoints("teacher", compute, runtime, record.inputs, config)
        outcome = _fit(config, compute, runtime, adapted, judged, tokens, dev, dev_tokens, checkpoints)
        if not launch.is_main():
            return TeacherResult(outcome.best_score, 0.0)  # one process does the rest
        compared = dev_tokens.take(np.arange(min(len(dev_tokens), parity.DEV_PAIRS)))
        trained_logits = score_encoded(adapted.model, compared, runtime.device, config.score_tokens)
        merged = adapted.merged(output / "adapter")
        narrow_base(merged, runtime.dtype)
        merged.save_pretrained(output)
        artifacts.follow_umask(output)  # the adapter included
        save_tokenizer(encoder, output)
        describe(
            output, role="teacher", encoder=encoder, text=config.text, tokens=config.score_tokens, base=config.model
        )
        logits = calibrate(output, dev, config.calibration, compute)
        difference = parity.compare(output, trained_logits, logits[: len(trained_logits)], runtime)
        report = quality.assess(
            dev,
            logits,
            artifacts.read_json(output / DESCRIPTION)["calibration"],
            relevant_from=artifacts.read_json(judgements / "protocol.json")["relevant_from"],
            count=config.disagreements,
            seed=config.optimizer.seed,
        )
        report.write(output)
        dev_ndcg = report.figures["agreement"]["all"]["ndcg_at_10"]
        artifacts.write_json(
            output / METRICS,
            {
                "curve": outcome.curve,
                "best_step": outcome.best_step,
                "dev": dev_ndcg,
                "max_difference_to_trained": difference,
                "tokens_per_pair": len(tokens.ids) / max(len(tokens), 1),
            },
        )
        record.facts["dev"] = dev_ndcg
        ece = report.figures["calibration"]["ece"]
        progress.log_event(
            "teacher",
            "note",
            f"dev nDCG@10 {dev_ndcg['teacher']:.4f}, BM25 {dev_ndcg['bm25']:.4f}, random {dev_ndcg['random']:.4f}; "
            f"calibration error {ece:.3f}; saved, its logits are within {difference:.2g} of the trained ones",
        )
        _require_quality(
            config, dev_ndcg, ece, score_spread.describe_collapse(logits, config.min_deviation, MIN_DISTINCT)
        )
        artifacts.seal(output)
        checkpoints.clear()
    return TeacherResult(dev_ndcg["teacher"], dev_ndcg["teacher"] - dev_ndcg["bm25"])


def _fit(
    config: Teacher,
    compute: Compute,
    runtime: Runtime,
    adapted: adapters.Adapted,
    judged: pa.Table,
    tokens: encoding.Tokens,
    dev: pa.Table,
    dev_tokens: encoding.Tokens,
    checkpoints: Checkpoints,
) -> loop.Outcome:
    """Train `adapted` in place on the judged pairs."""
    epochs = _batches(config, tokens, packing.is_packed(adapted.model))
    operations_per_weight = 4 if config.lora.rank else 6  # frozen weights have no gradients
    operations = operations_per_weight * compilation.weights(adapted.model) * len(tokens.ids) * config.optimizer.epochs
    compilation.compile_layers("teacher", adapted.model, compute, runtime, operations)
    targets = torch.from_numpy(judged.column("target").to_numpy().copy()).to(runtime.device)
    raters = torch.from_numpy(judged.column("raters").to_numpy().astype(np.float32)).to(runtime.device)
    thresholds = losses.Thresholds(config.levels).to(runtime.device) if config.objective == "ordinal" else None

    def loss(current: torch.nn.Module, rows: np.ndarray) -> torch.Tensor:
        logits, target = current(tokens, rows), targets[rows]
        weight = raters[rows] if config.weighting == "raters" else None
        if thresholds is not None:
            return losses.ordinal_cross_entropy(logits, target, thresholds(), weight)
        return losses.soft_cross_entropy(logits, target, weight)

    def evaluate(current: torch.nn.Module) -> float:
        scores = loop.score_across_processes(current, dev_tokens, runtime.device, config.score_tokens)
        return metrics.judged_ndcg(dev, scores)

    def name_rows(rows: np.ndarray) -> str:
        first = judged.slice(int(rows[0]), 1).to_pylist()[0]
        return f"rows {', '.join(map(str, rows[:8]))} of train.parquet, first {first['query']!r}, {first['product_id']}"

    return loop.fit(
        loop.Logits(adapted.model, runtime.device, thresholds),
        epochs,
        options=loop.FitOptions(
            "teacher", config.optimizer, runtime, compute.checkpoint_seconds, autocast=not adapted.folds
        ),
        hooks=loop.FitHooks(loss, evaluate, name_rows, after_step=adapted.fold),
        checkpoints=checkpoints,
    )


def _batches(config: Teacher, tokens: encoding.Tokens, packed: bool) -> list[list[np.ndarray]]:
    """The batches of each epoch, arrays of row indices."""
    rng = np.random.default_rng(config.optimizer.seed)
    budget = config.optimizer.batch_tokens
    if packed:
        groups = tokens.queries if config.batches == "queries" else None
        return [batching.random_batches(tokens.lengths, budget, rng, groups) for _ in range(config.optimizer.epochs)]
    rows = np.ones_like(tokens.lengths)
    return [batching.shuffled_batches(tokens.lengths, rows, budget, rng) for _ in range(config.optimizer.epochs)]


def _require_quality(config: Teacher, dev_ndcg: dict[str, float], ece: float, collapse: str | None) -> None:
    """Stop the run before money is spent on labels of a poor teacher.

    Raises:
        RunStopped: the scores collapsed, the lift over BM25 is too small, or the calibration error too large.
    """
    advice = "give it more judgements, epochs or a larger model (teacher.optimizer, teacher.model)"
    lift = dev_ndcg["teacher"] - dev_ndcg["bm25"]
    if collapse:
        raise RunStopped(f"teacher: {collapse}; {advice}")
    if config.lift_over_bm25 > -1 and lift <= config.lift_over_bm25:
        raise RunStopped(
            f"teacher: dev nDCG@10 {dev_ndcg['teacher']:.4f} against BM25's {dev_ndcg['bm25']:.4f}, expected a lift "
            f"above {config.lift_over_bm25:g} before labeling: {advice}, or lower teacher.lift_over_bm25"
        )
    if ece > config.max_ece:
        raise RunStopped(
            f"teacher: calibration error (ECE) {ece:.3f} on dev, expected at most {config.max_ece:g} before "
            f"labeling: {advice}, try teacher.calibration: isotonic, or raise teacher.max_ece"
        )
