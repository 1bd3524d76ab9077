"""Student stage: a small cross-encoder learns the teacher's margins between products of one query."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from distilrank import (
    artifacts,
    batching,
    calibration,
    encoding,
    label_manifest,
    labels,
    launch,
    losses,
    models,
    progress,
    quality,
    records,
    training,
)
from distilrank import compute as computing
from distilrank.config import Compute, Student
from distilrank.network import load_model
from distilrank.scorer import DESCRIPTION, METRICS, calibrate, describe, load_encoder
from distilrank.teacher import dev_ndcg


class StudentResult(NamedTuple):
    """Dev nDCG@10 of the saved student."""

    dev_ndcg_at_10: float


class _Lists:
    """Whole queries of either kind, teacher-labelled or human-judged, as rows and as units for batching."""

    def __init__(
        self, table: pa.Table, target: np.ndarray, weight: np.ndarray, human: np.ndarray, encoded: encoding.Tokens
    ) -> None:
        # A query may be labelled and judged: it is two lists then.
        keys = [f"{kind:d}{query}" for kind, query in zip(human, table.column("query_id").to_pylist(), strict=True)]
        _, self.query = np.unique(keys, return_inverse=True)
        self.target, self.weight, self.human, self.encoded = target, weight, human, encoded
        order = np.argsort(self.query, kind="stable")
        self.rows = np.split(order, np.flatnonzero(np.diff(self.query[order])) + 1)
        lengths = encoded.lengths
        self.longest = np.array([lengths[rows].max() for rows in self.rows])
        self.sizes = np.array([len(rows) for rows in self.rows])


def _targets(config: Student, teacher: Path, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the student learns of each label, and the label's weight: float32, shape (n,) each."""
    calibrated = artifacts.read_json(teacher / DESCRIPTION)["calibration"]
    convert = calibration.calibrated_logit if config.target == "logit" else calibration.probability
    target = convert(calibrated, logits).astype(np.float32)
    if not config.confidence:
        return target, np.ones_like(target)
    curve = artifacts.read_json(teacher / quality.QUALITY)["confidence"]
    return target, quality.weights(curve, calibration.probability(calibrated, logits), config.target)


