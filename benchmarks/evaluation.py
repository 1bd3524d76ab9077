"""Time and memory of the evaluation of a large test set, compared with straightforward loops.

`python -m benchmarks.evaluation [--quick] [--work DIR]`; see README.md. Judgements and scores are generated from a
seed. The baseline draws resamples one by one with numpy, and computes areas by scikit-learn. It makes fewer of them,
from the same draws, and its time is scaled up.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks import machine
from benchmarks.result import bar, report, say
from distilrank.config import Evaluate
from distilrank.core import artifacts, schemas
from distilrank.evaluation import metrics, outputs, significance
from distilrank.evaluation.judged import Judged, System
from distilrank.evaluation.systems import COMPARISONS, compare_systems, score_baselines

SEED = 29
WORDS = "red blue leather cotton sofa chair table lamp phone charger drill shoe dress shirt kids steel wood".split()
TYPES = 40
LEVELS = np.array([0, 0, 0, 0.25, 0.5, 1], np.float32)
NOISE = {"teacher": 0.35, "student": 0.4}
EQUAL = 1e-9


@dataclass(frozen=True)
class Scale:
    """Judged pairs and queries, resamples of ours, and those that the plain version makes."""

    pairs: int = 500_000
    queries: int = 50_000
    bootstrap: int = 10_000
    cluster_bootstrap: int = 500
    plain_resamples: int = 150
    plain_clusters: int = 4

    @property
    def config(self) -> Evaluate:
        """As a run has it, but for the resamples."""
        return Evaluate(bootstrap=self.bootstrap, cluster_bootstrap=self.cluster_bootstrap)


QUICK = Scale(pairs=5_000, queries=500, bootstrap=500, cluster_bootstrap=100, plain_resamples=100, plain_clusters=4)


# Data -------------------------------------------------------------------------------------------------------------


def write(folder: Path, scale: Scale) -> None:
    """A `judgements` folder of `scale`, and `scores.npy` of the models; seeded."""
    rng = np.random.default_rng(SEED)
    query = np.sort(rng.integers(scale.queries, size=scale.pairs - scale.queries))
    query = np.sort(np.append(query, np.arange(scale.queries)))
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 8))) + f" {number}" for number in range(scale.queries)]
    product = np.arange(scale.pairs)
    target = LEVELS[rng.integers(len(LEVELS), size=scale.pairs)]
    strata = np.array(["head", "torso", "tail"], object)[rng.choice(3, scale.queries, p=[0.1, 0.3, 0.6])]
    # A query's products are of one type, or of two: types have as many queries as they have in a shop.
    types = np.minimum(rng.zipf(1.5, scale.queries), TYPES)
    type_of = np.where(rng.random(scale.pairs) < 0.8, types[query], rng.integers(1, TYPES + 1, scale.pairs))
    columns: dict[str, Any] = {
        "query_id": [f"{item:016x}" for item in query],
        "query": np.array(texts, object)[query],
        "product_id": [f"p{item % (scale.pairs // 2):07d}" for item in product],
        **dict.fromkeys(schemas.PRODUCT_FIELDS, pa.nulls(scale.pairs, pa.string())),
        "title": np.array([f"{' '.join(rng.choice(WORDS, 4))}" for _ in range(1000)], object)[product % 1000],
        "product_type": [f"type {item}" for item in type_of],
        "target": target,
        "gain": target,
        "raters": np.ones(scale.pairs, np.int32),
        "stratum": strata[query],
        "bm25": (target + rng.normal(0, 1, scale.pairs)).astype(np.float32),
    }
    missing = {field.name: pa.nulls(scale.pairs, field.type) for field in schemas.JUDGED if field.name not in columns}
    schemas.write(pa.table(columns | missing), folder / "test.parquet", schemas.JUDGED)
    artifacts.write_json(folder / "protocol.json", {"source": "generated", "relevant_from": 0.5, "split": {}})
    models = [(target + rng.normal(0, noise, scale.pairs)).astype(np.float32) for noise in NOISE.values()]
    np.save(folder / "scores.npy", np.stack(models))


def _systems(folder: Path, judged: Judged, config: Evaluate) -> dict[str, System]:
    scores = dict(zip(NOISE, np.load(folder / "scores.npy"), strict=True))
    models = {name: System(score, 1 / (1 + np.exp(-score))) for name, score in scores.items()}
    return score_baselines(judged, config) | models


# Contenders -------------------------------------------------------------------------------------------------------


def ours(folder: str, values: dict[str, int]) -> dict[str, Any]:
    """Read, measure, compare and write: all of the stage but the models' scoring. Seconds by part."""
    scale, source = Scale(**values), Path(folder)
    marks = [time.perf_counter()]
    judged = Judged.read(source)
    systems = _systems(source, judged, scale.config)
    marks.append(time.perf_counter())
    results, by_query = compare_systems(judged, systems, scale.config)
    marks.append(time.perf_counter())
    outputs.write_per_query(source / "out" / "per_query.parquet", judged, by_query)
    outputs.write_trec(source / "out", judged, systems)
    artifacts.write_json(source / "out" / "metrics.json", results)
    marks.append(time.perf_counter())
    return {
        "seconds": dict(zip(("read", "compare", "write"), np.diff(marks).round(2).tolist(), strict=True)),
        "ranked_queries": results["protocol"]["ranked_queries"],
        "slices": len(results["slices"]["rows"]),
        "comparisons": len(results["comparisons"]),
    }


