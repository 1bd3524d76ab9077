"""The `evaluate` stage: every system on the same judged test rows, compared query by query.

The rows are in `judged`, the measures in `measures`, how sure a difference is in `significance`, parts of the queries
in `slices`, all of this package.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from distilrank import registry as registries
from distilrank.config import Compute, Evaluate, Registry
from distilrank.core import artifacts, progress, schemas
from distilrank.core.errors import InputError, RunStopped
from distilrank.evaluation import agreement, examples, metrics, significance, slices, trec
from distilrank.evaluation.judged import Judged, System
from distilrank.evaluation.metrics import mean_ndcg
from distilrank.modeling.scorer import Scorer

__all__ = [
    "Evaluation",
    "Judged",
    "System",
    "baselines",
    "compare_systems",
    "evaluate",
    "latency",
    "mean_ndcg",
    "score_judged",
    "write_per_query",
    "write_trec",
]

COMPARISONS = (
    ("student", "random"),
    ("student", "bm25"),
    ("student", "teacher"),
    ("student", "champion"),
    ("student", "anchor"),
    ("teacher", "bm25"),
)
SLICED = (("student", "bm25"), ("student", "champion"), ("student", "anchor"))
ACROSS = ("roc_auc", "pr_auc")
PRECISION = 0.95
HISTOGRAM_BINS = 20
REQUEST_PRODUCTS = 32  # most products that one timed request scores

PROTOCOL = {
    "evaluated": "judged products of the test queries; the split is by query",
    "gain": "linear, in whole hundredths (the grades of qrels.txt); the soft target unless the source has its own",
    "relevant": "grade of at least relevant_grade (mrr, roc_auc, pr_auc, recall_at_precision_95)",
    "left_out": "queries whose products all have the same gain: not in ndcg, mrr, pair_accuracy, qrels.txt and runs/",
    "ties": "scores are compared as 32-bit floats; of equal ones the product id that is larger as a word of ASCII"
    " (percent-encoded where needed) comes first, as in trec_eval; in pair_accuracy equal scores count one half",
    "random": "one seeded draw",
    "calibration": "ece: equal-width bins of the calibrated probability; ece and brier: against soft targets",
    "significance": "per-query measures: paired bootstrap by query, its interval as `interval` says, p_value by"
    " sign-flip randomization; roc_auc, pr_auc: percentile bootstrap of whole queries, p_value from the same bootstrap;"
    " two-sided",
    "slices": "p_holm: adjusted for all slices of one baseline and metric (Holm); a query's value of a product's column"
    " is the most frequent one among its relevant products",
    "champion": "scored again on the same rows in the same run; the anchor too",
    "latency": "one query's products a request, tokenizing included, after one pass to warm up",
}


class Evaluation(NamedTuple):
    """The student's figures that the pipeline passes on."""

    ndcg_at_10: float
    lift_over_bm25: float


# Measuring --------------------------------------------------------------------------------------------------------


def baselines(judged: Judged, config: Evaluate) -> dict[str, System]:
    """The two systems that every model must beat."""
    draw = np.random.default_rng(config.seed).permutation(len(judged.query))
    return {
        "random": System(draw.astype(np.float32)),
        "bm25": System(judged.table.column("bm25").to_numpy()),
    }


def score_judged(scorer: Scorer, judged: Judged, counter: progress.Counter | None = None) -> System:
    """What a model says of the judged rows."""
    logits = scorer.score(judged.table, counter)
    return System(logits, scorer.probability(logits))


