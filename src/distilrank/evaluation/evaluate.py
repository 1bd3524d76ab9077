"""The `evaluate` stage: every system on the same judged test rows, compared query by query."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

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
    """The student's figures that the pipeline passes on."""

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
    """Measure random order, BM25, teacher, student, champion and anchor on the test split; score the traffic samples.

    Args:
        config: the protocol's free choices.
        compute: device and precision.
        registry: where the champion is fetched from.
        judgements: folder with `test.parquet` and `protocol.json`.
        traffic: folder with `reference.parquet` and `current.parquet`.
        teacher: model folder.
        student: model folder.
        champion: version id, or empty: there is none.
        anchor: likewise; where it is the champion, the system `anchor` is the champion's scores again.
        output: folder for `metrics.json`, `per_query.parquet`, `pair_scores.parquet`, `qrels.txt`, `runs/` and
            `traffic_scores/`.

    Raises:
        InputError: an input is missing or damaged, the champion or the anchor cannot be loaded, the test split has
            nothing to rank, or a slice is asked for by a column that there is not.
        RunStopped: a model gives scores that are not numbers.
    """
    inputs = {"judgements": judgements, "traffic": traffic, "teacher": teacher, "student": student}
    with artifacts.stage("evaluate", output, config=config, inputs=inputs) as record:
        record.inputs |= {
            **{name: artifacts.verify(folder) for name, folder in inputs.items()},
            "champion": champion,
            "anchor": anchor,
        }
        slices.require(config.slices)
        for name in ("runs", "traffic_scores"):  # an earlier attempt may have had a champion
            shutil.rmtree(output / name, ignore_errors=True)
        judged = Judged.read(judgements)
        windows = {
            name: schemas.read(traffic / f"{name}.parquet", schemas.TRAFFIC, schemas.PAIR_COLUMNS)
            for name in ("reference", "current")
        }
        versions = {"champion": champion, "anchor": "" if anchor == champion else anchor}
        # All but the teacher, which may be fifty times as large, are kept for the latency.
        shipped = {"student": Scorer.load(student, compute)}
        shipped |= {
            name: _of_version(registry, name, version, compute) for name, version in versions.items() if version
        }
        sampled = windows["reference"].num_rows + windows["current"].num_rows * (2 if champion else 1)
        counter = progress.Counter("evaluate", (1 + len(shipped)) * len(judged.query) + sampled, "pairs")

        systems = score_baselines(judged, config)
        systems["teacher"] = score_judged(Scorer.load(teacher, compute), judged, counter)
        systems |= {name: score_judged(scorer, judged, counter) for name, scorer in shipped.items()}
        if anchor and anchor == champion:
            systems["anchor"] = systems["champion"]
        results, by_query = compare_systems(judged, systems, config)

        for name, window in windows.items():
            _write_traffic(output, name, shipped["student"], window, counter)
        if champion:
            _write_traffic(output, "champion_current", shipped["champion"], windows["current"], counter)
        with progress.timed("evaluate", "latency measured"):
            results["latency"] = measure_latency(
                {name: scorer.score for name, scorer in shipped.items()}, judged, config.latency_pairs
            )
            results["protocol"]["latency_pairs"] = config.latency_pairs
            if anchor and anchor == champion:
                results["latency"]["anchor"] = results["latency"]["champion"]

        outputs.write_per_query(output / "per_query.parquet", judged, by_query)
        outputs.write_pair_scores(output / "pair_scores.parquet", judged, systems)
        outputs.write_trec(output, judged, systems)
        artifacts.write_json(output / "metrics.json", results)
        artifacts.seal(output)
        figures = results["systems"]
        evaluation = Evaluation(
            figures["student"]["ndcg_at_10"], figures["student"]["ndcg_at_10"] - figures["bm25"]["ndcg_at_10"]
        )
        record.facts.update(evaluation._asdict(), runtime=shipped["student"].backend.describe())
        record.facts.update({name: results["protocol"][name] for name in ("pairs", "queries", "ranked_queries")})
        for name, values in figures.items():
            line = (f"{metric} {values[metric]:.4f}" for metric in ("ndcg_at_10", "pair_accuracy"))
            progress.log_event("evaluate", "note", f"{name}: {', '.join(line)} ({len(judged.ranked)} queries)")
    return evaluation


def _of_version(registry: Registry, name: str, version: str, compute: Compute) -> Scorer:
    try:
        return Scorer.load(registries.connect(registry).fetch(version) / "student", compute)
    except InputError as error:
        raise InputError(f"the {name} {version} of registry {registry.uri} cannot be loaded: {error}") from None


def _write_traffic(output: Path, name: str, scorer: Scorer, window: pa.Table, counter: progress.Counter) -> None:
    probability = scorer.estimate(scorer.score(window, counter))
    scores = pa.table({"score": pa.array(probability.astype(np.float32))})
    schemas.write(scores, output / "traffic_scores" / f"{name}.parquet", schemas.TRAFFIC_SCORES)