def plain(folder: str, values: dict[str, int]) -> dict[str, Any]:
    """Loops over resamples with the draws that ours makes; seconds of each kind, and the largest difference to ours."""
    scale, source = Scale(**values), Path(folder)
    config = scale.config
    judged = Judged.read(source)
    systems = _systems(source, judged, config)
    rows = judged.rows
    query = np.searchsorted(judged.ranked, judged.query[rows])
    by_query = {
        name: metrics.per_query(query, judged.grade[rows], judged.relevant[rows], item.score[rows], judged.tie[rows])
        for name, item in systems.items()
    }
    versus = [pair for pair in COMPARISONS if set(pair) <= set(systems)]
    deltas = np.stack(
        [by_query[item][metric] - by_query[other][metric] for item, other in versus for metric in metrics.PER_QUERY],
        axis=1,
    )
    seconds: dict[str, float] = {}
    low, high, p_value = _plain_paired(deltas, scale.plain_resamples, config.confidence, seconds)
    sure = significance.paired_interval(
        deltas,
        resamples=scale.plain_resamples,
        confidence=config.confidence,
        rng=np.random.default_rng([config.seed, 1]),
    )
    paired = max(np.abs(mine - theirs).max() for mine, theirs in zip(sure, (low, high, p_value), strict=True))

    areas = {name: metrics.BootstrapAuc(judged.relevant, item.score, judged.query) for name, item in systems.items()}
    queries, clusters = len(judged.query_ids), 0.0
    generator = np.random.default_rng([config.seed, 2])
    began = time.perf_counter()
    differences = []
    for _ in range(scale.plain_clusters):
        drawn = np.bincount(generator.integers(queries, size=queries), minlength=queries)
        weight = drawn[judged.query]
        differences.append(
            {
                name: [
                    area(judged.relevant, item.score, sample_weight=weight)
                    for area in (roc_auc_score, average_precision_score)
                ]
                for name, item in systems.items()
            }
        )
    seconds["clustered"] = time.perf_counter() - began
    generator = np.random.default_rng([config.seed, 2])
    for expected in differences:
        drawn = np.bincount(generator.integers(queries, size=queries), minlength=queries)
        for name, item in areas.items():
            clusters = max(clusters, np.abs(np.array(item.compute(drawn)) - expected[name]).max())
    return {
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "largest_difference": {"paired": float(paired), "areas": float(clusters)},
    }


