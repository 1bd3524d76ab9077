"""The `score` stage of monitoring: the champion's scores on the newest traffic, and how far its teacher disagrees.

A student reproduces its teacher where it has learned from it. Where traffic is new to the student, the two diverge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distilrank import registry as registries
from distilrank.config import Compute, Monitor, Registry
from distilrank.core import artifacts, progress, schemas
from distilrank.evaluation.significance import cluster_bootstrap, tail_levels
from distilrank.modeling.scorer import Scorer
from distilrank.rendering.formatting import format_plain_interval

SCORES, DISAGREEMENT = "scores.parquet", "disagreement.json"
RESAMPLES, CONFIDENCE = 2000, 0.95
EXAMPLES = 10


def score_newest(
    config: Monitor, compute: Compute, registry: Registry, *, traffic: Path, champion: str, output: Path
) -> None:
    """Score the newest traffic with the champion and, where the teacher is configured, compare the two models.

    Args:
        config: the teacher's folder, the sample size and the seed.
        compute: device, precision and threads.
        registry: where the champion is fetched from.
        traffic: folder with `current.parquet`, the sample of the newest traffic.
        champion: version id.
        output: folder for `scores.parquet` and, with a teacher, `disagreement.json`.

    Raises:
        InputError: the champion, its teacher or the sample is missing or damaged.
        RunStopped: a score is not finite.
    """
    with artifacts.stage("score", output, config=config, inputs={"traffic": traffic}) as record:
        record.inputs |= {"traffic": artifacts.verify(traffic), "champion": champion}
        (output / DISAGREEMENT).unlink(missing_ok=True)
        version = registries.connect(registry).fetch(champion)
        newest = schemas.read(traffic / "current.parquet", schemas.TRAFFIC, schemas.PAIR_COLUMNS)
        student = Scorer.load(version / "student", compute)
        probability = _probability(student, newest)
        schemas.write(pa.table({"score": pa.array(probability)}), output / SCORES, schemas.TRAFFIC_SCORES)
        if config.teacher:
            folder = Path(config.teacher)
            reference = version / "traffic" / "reference.parquet"
            windows = {
                "reference": schemas.read(reference, schemas.TRAFFIC, schemas.PAIR_COLUMNS),
                "newest": newest,
            }
            record.inputs["teacher"] = artifacts.verify(folder)
            disagreement = _measure_disagreement(config, student, Scorer.load(folder, compute), windows)
            artifacts.write_json(output / DISAGREEMENT, disagreement)
            progress.log_event("score", "note", describe_disagreement(disagreement))
        artifacts.seal(output)
        record.facts.update(rows=len(probability))


def describe_disagreement(disagreement: dict[str, Any]) -> str:
    """Return the content of `disagreement.json` as one sentence."""
    newest, reference = disagreement["newest"], disagreement["reference"]
    return (
        f"teacher and champion differ by {newest['mean']:.3f} on {newest['pairs']} impressions of the newest traffic "
        f"and differed by {reference['mean']:.3f} when it was promoted; the rise is {disagreement['rise']:+.3f}, "
        f"{100 * disagreement['confidence']:g} % CI "
        f"{format_plain_interval(disagreement['ci_low'], disagreement['ci_high'], 3)}"
    )


def _probability(scorer: Scorer, table: pa.Table) -> np.ndarray:
    return scorer.estimate(scorer.score(table)).astype(np.float32)


def _measure_disagreement(
    config: Monitor, student: Scorer, teacher: Scorer, windows: dict[str, pa.Table]
) -> dict[str, Any]:
    """Mean absolute difference of the models' probabilities on a sample of each window, and how much it rose."""
    rng = np.random.default_rng(config.seed)
    disagreement: dict[str, Any] = {}
    resampled = {}
    for name, window in windows.items():
        rows = np.sort(rng.choice(len(window), min(config.pairs, len(window)), replace=False))
        sample = window.take(pa.array(rows))
        probabilities = {"teacher": _probability(teacher, sample), "student": _probability(student, sample)}
        gap = np.abs(probabilities["teacher"] - probabilities["student"]).astype(np.float64)
        resampled[name] = _resampled_means(sample["query_id"].to_pylist(), gap, rng)
        disagreement[name] = {"pairs": len(rows), "mean": float(gap.mean())}
        if name == "newest":
            texts = sample.select(["query", "title"]).to_pylist()
            disagreement["examples"] = [
                {**texts[row], **{model: float(values[row]) for model, values in probabilities.items()}}
                for row in np.argsort(-gap, kind="stable")[:EXAMPLES].tolist()
            ]
    low, high = np.quantile(resampled["newest"] - resampled["reference"], tail_levels(CONFIDENCE))
    disagreement["rise"] = disagreement["newest"]["mean"] - disagreement["reference"]["mean"]
    return disagreement | {"ci_low": float(low), "ci_high": float(high), "confidence": CONFIDENCE}


def _resampled_means(query_ids: list[str], gap: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mean of `gap` in each bootstrap resample of whole queries, shape (RESAMPLES,)."""
    query = np.unique(query_ids, return_inverse=True)[1]
    sums, rows = np.bincount(query, gap), np.bincount(query).astype(np.float64)
    return cluster_bootstrap(lambda counts: (counts @ sums) / (counts @ rows), len(rows), resamples=RESAMPLES, rng=rng)
