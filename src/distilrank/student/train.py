"""Student stage: a small cross-encoder learns the teacher's margins between products of one query."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distilrank.config import Compute, Student
from distilrank.core import artifacts, progress, schemas
from distilrank.core.errors import InputError
from distilrank.core.prefetch import prefetch
from distilrank.modeling import calibration, compilation, encoding, packing, parity, pretrained, references
from distilrank.modeling.runtime import setup_runtime
from distilrank.modeling.scorer import DESCRIPTION, METRICS, calibrate, describe
from distilrank.modeling.torch_backend import load_model, save_tokenizer
from distilrank.student import export, model_card
from distilrank.student.dataset import Chunk, ListwiseDataset
from distilrank.teacher import label_manifest, labeling, quality
from distilrank.teacher.train import dev_ndcg
from distilrank.training import launch, losses
from distilrank.training import loop as training

SCRATCH = ".tokens-"


class StudentResult(NamedTuple):
    """Dev nDCG@10 of the saved student."""

    dev_ndcg_at_10: float


def _targets(config: Student, teacher: Path) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """What turns the teacher's logits, shape (n,), into what the student learns of each, and each label's weight."""
    calibrated = artifacts.read_json(teacher / DESCRIPTION)["calibration"]
    convert = calibration.calibrated_logit if config.target == "logit" else calibration.probability
    curve = artifacts.read_json(teacher / quality.QUALITY)["confidence"] if config.confidence else None

    def of(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        target = convert(calibrated, logits).astype(np.float32)
        if curve is None:
            return target, np.ones_like(target)
        return target, quality.weights(curve, calibration.probability(calibrated, logits), config.target)

    return of


def _pieces(
    scored: Iterator[pa.Table], judged: pa.Table | None, teacher: Path, encoder: encoding.Encoder, config: Student
) -> Iterator[Chunk]:
    """All that is learned from, some rows at a time, tokenized beside the writing of the piece before."""
    targets = _targets(config, teacher)
    for table in scored:
        target, weight = targets(table.column("logit").to_numpy())
        yield Chunk.of(table, encoding.encode_table(encoder, table, config.text), target, weight, human=False)
    if judged is not None:
        target = judged.column("target").to_numpy()
        weight = np.ones(judged.num_rows, np.float32)
        yield Chunk.of(judged, encoding.encode_table(encoder, judged, config.text), target, weight, human=True)


def _check(lists: ListwiseDataset, config: Student) -> None:
    """Refuse labels that teach nothing, and say what some of them cannot teach."""
    taught = lists.target[np.repeat(~lists.human, lists.sizes)]
    if np.ptp(taught) == 0:
        raise InputError(f"all {len(taught)} labels are {taught[0]:g}; the teacher tells no product from another")
    labeled = lists.sizes[~lists.human]
    alone = int((labeled == 1).sum())
    if alone == len(labeled) and not config.pointwise:
        raise InputError(
            f"each of the {alone} labeled queries has one product, which gives no {config.loss} to learn; "
            "expected student.pointwise above 0, or more candidates a query"
        )
    if alone and config.loss != "none":
        term = "the pointwise term only" if config.pointwise else "nothing, as student.pointwise is 0"
        progress.log_event("student", "note", f"{alone} of {len(labeled)} labeled queries have one product: {term}")


def _objective(
    config: Student, lists: ListwiseDataset, device: torch.device
) -> Callable[[torch.nn.Module, np.ndarray], Tensor]:
    """The loss of a batch of lists: labeled and judged ones by their numbers in it."""
    target, weight = torch.from_numpy(lists.target), torch.from_numpy(lists.weight)
    prefer = losses.prefer_by_logit if config.target == "logit" else losses.prefer_by_probability

    def taught(logits: Tensor, rows: Tensor, of: Tensor) -> Tensor:
        """The loss on labels: within queries, and of each by itself."""
        labels = target[rows].to(device)
        weights = weight[rows].to(device) if config.confidence else None
        score = logits if config.target == "logit" else logits.float().sigmoid()
        total = logits.new_zeros((), dtype=torch.float32)
        if config.loss == "margin":
            total = losses.margin_loss(score, labels, of, weights)
        elif config.loss == "ranknet":
            total = losses.ranknet_loss(logits, prefer, labels, of, weights)
        elif config.loss == "listwise":
            total = losses.listwise_loss(score, labels, of, weights, config.temperature)
        if config.pointwise and config.pointwise_loss == "squared_error":
            total = total + config.pointwise * losses.pointwise_loss(score, labels, of, weights)
        elif config.pointwise:
            probability = labels.sigmoid() if config.target == "logit" else labels
            total = total + config.pointwise * losses.pointwise_cross_entropy(logits, probability, of, weights)
        return total

    def judged(logits: Tensor, rows: Tensor, of: Tensor) -> Tensor:
        truth = target[rows].to(device)
        if config.human_loss == "cross_entropy":
            return losses.soft_cross_entropy(logits, truth)
        return losses.ranknet_loss(logits, losses.prefer_by_probability, truth, of)

    def loss(current: torch.nn.Module, batch: np.ndarray) -> Tensor:
        batch = np.sort(batch)  # their rows lie near each other in the file then
        rows = lists.rows(batch)
        logits = current(lists.tokens, rows)
        # by place in the batch: a list that is in it twice is two
        place = np.repeat(np.arange(len(batch)), lists.sizes[batch])
        human = torch.from_numpy(lists.human[batch][place])
        share = float(lists.human[batch].mean())
        chosen, of = torch.from_numpy(rows), torch.from_numpy(place)
        total = logits.new_zeros((), dtype=torch.float32)
        for part, weight_of_part, loss_of_part in ((~human, 1 - share, taught), (human, share * config.human, judged)):
            if part.any():
                there = part.to(device)
                total = total + weight_of_part * loss_of_part(logits[there], chosen[part], of[part].to(device))
        return total

    return loss


def _shorten(model: PreTrainedModel, layers: int) -> None:
    """Keep `layers` of the model's layers, evenly spread, its first and its last among them."""
    have = model.config.num_hidden_layers
    if layers > have:
        raise InputError(f"student.layers: {layers}, but the model has {have}")
    kept = np.linspace(0, have - 1, layers).round().astype(int).tolist()
    stacks = [
        (owner, name, child)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) == have
    ]
    if have == 1 or len(stacks) != 1:
        raise InputError(
            f"student.layers: {layers}, but the {have} layers of {model.config.model_type!r} are not held one by one "
            "(those of ALBERT are one and the same), expected 0: all of them"
        )
    ((owner, name, stack),) = stacks
    setattr(owner, name, torch.nn.ModuleList([stack[place] for place in kept]))
    pretrained.keep_layers(model.config, kept)
    progress.log_event("student", "note", f"{layers} of {have} layers: {', '.join(str(place + 1) for place in kept)}")


