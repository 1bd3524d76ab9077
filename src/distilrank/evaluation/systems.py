"""Systems that rank the same judged rows: their metrics, and how they compare query by query."""

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
"""Pairs of a system and its baseline."""
SLICED_COMPARISONS = (("student", "bm25"), ("student", "champion"), ("student", "anchor"))
AUC_METRICS = ("roc_auc", "pr_auc")
MIN_PRECISION = 0.95
HISTOGRAM_BINS = 20

PROTOCOL = {
    "evaluated": "judged products of the test queries; the split is by query",
    "gain": "linear, in whole hundredths (the grades of qrels.txt); the soft target unless the source has its own",
    "relevant": "grade of at least relevant_grade (mrr, roc_auc, pr_auc, recall_at_precision_95)",
    "left_out": "queries whose products all have the same gain: not in ndcg, mrr, pair_accuracy, qrels.txt and runs/",
    "ties": "scores are compared as 32-bit floats; of equal scores the product id that is larger as an ASCII word"
    " (percent-encoded where needed) comes first, as in trec_eval; in pair_accuracy equal scores count one half",
    "random": "one seeded permutation",
    "calibration": "ece: equal-width bins of the calibrated probability; ece and brier: against soft targets",
    "significance": "per-query metrics: paired bootstrap by query, with the method that `interval` names, p_value by"
    " sign-flip randomization; roc_auc, pr_auc: percentile bootstrap of whole queries, p_value from the same bootstrap;"
    " two-sided",
    "slices": "p_holm: adjusted for all slices of one baseline and metric (Holm); a query's value of a product column"
    " is the most frequent one among its relevant products",
    "champion": "scored again on the same rows in the same run; so is the anchor",
    "latency": "requests of one query's products, tokenization included, after one warm-up pass",
}

PerQueryMetrics = Mapping[str, np.ndarray]


def score_baselines(judged: Judged, config: Evaluate) -> dict[str, System]:
    """Score the judged rows with the two baselines that every model must beat: random order and BM25."""
    permutation = np.random.default_rng(config.seed).permutation(len(judged.query))
    return {
        "random": System(permutation.astype(np.float32)),
        "bm25": System(judged.table.column("bm25").to_numpy()),
    }


def score_judged(scorer: Scorer, judged: Judged, counter: progress.Counter | None = None) -> System:
    """Score the judged rows with a model; `counter` counts the pairs of every batch."""
    logits = scorer.score(judged.table, counter)
    return System(logits, scorer.probability(logits))