def compare_systems(
    judged: Judged,
    systems: Mapping[str, System],
    config: Evaluate,
    comparisons: Sequence[tuple[str, str]] = COMPARISONS,
    sliced: Sequence[tuple[str, str]] = SLICED,
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Measure systems on the same rows and compare them.

    Args:
        judged: the test rows.
        systems: by name; comparisons whose systems are not all here are left out, and so is one of a measure that has
            no value.
        config: resamples, confidence, slices, bins, seed.
        comparisons: pairs of names, a system and its baseline.
        sliced: those that are compared on every slice too.

    Returns:
        `metrics.json` without its latency; and by system the per-query measures of the ranked queries, each of shape
        (ranked,).

    Raises:
        InputError: a slice is asked for by a column that there is not.
        RunStopped: a score is not a finite number.
    """
    slices.require(config.slices)
    for name, system in systems.items():
        broken = np.flatnonzero(~np.isfinite(system.score))
        if len(broken):
            row = judged.table.slice(int(broken[0]), 1).to_pylist()[0]
            raise RunStopped(
                f"{name}: score is {system.score[broken[0]]} for query {row['query']!r}, product {row['product_id']!r}"
                f" ({len(broken)} of {len(system.score)} rows are not finite); the model is broken"
            )
    by_query = {name: _per_query(judged, system) for name, system in systems.items()}
    diagrams = {
        name: metrics.reliability(system.probability, judged.target, config.bins)
        for name, system in systems.items()
        if system.probability is not None
    }
    figures = {}
    for name, system in systems.items():
        counts = metrics.ThresholdCurve(judged.relevant, system.score).counts()
        figures[name] = {
            **{metric: float(values.mean()) for metric, values in by_query[name].items()},
            "roc_auc": _known(metrics.roc_auc(*counts)),
            "pr_auc": _known(metrics.pr_auc(*counts)),
            "recall_at_precision_95": _known(metrics.recall_at_precision(*counts, PRECISION)),
            "ece": None if system.probability is None else metrics.ece(diagrams[name]),
            "brier": None if system.probability is None else metrics.brier(system.probability, judged.target),
        }
    versus = [pair for pair in comparisons if set(pair) <= set(systems)]
    split = judged.protocol.get("split", {})
    results = {
        "protocol": {
            **judged.protocol,
            **PROTOCOL,
            "relevant_grade": judged.relevant_grade,
            "pairs": len(judged.query),
            "relevant_pairs": int(judged.relevant.sum()),
            "queries": len(judged.query_ids),
            "ranked_queries": len(judged.ranked),
            "left_out_queries": len(judged.query_ids) - len(judged.ranked),
            "ranked_pairs": len(judged.rows),
            "seed": config.seed,
            "bootstrap": config.bootstrap,
            "cluster_bootstrap": config.cluster_bootstrap,
            "confidence": config.confidence,
            "interval": config.interval,
            "bins": config.bins,
            "slices": list(config.slices),
            "slice_queries": config.slice_queries,
        },
        "systems": figures,
        "comparisons": _within(by_query, versus, config) + _across(judged, systems, figures, versus, config),
        "slices": slices.measure(judged, by_query, [pair for pair in sliced if set(pair) <= set(systems)], config),
        "agreement": agreement.agreement(judged, systems["teacher"], systems["student"])
        if {"teacher", "student"} <= set(systems)
        else None,
        "examples": examples.extremes(
            judged, systems, by_query, "student", "champion" if "champion" in systems else "bm25"
        )
        if {"student", "bm25"} <= set(systems)
        else None,
        "distribution": {name: agreement.distribution(judged, system) for name, system in systems.items()},
        "test_set": {
            "digest": judged.digest,
            "sketch": judged.sketch,
            "queries": len(judged.query_ids),
            "pairs": len(judged.query),
            "judgements": judged.judgements,
            "draw": split.get("draw", 0),
        },
        "reliability": diagrams,
        "scores": {
            name: _histogram(system.probability) for name, system in systems.items() if system.probability is not None
        },
    }
    return results, by_query


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _per_query(judged: Judged, system: System) -> dict[str, np.ndarray]:
    rows = judged.rows
    query = np.searchsorted(judged.ranked, judged.query[rows])
    return metrics.per_query(query, judged.grade[rows], judged.relevant[rows], system.score[rows], judged.tie[rows])


def _comparison(system: str, baseline: str, metric: str, delta: float, sure: tuple, queries: int) -> dict[str, Any]:
    low, high, p_value = (float(value) for value in sure)
    return {
        "system": system,
        "baseline": baseline,
        "metric": metric,
        "delta": delta,
        "ci_low": low,
        "ci_high": high,
        "p_value": p_value,
        "queries": queries,
    }


def _within(
    by_query: Mapping[str, Mapping[str, np.ndarray]], versus: list[tuple[str, str]], config: Evaluate
) -> list[dict[str, Any]]:
    keys = [(system, baseline, metric) for system, baseline in versus for metric in metrics.PER_QUERY]
    if not keys:
        return []
    deltas = np.stack([by_query[one][metric] - by_query[other][metric] for one, other, metric in keys], axis=1)
    certainty = significance.paired_interval(
        deltas,
        resamples=config.bootstrap,
        confidence=config.confidence,
        rng=np.random.default_rng([config.seed, 1]),
        interval=config.interval,
    )
    outcomes = significance.outcomes(deltas)
    return [
        _comparison(*key, float(delta), sure, len(deltas))
        | dict(zip(("wins", "ties", "losses"), map(int, counts), strict=True))
        for key, delta, sure, counts in zip(
            keys, deltas.mean(axis=0), zip(*certainty, strict=True), zip(*outcomes, strict=True), strict=True
        )
    ]


def _across(
    judged: Judged,
    systems: Mapping[str, System],
    figures: Mapping[str, Mapping[str, float | None]],
    versus: list[tuple[str, str]],
    config: Evaluate,
) -> list[dict[str, Any]]:
    keys = [
        (system, baseline, metric)
        for system, baseline in versus
        for metric in ACROSS
        if figures[system][metric] is not None
    ]
    if not keys:
        return []
    areas = {
        name: metrics.BootstrapAuc(judged.relevant, systems[name].score, judged.query)
        for name in dict.fromkeys(name for pair in versus for name in pair)
    }

    def differences(drawn: np.ndarray) -> np.ndarray:
        found = {name: dict(zip(ACROSS, one.measure(drawn), strict=True)) for name, one in areas.items()}
        return np.array([found[one][metric] - found[other][metric] for one, other, metric in keys])

    queries = len(judged.query_ids)
    certainty = significance.cluster_interval(
        differences,
        queries,
        resamples=config.cluster_bootstrap,
        confidence=config.confidence,
        rng=np.random.default_rng([config.seed, 2]),
    )
    deltas = differences(np.ones(queries))
    return [
        _comparison(*key, float(delta), sure, queries)
        for key, delta, sure in zip(keys, deltas, zip(*certainty, strict=True), strict=True)
    ]


def _histogram(probability: np.ndarray) -> dict[str, Any]:
    counts, edges = np.histogram(probability, HISTOGRAM_BINS, (0, 1))
    return {"edges": [round(edge, 6) for edge in edges.tolist()], "counts": counts.tolist()}


# Timing -----------------------------------------------------------------------------------------------------------


def latency(scores: Mapping[str, Callable[[pa.Table], Any]], judged: Judged, pairs: int) -> dict[str, dict[str, float]]:
    """Time systems on requests of one query's products each, in turn on the same request, each first as often.

    Args:
        scores: what scores the rows of a request, by system.
        judged: where the requests come from.
        pairs: as many requests as it takes for this many pairs, or all there are.

    Returns:
        By system: pairs_per_second, p50_ms, p95_ms and p99_ms of a request, and pairs_per_request (mean).
    """
    order = np.argsort(judged.query, kind="stable")
    lists = np.split(order, np.flatnonzero(np.diff(judged.query[order])) + 1)
    requests: list[pa.Table] = []
    for rows in lists:
        if sum(request.num_rows for request in requests) >= pairs:
            break
        requests.append(judged.table.take(pa.array(rows[:REQUEST_PRODUCTS])))
    seconds: dict[str, list[float]] = {name: [] for name in scores}
    for score in scores.values():
        for request in requests:  # a new shape costs its first pass extra, so warm up with all of them
            score(request)
    names = list(scores)
    for number, request in enumerate(requests):
        first = number % len(names)  # whoever comes first finds colder caches
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            scores[name](request)
            seconds[name].append(time.perf_counter() - started)
    total = sum(request.num_rows for request in requests)
    return {
        name: {
            "pairs_per_second": total / max(sum(times), 1e-9),
            "p50_ms": float(np.quantile(times, 0.5)) * 1e3,
            "p95_ms": float(np.quantile(times, 0.95)) * 1e3,
            "p99_ms": float(np.quantile(times, 0.99)) * 1e3,
            "pairs_per_request": total / len(requests),
        }
        for name, times in seconds.items()
    }


# The stage --------------------------------------------------------------------------------------------------------


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

        systems = baselines(judged, config)
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
            results["latency"] = latency(
                {name: scorer.score for name, scorer in shipped.items()}, judged, config.latency_pairs
            )
            results["protocol"]["latency_pairs"] = config.latency_pairs
            if anchor and anchor == champion:
                results["latency"]["anchor"] = results["latency"]["champion"]

        write_per_query(output / "per_query.parquet", judged, by_query)
        _write_pair_scores(output / "pair_scores.parquet", judged, systems)
        write_trec(output, judged, systems)
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


def write_per_query(path: Path, judged: Judged, by_query: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write each system's measures of the ranked queries, as records.PER_QUERY."""
    ranked = judged.ranked
    described = {
        "query_id": judged.query_ids[ranked],
        "query": judged.per_query("query")[ranked],
        "stratum": judged.per_query("stratum")[ranked],
        "pairs": np.bincount(judged.query)[ranked].astype(np.int32),
    }
    parts = [pa.table({"system": [name] * len(ranked), **described, **values}) for name, values in by_query.items()]
    schemas.write(pa.concat_tables(parts), path, schemas.PER_QUERY)


def _write_pair_scores(path: Path, judged: Judged, systems: Mapping[str, System]) -> None:
    same = judged.table.select(["query_id", "product_id", "target"])
    parts = []
    for name, system in systems.items():
        none = np.full(same.num_rows, np.nan) if system.probability is None else system.probability
        part = same.append_column("system", pa.array([name] * same.num_rows))
        part = part.append_column("score", pa.array(system.score, pa.float32()))
        parts.append(part.append_column("probability", pa.array(none, pa.float32(), from_pandas=True)))
    schemas.write(pa.concat_tables(parts), path, schemas.PAIR_SCORES)


def write_trec(output: Path, judged: Judged, systems: Mapping[str, System]) -> None:
    """Write the ranked queries to `output/qrels.txt`, and each system's order of them to `output/runs/SYSTEM.run`."""
    rows = judged.rows
    query_ids, product_ids = judged.query_ids[judged.query[rows]].tolist(), [judged.product_ids[row] for row in rows]
    trec.write_qrels(output / "qrels.txt", query_ids, product_ids, judged.grade[rows])
    for name, system in systems.items():
        ranks = metrics.ranks(judged.query[rows], system.score[rows], judged.tie[rows])
        trec.write_run(output / "runs" / f"{name}.run", name, query_ids, product_ids, ranks + 1, system.score[rows])