def train(
    config: Student,
    compute: Compute,
    *,
    judgements: Path,
    candidates: Path,
    labeled: list[Path],
    teacher: Path,
    model_digest: str,
    output: Path,
) -> StudentResult:
    """Distil, keep the best weights on dev, calibrate and save. Killed, it goes on from its last checkpoint.

    Args:
        judgements: sealed folder; its dev split chooses the weights, its train split is mixed in by `config.human`.
        candidates: sealed folder of shards.
        labeled: the label stage's folders, one a shard.
        teacher: sealed folder: its calibration turns the raw logits into targets.
        model_digest: digest of the pretrained model that `config.model` names, as preflight resolved it.
        output: gets the model as transformers and sentence-transformers load it, `distilrank.json`, `metrics.json`.

    Raises:
        InputError: labels that do not fit candidates or teacher, damaged files, a model that cannot be loaded.
    """
    inputs: artifacts.Inputs = {
        "judgements": judgements, "candidates": candidates, "labels": labeled, "teacher": teacher,
    }  # fmt: skip
    read = {"teacher": [DESCRIPTION, *([quality.QUALITY] if config.confidence else [])]}
    if launch.is_distributed(compute):
        with artifacts.announcing("student"):
            artifacts.require(inputs, read)
            result = launch.run(
                "student",
                config,
                compute,
                folders={"judgements": judgements, "candidates": candidates, "labeled": labeled, "teacher": teacher},
                values={"model_digest": model_digest},
                output=output,
            )
        return StudentResult(**result)
    with artifacts.stage("student", output, config=config, inputs=inputs, only=read) as record:
        record.inputs |= {
            "judgements": artifacts.verify(judgements),
            "candidates": artifacts.verify(candidates),
            "teacher": artifacts.verify(teacher, read["teacher"]),
            "labels": label_manifest.identity(labeled),
            "model": model_digest,
        }
        runtime = setup_runtime(compute)
        progress.log_event("student", "note", runtime.describe())
        scored = labeling.read(labeled, candidates, teacher)
        judged = schemas.read(judgements / "train.parquet", schemas.JUDGED)
        dev = schemas.read(judgements / "dev.parquet", schemas.JUDGED)
        folder = references.resolve(config.model)
        encoding.require_encoder(folder)
        training.seed_everything(config.optimizer.seed)
        model = load_model(folder, runtime, torch.float32)  # fp32 master weights; the forward pass runs under autocast
        if config.layers:
            _shorten(model, config.layers)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = config.dropout
        encoder = encoding.PairEncoder(folder, config.text, pretrained.inputs(folder, model))
        if model.config.pad_token_id is None:
            model.config.pad_token_id = encoder.pad_token_id
        parity.check(encoder, model, dev)
        scratch = output / f"{SCRATCH}{os.environ.get('RANK', '0')}"
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed attempt left
        lists = ListwiseDataset(
            prefetch(_pieces(scored, judged if config.human else None, teacher, encoder, config)), scratch
        )
        _check(lists, config)
        dev_encoded = encoding.encode_table(encoder, dev, config.text)
        rng = np.random.default_rng(config.optimizer.seed)
        packed = packing.is_packed(model)
        epochs = [
            lists.batches(config.optimizer.batch_tokens, config.human_share, packed, rng)
            for _ in range(config.optimizer.epochs)
        ]
        operations = 6 * compilation.weights(model) * len(lists.tokens.ids) * config.optimizer.epochs
        compilation.compile_layers("student", model, compute, runtime, operations)

        def evaluate(current: torch.nn.Module) -> float:
            return dev_ndcg(dev, training.score_together(current, dev_encoded, runtime.device, config.score_tokens))

        def name_rows(batch: np.ndarray) -> str:
            queries = [lists.queries[one] for one in batch[:3]]
            return f"queries {', '.join(map(repr, queries))} and {len(batch) - len(queries)} more"

        checkpoints = training.checkpoints_of("student", compute, runtime, record.inputs, config)
        outcome = training.fit(
            "student",
            training.Logits(model, runtime.device),
            epochs=epochs,
            loss=_objective(config, lists, runtime.device),
            evaluate=evaluate,
            name_rows=name_rows,
            optimizer=config.optimizer,
            runtime=runtime,
            checkpoints=checkpoints,
            checkpoint_seconds=compute.checkpoint_seconds,
        )
        if not launch.is_main():
            return StudentResult(outcome.best)  # the first process does what one can do alone
        # sentence-transformers applies a sigmoid to one-logit models unless told otherwise
        model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
        model.save_pretrained(output)
        artifacts.follow_umask(output)
        save_tokenizer(encoder, output)
        describe(
            output, role="student", encoder=encoder, text=config.text, tokens=config.score_tokens, base=config.model
        )
        logits = calibrate(output, dev, config.calibration, compute)
        reached = {"student": dev_ndcg(dev, logits), "bm25": dev_ndcg(dev, dev.column("bm25").to_numpy())}
        artifacts.write_json(
            output / METRICS,
            {"curve": outcome.curve, "best_step": outcome.best_step, "dev": reached},
        )
        for left in output.glob(f"{SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)
        knobs = config.export
        if knobs.onnx:
            with progress.timed("student", "exported to ONNX"):
                export.export(
                    output,
                    dev,
                    variants=knobs.variants,
                    max_difference=knobs.max_difference,
                    max_ndcg_loss=knobs.max_ndcg_loss,
                    pairs=knobs.pairs,
                )
        with progress.timed("student", "compared the saved student with the trained one"):
            parity.prove(output, model, encoder, dev, compute)
        model_card.write(
            output,
            {"config": config.model_dump(mode="json"), "inputs": record.inputs},
            teacher=artifacts.read_json(teacher / DESCRIPTION).get("base", ""),
            license=model_card.read_licence(folder),
        )
        record.facts |= {
            "runtime": runtime.describe(),
            "pairs": len(lists.tokens),
            "queries": len(lists),
            "tokens": len(lists.tokens.ids),
            "dev": reached,
        }
        artifacts.seal(output)
        checkpoints.clear()
    return StudentResult(reached["student"])
