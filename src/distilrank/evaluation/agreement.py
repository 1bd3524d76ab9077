"""How far a student says what its teacher says, and how far scores tell products apart at all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import rankdata

from distilrank.evaluation import metrics
from distilrank.evaluation.judged import Judged, System
from distilrank.modeling import calibration


def agreement(judged: Judged, teacher: System, student: System) -> dict[str, Any]:
    """How alike two systems judge the same rows; a figure that has no value (all scores equal, say) is None.

    Returns:
        pairs; pearson and spearman, correlations of the raw scores over all pairs; mean_difference, the mean absolute
        difference of the probabilities (of a system without calibration, the logistic function of its scores);
        kendall, the mean of each query's tau-b (Kendall, Biometrika 33, 1945) over the queries that have one; top_1,
        share of the queries with two products or more whose first product is the same.
    """
    first, second = (system.score.astype(np.float64) for system in (teacher, student))
    gaps = np.abs(_probability(teacher) - _probability(student))
    taus = metrics.kendall(judged.query, first, second)
    tops = [metrics.ranks(judged.query, one.score, judged.tie) == 0 for one in (teacher, student)]
    several = (np.bincount(judged.query) > 1)[judged.query]
    same = tops[0] & tops[1] & several
    return {
        "pairs": len(judged.query),
        "pearson": _pearson(first, second),
        "spearman": _pearson(rankdata(first), rankdata(second)),
        "mean_difference": float(gaps.mean()),
        "kendall": float(np.nanmean(taus)) if np.isfinite(taus).any() else None,
        "top_1": float(same.sum() / (tops[0] & several).sum()) if several.any() else None,
    }


def distribution(judged: Judged, system: System) -> dict[str, Any]:
    """How far scores spread: a model that collapsed gives all products much the same one.

    Returns:
        standard_deviation of the raw scores; distinct, share of distinct ones; within_query, the mean standard
        deviation within the queries of two products or more (None where there is none).
    """
    score = system.score.astype(np.float64)
    rows = np.bincount(judged.query)
    centred = score - (np.bincount(judged.query, score) / rows)[judged.query]
    deviations = np.sqrt(np.bincount(judged.query, centred**2) / rows)[rows > 1]
    return {
        "standard_deviation": float(score.std()),
        "distinct": len(np.unique(system.score)) / len(score),
        "within_query": float(deviations.mean()) if len(deviations) else None,
    }


def _probability(system: System) -> np.ndarray:
    if system.probability is None:
        return calibration.probability({"method": "none"}, system.score)
    return system.probability


def _pearson(first: np.ndarray, second: np.ndarray) -> float | None:
    first, second = first - first.mean(), second - second.mean()
    scale = math.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale else None