def compare_systems(
    judged: Judged,
    systems: Mapping[str, System],
    config: Evaluate,
    comparisons: Sequence[tuple[str, str]] = COMPARISONS,
    sliced: Sequence[tuple[str, str]] = SLICED_COMPARISONS,
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Compute all metrics of systems on the same rows, and compare the systems.

    Args:
        judged: the test rows.
        systems: scores by system name.
        config: resamples, confidence, slices, bins, seed.
        comparisons: pairs of a system and its baseline. A pair is left out if `systems` lacks one of the two, and a
            metric if it has no value.
        sliced: the pairs that are compared on every slice too.

    Returns:
        The content of `metrics.json` without the latency; and, by system, the per-query metrics of the ranked queries,
        each of shape (ranked,).

    Raises:
        InputError: a slice column does not exist.
        RunStopped: a score is not a finite number.
    """
    slices.require_columns(config.slices)
    for name, system in systems.items():
        _require_finite(name, system, judged)
    by_query = {name: _per_query_metrics(judged, system) for name, system in systems.items()}
    calibrated = {name: system.probability for name, system in systems.items() if system.probability is not None}
    diagrams = {
        name: metrics.reliability(probability, judged.target, config.bins) for name, probability in calibrated.items()
    }
    figures = {
        name: _system_metrics(judged, system, by_query[name], diagrams.get(name)) for name, system in systems.items()
    }
    comparisons = [pair for pair in comparisons if set(pair) <= set(systems)]
    sliced = [pair for pair in sliced if set(pair) <= set(systems)]
    results = {
        "protocol": _describe_protocol(judged, config),
        "systems": figures,
        "comparisons": [
            *_compare_per_query(by_query, comparisons, config),
            *_compare_auc(judged, systems, figures, comparisons, config),
        ],
        "slices": slices.compare_slices(judged, by_query, sliced, config),
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
            "draw": judged.protocol.get("split", {}).get("draw", 0),
        },
        "reliability": diagrams,
        "scores": {name: _histogram(probability) for name, probability in calibrated.items()},
    }
    return results, by_query


def _require_finite(name: str, system: System, judged: Judged) -> None:
    broken = np.flatnonzero(~np.isfinite(system.score))
    if len(broken):
        row = judged.table.slice(int(broken[0]), 1).to_pylist()[0]
        raise RunStopped(
            f"{name}: score is {system.score[broken[0]]} for query {row['query']!r}, product {row['product_id']!r}"
            f" ({len(broken)} of {len(system.score)} rows are not finite); the model is broken"
        )


# Metrics of one system --------------------------------------------------------------------------------------------


def _per_query_metrics(judged: Judged, system: System) -> dict[str, np.ndarray]:
    rows = judged.rows
    query = np.searchsorted(judged.ranked, judged.query[rows])
    return metrics.per_query(query, judged.grade[rows], judged.relevant[rows], system.score[rows], judged.tie[rows])


def _system_metrics(
    judged: Judged, system: System, per_query: PerQueryMetrics, diagram: list[dict[str, Any]] | None
) -> dict[str, float | None]:
    """Compute all metrics of a system; None if one has no value or needs a probability that the system lacks."""
    counts = metrics.ThresholdCurve(judged.relevant, system.score).counts()
    return {
        **{metric: float(values.mean()) for metric, values in per_query.items()},
        "roc_auc": _none_if_nan(metrics.roc_auc(*counts)),
        "pr_auc": _none_if_nan(metrics.pr_auc(*counts)),
        "recall_at_precision_95": _none_if_nan(metrics.recall_at_precision(*counts, MIN_PRECISION)),
        "ece": None if diagram is None else metrics.ece(diagram),
        "brier": None if system.probability is None else metrics.brier(system.probability, judged.target),
    }


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _histogram(probability: np.ndarray) -> dict[str, Any]:
    counts, edges = np.histogram(probability, HISTOGRAM_BINS, (0, 1))
    return {"edges": [round(edge, 6) for edge in edges.tolist()], "counts": counts.tolist()}


def _describe_protocol(judged: Judged, config: Evaluate) -> dict[str, Any]:
    return {
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
    }


# Comparisons ------------------------------------------------------------------------------------------------------


def _compare_per_query(
    by_query: Mapping[str, PerQueryMetrics], comparisons: Sequence[tuple[str, str]], config: Evaluate
) -> list[dict[str, Any]]:
    """Compare systems by the metrics that are means over queries."""
    keys = [(system, baseline, metric) for system, baseline in comparisons for metric in metrics.PER_QUERY]
    if not keys:
        return []
    deltas = np.stack(
        [by_query[system][metric] - by_query[baseline][metric] for system, baseline, metric in keys], axis=1
    )
    intervals = significance.paired_interval(
        deltas,
        resamples=config.bootstrap,
        confidence=config.confidence,
        rng=np.random.default_rng([config.seed, 1]),
        interval=config.interval,
    )
    rows = significance.comparison_rows(keys, deltas.mean(axis=0), intervals)
    for row, wins, ties, losses in zip(rows, *significance.win_tie_loss(deltas), strict=True):
        row |= {"queries": len(deltas), "wins": int(wins), "ties": int(ties), "losses": int(losses)}
    return rows


def _compare_auc(
    judged: Judged,
    systems: Mapping[str, System],
    figures: Mapping[str, Mapping[str, float | None]],
    comparisons: Sequence[tuple[str, str]],
    config: Evaluate,
) -> list[dict[str, Any]]:
    """Compare systems by ROC-AUC and PR-AUC, which are not means over queries, by a cluster bootstrap."""
    keys = [
        (system, baseline, metric)
        for system, baseline in comparisons
        for metric in AUC_METRICS
        if figures[system][metric] is not None
    ]
    if not keys:
        return []
    bootstraps = {
        name: metrics.BootstrapAuc(judged.relevant, systems[name].score, judged.query)
        for name in dict.fromkeys(name for pair in comparisons for name in pair)
    }

    def auc_differences(counts: np.ndarray) -> np.ndarray:
        auc = {
            name: dict(zip(AUC_METRICS, bootstrap.compute(counts), strict=True))
            for name, bootstrap in bootstraps.items()
        }
        return np.array([auc[system][metric] - auc[baseline][metric] for system, baseline, metric in keys])

    queries = len(judged.query_ids)
    intervals = significance.cluster_interval(
        auc_differences,
        queries,
        resamples=config.cluster_bootstrap,
        confidence=config.confidence,
        rng=np.random.default_rng([config.seed, 2]),
    )
    rows = significance.comparison_rows(keys, auc_differences(np.ones(queries)), intervals)
    return [row | {"queries": queries} for row in rows]
