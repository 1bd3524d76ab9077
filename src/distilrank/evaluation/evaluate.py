"""The `evaluate` stage: every system on the same judged test rows, compared query by query."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from distilrank import registry as registries
from distilrank.config import Compute, Evaluate, Registry
from distilrank.core import artifacts, progress, schemas
from distilrank.core.errors import InputError
from distilrank.evaluation import outputs, slices
from distilrank.evaluation.judged import Judged
from distilrank.evaluation.latency import measure_latency
from distilrank.evaluation.systems import compare_systems, score_baselines, score_judged
from distilrank.modeling.scorer import Scorer


class Evaluation(NamedTuple):
    """Metrics of the student that the pipeline logs."""

    ndcg_at_10: float
    lift_over_bm25: float


def evaluate(
    config: Evaluate,
    compute: Compute,
    registry: Registry,
    *,
    judgements: Path,
    traffic: Path,
    teacher: Path,
    student: Path,
    champion: str,
    anchor: str,
    output: Path,
) -> Evaluation:
    """Compare random order, BM25, teacher, student, champion and anchor on the test split; score the traffic samples.

    Args:
        config: resamples, confidence, slices, bins, seed.
        compute: device and precision.
        registry: where the champion and the anchor are fetched from.
        judgements: folder with `test.parquet` and `protocol.json`.
        traffic: folder with `reference.parquet` and `current.parquet`.
        teacher: model folder.
        student: model folder.
        champion: version id; empty if there is no champion.
        anchor: version id; empty if there is no anchor. If it is the champion, both systems have the same scores.
        output: folder for `metrics.json`, `per_query.parquet`, `pair_scores.parquet`, `qrels.txt`, `runs/` and
            `traffic_scores/`.

    Raises:
        InputError: an input is missing or damaged, the champion or the anchor cannot be loaded, the test split has
            nothing to rank, or a slice column does not exist.
        RunStopped: a model gives scores that are not numbers.
    """
    inputs = {"judgements": judgements, "traffic": traffic, "teacher": teacher, "student": student}
    with artifacts.stage("evaluate", output, config=config, inputs=inputs) as record:
        record.inputs |= {
            **{name: artifacts.verify(folder) for name, folder in inputs.items()},
            "champion": champion,
            "anchor": anchor,
        }
        slices.require_columns(config.slices)
        for name in ("runs", "traffic_scores"):  # an earlier attempt may have had a champion
            shutil.rmtree(output / name, ignore_errors=True)
        judged = Judged.read(judgements)
        windows = {
            name: schemas.read(traffic / f"{name}.parquet", schemas.TRAFFIC, schemas.PAIR_COLUMNS)
            for name in ("reference", "current")
        }
        anchor_is_champion = bool(anchor) and anchor == champion
        versions = {"champion": champion, "anchor": "" if anchor_is_champion else anchor}
        # The students stay loaded for the latency. The teacher, possibly fifty times as large, does not.
        students = {"student": Scorer.load(student, compute)}
        for name, version in versions.items():
            if version:
                students[name] = _load_version(registry, name, version, compute)
        traffic_pairs = windows["reference"].num_rows + windows["current"].num_rows * (2 if champion else 1)
        counter = progress.Counter("evaluate", (1 + len(students)) * len(judged.query) + traffic_pairs, "pairs")

        systems = score_baselines(judged, config)
        systems["teacher"] = score_judged(Scorer.load(teacher, compute), judged, counter)
        systems |= {name: score_judged(scorer, judged, counter) for name, scorer in students.items()}
        if anchor_is_champion:
            systems["anchor"] = systems["champion"]
        results, by_query = compare_systems(judged, systems, config)

        for name, window in windows.items():
            _write_traffic_scores(output, name, students["student"], window, counter)
        if champion:
            _write_traffic_scores(output, "champion_current", students["champion"], windows["current"], counter)
        with progress.timed("evaluate", "latency measured"):
            results["latency"] = measure_latency(
                {name: scorer.score for name, scorer in students.items()}, judged, config.latency_pairs
            )
            results["protocol"]["latency_pairs"] = config.latency_pairs
            if anchor_is_champion:
                results["latency"]["anchor"] = results["latency"]["champion"]

        outputs.write_per_query(output / "per_query.parquet", judged, by_query)
        outputs.write_pair_scores(output / "pair_scores.parquet", judged, systems)
        outputs.write_trec(output, judged, systems)
        artifacts.write_json(output / "metrics.json", results)
        artifacts.seal(output)
        evaluation = _student_evaluation(results["systems"])
        record.facts.update(evaluation._asdict(), runtime=students["student"].backend.describe())
        record.facts.update({name: results["protocol"][name] for name in ("pairs", "queries", "ranked_queries")})
        _log_metrics(results)
    return evaluation


def _load_version(registry: Registry, name: str, version: str, compute: Compute) -> Scorer:
    try:
        return Scorer.load(registries.connect(registry).fetch(version) / "student", compute)
    except InputError as error:
        raise InputError(f"the {name} {version} of registry {registry.uri} cannot be loaded: {error}") from None


def _write_traffic_scores(output: Path, name: str, scorer: Scorer, window: pa.Table, counter: progress.Counter) -> None:
    probability = scorer.estimate(scorer.score(window, counter))
    scores = pa.table({"score": pa.array(probability.astype(np.float32))})
    schemas.write(scores, output / "traffic_scores" / f"{name}.parquet", schemas.TRAFFIC_SCORES)


def _student_evaluation(figures: dict[str, dict[str, Any]]) -> Evaluation:
    ndcg = figures["student"]["ndcg_at_10"]
    return Evaluation(ndcg, ndcg - figures["bm25"]["ndcg_at_10"])


def _log_metrics(results: dict[str, Any]) -> None:
    queries = results["protocol"]["ranked_queries"]
    for name, values in results["systems"].items():
        line = ", ".join(f"{metric} {values[metric]:.4f}" for metric in ("ndcg_at_10", "pair_accuracy"))
        progress.log_event("evaluate", "note", f"{name}: {line} ({queries} queries)")