def _plain_paired(
    deltas: np.ndarray, resamples: int, confidence: float, seconds: dict[str, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    queries = len(deltas)
    counts = [min(significance.GROUP, resamples - start) for start in range(0, resamples, significance.GROUP)]
    parent = np.random.default_rng([Evaluate().seed, 1])
    began = time.perf_counter()
    means = []
    for generator, count in zip(parent.spawn(len(counts)), counts, strict=True):
        for _ in range(count):
            means.append(deltas[generator.integers(queries, size=queries, dtype=np.int32)].mean(axis=0))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    seconds["bootstrap"] = time.perf_counter() - began
    began = time.perf_counter()
    observed, as_large = np.abs(deltas.mean(axis=0)), np.zeros(deltas.shape[1])
    for generator, count in zip(parent.spawn(len(counts)), counts, strict=True):
        for _ in range(count):
            bits = generator.integers(2**32, size=-(-queries // 32), dtype=np.uint32).view(np.uint8)
            signs = 2.0 * np.unpackbits(bits, count=queries) - 1
            as_large += np.abs((signs[:, None] * deltas).mean(axis=0)) >= observed - significance.TIE
    seconds["sign_flip"] = time.perf_counter() - began
    return low, high, (1 + as_large) / (1 + resamples)


# All of it --------------------------------------------------------------------------------------------------------


def run(scale: Scale, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures and bars."""
    if not (folder / "scores.npy").exists():
        say(f"making {scale.pairs:,} judged pairs of {scale.queries:,} queries")
        write(folder, scale)
    imports = ("distilrank.evaluation.evaluate", "sklearn.metrics")
    warm = (folder / "test.parquet", folder / "scores.npy")
    say(f"ours: {scale.bootstrap:,} resamples, {scale.cluster_bootstrap:,} of areas")
    measured = machine.measure(ours, str(folder), asdict(scale), scratch=folder, imports=imports, warm=warm)
    say(
        f"ours took {measured.seconds:.1f} s; baseline: {scale.plain_resamples:,} resamples, "
        f"{scale.plain_clusters} of areas"
    )
    other = machine.measure(plain, str(folder), asdict(scale), scratch=folder, imports=imports, warm=warm)
    seconds_by_part = other.result["seconds"]
    paired = (seconds_by_part["bootstrap"] + seconds_by_part["sign_flip"]) * scale.bootstrap / scale.plain_resamples
    clustered = seconds_by_part["clustered"] * scale.cluster_bootstrap / scale.plain_clusters
    figures = {
        "scale": asdict(scale),
        "ours": {
            **measured.result,
            "total_seconds": round(measured.seconds, 2),
            "cpu_seconds": round(measured.cpu_seconds, 2),
            "peak_gib": round(measured.peak_bytes / 2**30, 3),
        },
        "plain": {**other.result, "scaled_seconds": {"paired": round(paired, 1), "clustered": round(clustered, 1)}},
        "times_plain": round((paired + clustered) / measured.result["seconds"]["compare"], 1),
    }
    difference = max(other.result["largest_difference"].values())
    bars = [
        bar("evaluation_seconds", round(measured.seconds, 1), 90, measured.seconds <= 90),
        bar("evaluation_memory_gib", round(measured.peak_bytes / 2**30, 2), 2, measured.peak_bytes <= 2 * 2**30),
        bar("figures_differ", difference, EQUAL, difference <= EQUAL),
    ]
    return figures, bars


def main() -> int:
    """Print progress on standard error and one JSON line on standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: figures without meaning")
    parser.add_argument("--work", type=Path, help="keep the generated data here, and use what is there")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale()
    described = machine.describe(("numpy", "scipy", "scikit-learn", "pyarrow"))
    with tempfile.TemporaryDirectory(prefix="benchmark-evaluation-") as scratch, machine.output_to_stderr():
        folder = options.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        figures, bars = run(scale, folder)
    figures |= {"quick": options.quick}
    report("evaluation", described, figures, bars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
