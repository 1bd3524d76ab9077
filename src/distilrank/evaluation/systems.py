"""Systems that rank the same judged rows, measured and compared query by query."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distilrank.config import Evaluate
from distilrank.core import progress
from distilrank.core.errors import RunStopped
from distilrank.evaluation import agreement, examples, metrics, significance, slices
from distilrank.evaluation.judged import Judged, System
from distilrank.modeling.scorer import Scorer

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


def score_baselines(judged: Judged, config: Evaluate) -> dict[str, System]:
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
