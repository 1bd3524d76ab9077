"""What the champion says of the newest traffic, and where its teacher is at hand, how far the two are apart.

A student is as good as its teacher where it has learned from it; where traffic is new to it, they part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distilrank import registry as registries
from distilrank.config import Compute, Monitor, Registry
from distilrank.core import artifacts, progress, schemas
from distilrank.modeling.scorer import Scorer

SCORES, DISAGREEMENT = "scores.parquet", "disagreement.json"
RESAMPLES, CONFIDENCE = 2000, 0.95
EXAMPLES = 10


def score(config: Monitor, compute: Compute, registry: Registry, *, traffic: Path, champion: str, output: Path) -> None:
    """Score the newest traffic by the champion, and a sample of old and new traffic by its teacher.

    Args:
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
        scores = _probability(student, newest)
        schemas.write(pa.table({"score": pa.array(scores)}), output / SCORES, schemas.TRAFFIC_SCORES)
        if config.teacher:
            folder = Path(config.teacher)
            before = version / "traffic" / "reference.parquet"
            windows = {
                "reference": schemas.read(before, schemas.TRAFFIC, schemas.PAIR_COLUMNS),
                "newest": newest,
            }
            record.inputs["teacher"] = artifacts.verify(folder)
            found = _disagree(config, student, Scorer.load(folder, compute), windows)
            artifacts.write_json(output / DISAGREEMENT, found)
            progress.log_event("score", "note", told(found))
        artifacts.seal(output)
        record.facts.update(rows=len(scores))


def _probability(scorer: Scorer, table: pa.Table) -> np.ndarray:
    return scorer.estimate(scorer.score(table)).astype(np.float32)


# Teacher and champion ---------------------------------------------------------------------------------------------


def _disagree(config: Monitor, student: Scorer, teacher: Scorer, windows: dict[str, pa.Table]) -> dict[str, Any]:
    """How far both models are apart on a sample of each window, and by how much that rose."""
    rng = np.random.default_rng(config.seed)
    found: dict[str, Any] = {}
    draws = {}
    for name, window in windows.items():
        rows = np.sort(rng.choice(len(window), min(config.pairs, len(window)), replace=False))
        table = window.take(pa.array(rows))
        said = {"teacher": _probability(teacher, table), "student": _probability(student, table)}
        gap = np.abs(said["teacher"] - said["student"]).astype(np.float64)
        draws[name] = _resampled(table["query_id"].to_pylist(), gap, rng)
        found[name] = {"pairs": len(rows), "mean": float(gap.mean())}
        if name == "newest":
            texts = table.select(["query", "title"]).to_pylist()
            found["examples"] = [
                {**texts[row], **{model: float(values[row]) for model, values in said.items()}}
                for row in np.argsort(-gap, kind="stable")[:EXAMPLES].tolist()
            ]
    rise = draws["newest"] - draws["reference"]
    low, high = np.quantile(rise, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    found["rise"] = found["newest"]["mean"] - found["reference"]["mean"]
    return found | {"ci_low": float(low), "ci_high": float(high), "confidence": CONFIDENCE}


def _resampled(query_ids: list[str], gap: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of `gap` over resamples of whole queries, shape (RESAMPLES,)."""
    query = np.unique(query_ids, return_inverse=True)[1]
    sums, counts = np.bincount(query, gap), np.bincount(query)
    times = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), RESAMPLES)
    return (times @ sums) / (times @ counts)


def told(found: dict[str, Any]) -> str:
    """The content of `disagreement.json` as a sentence."""
    newest, reference = found["newest"], found["reference"]
    return (
        f"teacher and champion are {newest['mean']:.3f} apart on {newest['pairs']} impressions of the newest traffic, "
        f"{reference['mean']:.3f} when it was promoted; the difference is {found['rise']:+.3f}, "
        f"{100 * found['confidence']:g} % interval [{found['ci_low']:+.3f}, {found['ci_high']:+.3f}]"
    )
