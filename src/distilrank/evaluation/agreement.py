"""Agreement of a student with its teacher, and the spread of a model's scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import rankdata

from distilrank.evaluation import metrics
from distilrank.evaluation.judged import Judged, System
from distilrank.modeling import calibration


def agreement(judged: Judged, teacher: System, student: System) -> dict[str, Any]:
    """Compute how closely two systems agree on the same rows. A value is None if it is undefined (equal scores).

    Returns:
        pairs: number of rows.
        pearson, spearman: correlations of the raw scores over all rows.
        mean_difference: mean absolute difference of the probabilities; for a system without calibration, of the
            logistic function of its scores.
        kendall: mean of tau-b over the queries that have one.
        top_1: share of the queries with two or more products whose first product is the same.
    """
    teacher_score, student_score = (system.score.astype(np.float64) for system in (teacher, student))
    differences = np.abs(_probability(teacher) - _probability(student))
    taus = metrics.kendall(judged.query, teacher_score, student_score)
    teacher_first, student_first = (
        metrics.ranks(judged.query, system.score, judged.tie) == 0 for system in (teacher, student)
    )
    has_several = (np.bincount(judged.query) > 1)[judged.query]
    same_first = teacher_first & student_first & has_several
    return {
        "pairs": len(judged.query),
        "pearson": _pearson(teacher_score, student_score),
        "spearman": _pearson(rankdata(teacher_score), rankdata(student_score)),
        "mean_difference": float(differences.mean()),
        "kendall": float(np.nanmean(taus)) if np.isfinite(taus).any() else None,
        "top_1": float(same_first.sum() / (teacher_first & has_several).sum()) if has_several.any() else None,
    }


def distribution(judged: Judged, system: System) -> dict[str, Any]:
    """Compute how far scores spread. A collapsed model gives all products nearly the same score.

    Returns:
        standard_deviation: of the raw scores.
        distinct: share of distinct scores.
        within_query: mean standard deviation within the queries of two or more products; None if there are none.
    """
    score = system.score.astype(np.float64)
    rows = np.bincount(judged.query)
    centered = score - (np.bincount(judged.query, score) / rows)[judged.query]
    deviations = np.sqrt(np.bincount(judged.query, centered**2) / rows)[rows > 1]
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
