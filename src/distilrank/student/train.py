"""The student stage: train a small cross-encoder on the teacher's margins between products of one query."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distilrank.config import Compute, Export, Student
from distilrank.core import artifacts, progress, schemas
from distilrank.core.errors import InputError
from distilrank.core.prefetch import prefetch
from distilrank.evaluation import metrics
from distilrank.modeling import calibration, compilation, encoding, packing, parity, pretrained, references
from distilrank.modeling.runtime import Runtime, setup_runtime
from distilrank.modeling.scorer import DESCRIPTION, METRICS, calibrate, describe
from distilrank.modeling.torch_backend import load_model, save_tokenizer
from distilrank.student import export, model_card
from distilrank.student.dataset import Chunk, ListwiseDataset
from distilrank.teacher import label_manifest, labeling, quality
from distilrank.training import launch, loop, losses
from distilrank.training.checkpoints import Checkpoints

TOKEN_FOLDER = ".tokens-"
"""Beginning of the name of each process's folder of token ids, in the output folder while it trains."""


class StudentResult(NamedTuple):
    """Dev nDCG@10 of the saved student."""

    dev_ndcg_at_10: float


class TargetConverter:
    """Turns the teacher's raw logits into the student's targets and their weights.

    Args:
        config: kind of target, and whether labels are weighted by the teacher's confidence.
        teacher: the teacher's folder, which has its calibration and its confidence curve.
    """

    def __init__(self, config: Student, teacher: Path) -> None:
        self._kind = config.target
        self._calibration = artifacts.read_json(teacher / DESCRIPTION)["calibration"]
        self._curve = artifacts.read_json(teacher / quality.QUALITY)["confidence"] if config.confidence else None

    def __call__(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Target and weight of each label, float32, both of the shape of `logits`, (n,)."""
        convert = calibration.calibrated_logit if self._kind == "logit" else calibration.probability
        targets = convert(self._calibration, logits).astype(np.float32)
        if self._curve is None:
            return targets, np.ones_like(targets)
        return targets, quality.weights(self._curve, calibration.probability(self._calibration, logits), self._kind)


def _training_chunks(
    labeled_tables: Iterator[pa.Table],
    judged: pa.Table | None,
    teacher: Path,
    encoder: encoding.Encoder,
    config: Student,
) -> Iterator[Chunk]:
    """All training rows, tokenized: the labeled ones table by table, then the judged ones."""
    convert = TargetConverter(config, teacher)
    for table in labeled_tables:
        targets, weights = convert(table.column("logit").to_numpy())
        yield Chunk.from_table(
            table, encoding.encode_table(encoder, table, config.text), targets, weights, judged=False
        )
    if judged is not None:
        targets = judged.column("target").to_numpy()
        weights = np.ones(judged.num_rows, np.float32)
        yield Chunk.from_table(
            judged, encoding.encode_table(encoder, judged, config.text), targets, weights, judged=True
        )


def _require_signal(dataset: ListwiseDataset, config: Student) -> None:
    """Refuse labels from which nothing can be learned, and note those from which little can.

    Raises:
        InputError: all labels are equal, or no query has two products and there is no pointwise term.
    """
    targets = dataset.targets[np.repeat(~dataset.is_judged, dataset.sizes)]
    if np.ptp(targets) == 0:
        raise InputError(f"all {len(targets)} teacher labels equal {targets[0]:g}: there is no margin to learn")
    sizes = dataset.sizes[~dataset.is_judged]
    singles = int((sizes == 1).sum())
    if singles == len(sizes) and not config.pointwise:
        raise InputError(
            f"each of the {singles} labeled queries has one product, which gives no {config.loss} to learn; "
            "expected student.pointwise above 0, or more candidates a query"
        )
    if singles and config.loss != "none":
        term = "the pointwise term only" if config.pointwise else "nothing, as student.pointwise is 0"
        progress.log_event("student", "note", f"{singles} of {len(sizes)} labeled queries have one product: {term}")


class Objective:
    """The student's loss of a batch of lists: distillation on labeled lists plus supervision on judged ones.

    With a share q of judged lists in the batch it is
    (1 - q) * distillation_loss + q * config.judged_weight * supervised_loss.

    Args:
        config: which losses, and their weights.
        dataset: the lists.
        device: where the model computes.
    """

    def __init__(self, config: Student, dataset: ListwiseDataset, device: torch.device) -> None:
        self._config, self._dataset, self._device = config, dataset, device
        self._targets, self._weights = torch.from_numpy(dataset.targets), torch.from_numpy(dataset.weights)
        self._preference = losses.prefer_by_logit if config.target == "logit" else losses.prefer_by_probability

    def __call__(self, model: torch.nn.Module, batch: np.ndarray) -> Tensor:
        """Scalar loss in fp32.

        Args:
            model: returns the logits of (tokens, rows), as `training.loop.Logits` does.
            batch: list indices, shape (lists,); an index that occurs twice counts as two lists.
        """
        batch = np.sort(batch)  # neighboring lists are neighbors in the memory-mapped file
        rows = self._dataset.rows(batch)
        logits = model(self._dataset.tokens, rows)
        # the position in the batch, not the list's index: a list that occurs twice is two
        position = np.repeat(np.arange(len(batch)), self._dataset.sizes[batch])
        row_is_judged = torch.from_numpy(self._dataset.is_judged[batch][position])
        judged_share = float(self._dataset.is_judged[batch].mean())
        row_indices, query = torch.from_numpy(rows), torch.from_numpy(position)
        total = logits.new_zeros((), dtype=torch.float32)
        for mask, weight, loss in (
            (~row_is_judged, 1 - judged_share, self.distillation_loss),
            (row_is_judged, judged_share * self._config.judged_weight, self.supervised_loss),
        ):
            if mask.any():
                selected_logits, selected_query = logits[mask.to(self._device)], query[mask].to(self._device)
                total = total + weight * loss(selected_logits, row_indices[mask], selected_query)
        return total

    def distillation_loss(self, logits: Tensor, rows: Tensor, query: Tensor) -> Tensor:
        """Loss against the teacher's labels: a term within queries, and a pointwise one.

        Args:
            logits: the student's, shape (n,), on the device.
            rows: index of each row in the dataset, shape (n,), on the CPU.
            query: number that rows of one list share, shape (n,), on the device.
        """
        config = self._config
        targets = self._targets[rows].to(self._device)
        weights = self._weights[rows].to(self._device) if config.confidence else None
        score = logits if config.target == "logit" else logits.float().sigmoid()
        total = logits.new_zeros((), dtype=torch.float32)
        if config.loss == "margin":
            total = losses.margin_loss(score, targets, query, weights)
        elif config.loss == "ranknet":
            total = losses.ranknet_loss(logits, self._preference, targets, query, weights)
        elif config.loss == "listwise":
            total = losses.listwise_loss(score, targets, query, weights, config.temperature)
        if config.pointwise and config.pointwise_loss == "squared_error":
            total = total + config.pointwise * losses.pointwise_loss(score, targets, query, weights)
        elif config.pointwise:
            probability = targets.sigmoid() if config.target == "logit" else targets
            total = total + config.pointwise * losses.pointwise_cross_entropy(logits, probability, query, weights)
        return total

    def supervised_loss(self, logits: Tensor, rows: Tensor, query: Tensor) -> Tensor:
        """Loss against people's judgements; arguments as in `distillation_loss`."""
        targets = self._targets[rows].to(self._device)
        if self._config.judged_loss == "cross_entropy":
            return losses.soft_cross_entropy(logits, targets)
        return losses.ranknet_loss(logits, losses.prefer_by_probability, targets, query)


def _keep_layers(model: PreTrainedModel, count: int) -> None:
    """Remove all but `count` of the model's layers, evenly spaced, the first and the last among them."""
    total = model.config.num_hidden_layers
    if count > total:
        raise InputError(f"student.layers: {count}, but the model has {total} layers, expected at most {total}")
    layers = np.linspace(0, total - 1, count).round().astype(int).tolist()
    stacks = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) == total
    ]
    if total == 1 or len(stacks) != 1:
        raise InputError(
            f"student.layers: {count}, but the {total} layers of {model.config.model_type!r} are not separate modules "
            "(those of ALBERT share their weights); expected 0: all of them"
        )
    ((parent, name, stack),) = stacks
    setattr(parent, name, torch.nn.ModuleList([stack[index] for index in layers]))
    pretrained.keep_layers(model.config, layers)
    names = ", ".join(str(index + 1) for index in layers)
    progress.log_event("student", "note", f"keeps {count} of {total} layers: {names}")


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
    """Distil, keep the weights that are best on dev, calibrate and save; a killed training resumes.

    Args:
        config: the section `student`.
        compute: device, precision, processes, and where checkpoints are kept.
        judgements: sealed folder; its dev split chooses the weights, its train split is mixed in by
            `config.judged_weight`.
        candidates: sealed folder of shards.
        labeled: the label stage's folders, one per shard.
        teacher: sealed folder; its calibration converts the raw logits to targets.
        model_digest: digest of the pretrained model that `config.model` names, as preflight resolved it.
        output: folder to write: the model as transformers and sentence-transformers load it, `distilrank.json`,
            `metrics.json`, `onnx/`, `parity.json` and the model card.

    Raises:
        InputError: labels that do not fit candidates or teacher, damaged files, a model that cannot be loaded.
        RunStopped: the loss is not finite, the device has too little memory, or the saved student does not score as
            the trained one.
    """
    inputs: artifacts.Inputs = {
        "judgements": judgements, "candidates": candidates, "labels": labeled, "teacher": teacher,
    }  # fmt: skip
    read = {"teacher": [DESCRIPTION, *([quality.QUALITY] if config.confidence else [])]}
    if launch.is_distributed(compute):
        with artifacts.logging_failure("student"):
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
        labeled_tables = labeling.read(labeled, candidates, teacher)
        judged = schemas.read(judgements / "train.parquet", schemas.JUDGED)
        dev = schemas.read(judgements / "dev.parquet", schemas.JUDGED)

        pretrained_folder = references.resolve(config.model)
        model, encoder = _load(config, pretrained_folder, runtime)
        parity.check(encoder, model, dev)
        token_folder = output / f"{TOKEN_FOLDER}{os.environ.get('RANK', '0')}"
        shutil.rmtree(token_folder, ignore_errors=True)  # left by a killed attempt
        chunks = _training_chunks(labeled_tables, judged if config.judged_weight else None, teacher, encoder, config)
        dataset = ListwiseDataset(prefetch(chunks), token_folder)
        _require_signal(dataset, config)

        checkpoints = loop.open_checkpoints("student", compute, runtime, record.inputs, config)
        outcome = _fit(config, compute, runtime, model, dataset, dev, encoder, checkpoints)
        if not launch.is_main():
            return StudentResult(outcome.best_score)  # one process does the rest
        dev_ndcg = _save(config, compute, model, encoder, dev, outcome, output)
        for folder in output.glob(f"{TOKEN_FOLDER}*"):
            shutil.rmtree(folder, ignore_errors=True)
        _export(config.export, dev, output)
        with progress.timed("student", "compared the saved student with the trained one"):
            parity.prove(output, model, encoder, dev, compute)
        model_card.write(
            output,
            {"config": config.model_dump(mode="json"), "inputs": record.inputs},
            teacher=artifacts.read_json(teacher / DESCRIPTION).get("base", ""),
            license=model_card.read_licence(pretrained_folder),
        )
        record.facts |= {
            "runtime": runtime.describe(),
            "pairs": len(dataset.tokens),
            "queries": len(dataset),
            "tokens": len(dataset.tokens.ids),
            "dev": dev_ndcg,
        }
        artifacts.seal(output)
        checkpoints.clear()
    return StudentResult(dev_ndcg["student"])