def train(
    config: Student,
    compute: Compute,
    *,
    judgements: Path,
    candidates: Path,
    labelled: list[Path],
    teacher: Path,
    model_digest: str,
    output: Path,
) -> StudentResult:
    """Distil, keep the best weights on dev, calibrate and save. Killed, it goes on from its last checkpoint.

    Args:
        judgements: sealed folder; its dev split chooses the weights, its train split is mixed in by `config.human`.
        candidates: sealed folder of shards.
        labelled: the label stage's folders, one a shard.
        teacher: sealed folder: its calibration turns the raw logits into targets.
        model_digest: digest of the pretrained model that `config.model` names, as preflight resolved it.
        output: gets the model as transformers and sentence-transformers load it, `distilrank.json`, `metrics.json`.

    Raises:
        InputError: labels that do not fit candidates or teacher, damaged files, a model that cannot be loaded.
    """
    if launch.is_distributed(compute):
        result = launch.run(
            "student",
            config,
            compute,
            folders={"judgements": judgements, "candidates": candidates, "labelled": labelled, "teacher": teacher},
            values={"model_digest": model_digest},
            output=output,
        )
        return StudentResult(**result)
    with artifacts.stage("student", output, config=config) as record:
        record.inputs |= {
            "judgements": artifacts.verify(judgements),
            "candidates": artifacts.sealed_digest(candidates),
            "teacher": artifacts.sealed_digest(teacher),
            "labels": label_manifest.identity(labelled),
            "model": model_digest,
        }
        runtime = computing.setup(compute)
        progress.announce("student", "note", runtime.describe())
        scored = labels.read(labelled, candidates, teacher)
        judged = records.read(judgements / "train.parquet", records.JUDGED)
        dev = records.read(judgements / "dev.parquet", records.JUDGED)
        folder = models.resolve(config.model)
        training.seed_everything(config.optimiser.seed)
        model = load_model(folder, runtime, torch.float32)  # fp32 master weights; the forward pass runs under autocast
        encoder = load_encoder(folder, config.text, "encoder")
        human = judged if config.human else judged.slice(0, 0)
        pairs = pa.concat_tables([table.select(list(records.PAIR_COLUMNS)) for table in (scored, human)])
        target, weight = _targets(config, teacher, scored.column("logit").to_numpy())
        lists = _Lists(
            pairs,
            np.concatenate([target, human.column("target").to_numpy()]),
            np.concatenate([weight, np.ones(human.num_rows, np.float32)]),
            np.repeat([False, True], [scored.num_rows, human.num_rows]),
            encoding.encode_table(encoder, pairs, config.text),
        )
        dev_encoded = encoding.encode_table(encoder, dev, config.text)
        rng = np.random.default_rng(config.optimiser.seed)
        epochs = [
            batching.shuffled(lists.longest, lists.sizes, config.optimiser.batch_tokens, rng)
            for _ in range(config.optimiser.epochs)
        ]

        def loss(current: torch.nn.Module, units: np.ndarray) -> torch.Tensor:
            rows = np.concatenate([lists.rows[unit] for unit in units])
            logits = current(lists.encoded, rows)
            target, weight, query, judged_rows = (
                torch.from_numpy(values[rows]).to(runtime.device)
                for values in (lists.target, lists.weight, lists.query, lists.human)
            )
            share = float(np.mean([lists.human[lists.rows[unit][0]] for unit in units]))
            total = logits.new_zeros((), dtype=torch.float32)
            if share < 1:
                score = logits if config.target == "logit" else logits.float().sigmoid()
                taught = {
                    "student": score[~judged_rows],
                    "teacher": target[~judged_rows],
                    "query": query[~judged_rows],
                    "weight": weight[~judged_rows] if config.confidence else None,
                }
                margin, level = losses.margin_loss(**taught), losses.pointwise_loss(**taught)
                total = total + (1 - share) * (margin + config.pointwise * level)
            if share > 0:
                total = total + share * config.human * losses.soft_cross_entropy(
                    logits[judged_rows], target[judged_rows]
                )
            return total

        def evaluate(current: torch.nn.Module) -> float:
            return dev_ndcg(dev, training.score_together(current, dev_encoded, runtime.device, config.score_tokens))

        def name_rows(units: np.ndarray) -> str:
            queries = [pairs.column("query")[int(lists.rows[unit][0])].as_py() for unit in units[:3]]
            return f"queries {', '.join(map(repr, queries))} and {len(units) - len(queries)} more"

        checkpoints = training.checkpoints_of("student", compute, runtime, record.inputs, config)
        outcome = training.fit(
            "student",
            training.Logits(model, runtime.device),
            epochs=epochs,
            loss=loss,
            evaluate=evaluate,
            name_rows=name_rows,
            optimiser=config.optimiser,
            runtime=runtime,
            checkpoints=checkpoints,
            checkpoint_seconds=compute.checkpoint_seconds,
        )
        if not launch.is_main():
            return StudentResult(outcome.best)  # the first process does what one can do alone
        # sentence-transformers applies a sigmoid to one-logit models unless told otherwise
        model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
        model.save_pretrained(output)
        encoder.tokenizer.model_max_length = config.text.max_tokens
        encoder.tokenizer.save_pretrained(output)
        describe(
            output, role="student", encoder=encoder, text=config.text, tokens=config.score_tokens, base=config.model
        )
        logits = calibrate(output, dev, config.calibration, compute)
        reached = {"student": dev_ndcg(dev, logits), "bm25": dev_ndcg(dev, dev.column("bm25").to_numpy())}
        artifacts.write_json(
            output / METRICS,
            {"curve": outcome.curve, "best_step": outcome.best_step, "dev": reached},
        )
        record.facts |= {
            "runtime": runtime.describe(),
            "pairs": pairs.num_rows,
            "queries": len(lists.rows),
            "tokens": len(lists.encoded.ids),
            "dev": reached,
        }
        artifacts.seal(output)
        checkpoints.clear()
    return StudentResult(reached["student"])