def _load(config: Student, folder: Path, runtime: Runtime) -> tuple[PreTrainedModel, encoding.PairEncoder]:
    """The pretrained model, with the layers and dropout of `config` and a new head, and its encoder."""
    encoding.require_encoder(folder)
    loop.seed_everything(config.optimizer.seed)
    model = load_model(folder, runtime, torch.float32)  # fp32 master weights; the forward pass runs under autocast
    if config.layers:
        _keep_layers(model, config.layers)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = config.dropout
    encoder = encoding.PairEncoder(folder, config.text, pretrained.inputs(folder, model))
    if model.config.pad_token_id is None:
        model.config.pad_token_id = encoder.pad_token_id
    return model, encoder


def _fit(
    config: Student,
    compute: Compute,
    runtime: Runtime,
    model: PreTrainedModel,
    dataset: ListwiseDataset,
    dev: pa.Table,
    encoder: encoding.PairEncoder,
    checkpoints: Checkpoints,
) -> loop.Outcome:
    """Train `model` in place on `dataset`."""
    settings = config.optimizer
    dev_tokens = encoding.encode_table(encoder, dev, config.text)
    rng = np.random.default_rng(settings.seed)
    packed = packing.is_packed(model)
    epochs = [dataset.batches(settings.batch_tokens, config.judged_share, packed, rng) for _ in range(settings.epochs)]
    operations = 6 * compilation.weights(model) * len(dataset.tokens.ids) * settings.epochs
    compilation.compile_layers("student", model, compute, runtime, operations)

    def evaluate(current: torch.nn.Module) -> float:
        scores = loop.score_across_processes(current, dev_tokens, runtime.device, config.score_tokens)
        return metrics.judged_ndcg(dev, scores)

    def name_rows(batch: np.ndarray) -> str:
        queries = [dataset.queries[index] for index in batch[:3]]
        return f"queries {', '.join(map(repr, queries))} and {len(batch) - len(queries)} more"

    return loop.fit(
        loop.Logits(model, runtime.device),
        epochs,
        options=loop.FitOptions("student", settings, runtime, compute.checkpoint_seconds),
        hooks=loop.FitHooks(Objective(config, dataset, runtime.device), evaluate, name_rows),
        checkpoints=checkpoints,
    )


def _save(
    config: Student,
    compute: Compute,
    model: PreTrainedModel,
    encoder: encoding.PairEncoder,
    dev: pa.Table,
    outcome: loop.Outcome,
    output: Path,
) -> dict[str, float]:
    """Write the model, its tokenizer, calibration and metrics; return nDCG@10 on dev of the student and of BM25."""
    # sentence-transformers applies a sigmoid to the logit of a one-label model unless the configuration says otherwise
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model.save_pretrained(output)
    artifacts.follow_umask(output)
    save_tokenizer(encoder, output)
    describe(output, role="student", encoder=encoder, text=config.text, tokens=config.score_tokens, base=config.model)
    logits = calibrate(output, dev, config.calibration, compute)
    dev_ndcg = {
        "student": metrics.judged_ndcg(dev, logits),
        "bm25": metrics.judged_ndcg(dev, dev.column("bm25").to_numpy()),
    }
    artifacts.write_json(output / METRICS, {"curve": outcome.curve, "best_step": outcome.best_step, "dev": dev_ndcg})
    return dev_ndcg


def _export(settings: Export, dev: pa.Table, output: Path) -> None:
    if not settings.onnx:
        return
    with progress.timed("student", "exported to ONNX"):
        export.export(
            output,
            dev,
            variants=settings.variants,
            max_difference=settings.max_difference,
            max_ndcg_loss=settings.max_ndcg_loss,
            pairs=settings.pairs,
        )
