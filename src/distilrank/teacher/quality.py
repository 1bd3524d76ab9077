"""Quality of a teacher on held-out judgements: how reliable its labels are."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from scipy.optimize import brentq
from scipy.stats import spearmanr

from distilrank.core import artifacts
from distilrank.evaluation import metrics, score_spread, trec
from distilrank.modeling import calibration

QUALITY = "quality.json"
"""File that `assess` writes to the teacher's folder."""

MIN_SUPPORT = 20
"""Ranked queries below which a mean over them says little; such strata are marked as too small."""

CURVE_BINS, BIN_ROWS, PRIOR_ROWS = 10, 50, 50
"""Of the curve of expected errors: most bins, fewest rows of a bin (roughly), and rows of average error in each."""
LEAST, MOST = 1 / 3, 3.0
"""Bounds of a confidence weight, so that no label is dropped and none decides."""

PER_QUERY = 3
"""Most disagreements of one query, so that it does not fill the list."""
LEAST_GAP = 1 / 3
"""Smallest disagreement: on three levels, the nearest one to the teacher's probability is another."""
TOP = 8
"""Disagreements shown on the report's page."""

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


class Quality(NamedTuple):
    """Result of `assess`."""

    figures: dict[str, Any]
    """JSON value, as the report reads it."""
    disagreements: pa.Table
    """As `disagreements` returns them."""

    def write(self, folder: Path) -> None:
        """Write `quality.json` and `disagreements.csv`."""
        artifacts.write_json(folder / QUALITY, self.figures)
        write_csv(self.disagreements, folder / "disagreements.csv")


def assess(
    dev: pa.Table,
    logits: np.ndarray,
    calibrated: dict[str, Any],
    *,
    relevant_from: float,
    bins: int = 10,
    count: int = 100,
    seed: int = 0,
) -> Quality:
    """Measure a teacher on judgements that it was not trained on.

    Probabilities are out of fold (`calibration.out_of_fold`, by query, with the method of `calibrated`): ECE, Brier,
    the reliability diagram, the curve of expected errors and the disagreements rest on them. For method `none` they
    are the sigmoid of the logits.

    Args:
        dev: schemas.JUDGED, held out.
        logits: the teacher's raw scores of those rows, finite.
        calibrated: what `calibration.fit` gave for them.
        relevant_from: soft target from which a pair is relevant, for ROC-AUC.
        bins: of the reliability diagram.
        count: most disagreements to list.
        seed: of the random ordering.
    """
    logits = np.asarray(logits, np.float64)
    target = dev.column("target").to_numpy().astype(np.float64)
    queries = dev.column("query_id").to_numpy()
    probability = calibration.out_of_fold(calibrated["method"], logits, target, queries)
    diagram = metrics.reliability(probability, target, bins)
    systems = {
        "teacher": logits,
        "bm25": dev.column("bm25").to_numpy().astype(np.float64),
        "random": np.random.default_rng(seed).random(dev.num_rows),
    }
    relevant = metrics.grades(target) >= metrics.grades([relevant_from])[0]
    curve = confidence(probability, target)
    disagreeing = disagreements(dev, probability, count, curve)
    figures = {
        "pairs": dev.num_rows,
        "queries": len(set(queries)),
        "min_support": MIN_SUPPORT,
        "relevant_from": relevant_from,
        "agreement": agreement(dev, systems, probability),
        "roc_auc": {
            name: _none_if_nan(metrics.roc_auc(*metrics.ThresholdCurve(relevant, score).counts()))
            for name, score in systems.items()
        },
        "rank_correlation": {name: _none_if_nan(_spearman(score, target)) for name, score in systems.items()},
        "calibration": {
            **calibrated,
            "ece": metrics.ece(diagram),
            "brier": metrics.brier(probability, target),
            "reliability": diagram,
        },
        "logits": score_spread.spread(logits),
        "confidence": curve,
        "disagreements": {"count": disagreeing.num_rows, "top": disagreeing.slice(0, TOP).to_pylist()},
    }
    return Quality(figures, disagreeing)


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _spearman(score: np.ndarray, target: np.ndarray) -> float:
    constant = not np.ptp(score) or not np.ptp(target)
    return math.nan if constant else spearmanr(score, target).statistic


# Agreement with people --------------------------------------------------------------------------------------------


def agreement(dev: pa.Table, systems: dict[str, np.ndarray], probability: np.ndarray) -> dict[str, dict[str, Any]]:
    """How well systems order each query's products, over all queries and by stratum.

    Args:
        dev: schemas.JUDGED.
        systems: scores of the rows, by name.
        probability: the teacher's, of the rows.

    Returns:
        By `all` and by stratum: pairs; queries, of those the ranked ones (whose gains differ); ndcg_at_10 and
        pair_accuracy by system, None where no query is ranked; mean_probability and mean_target.
    """
    _, first, query = np.unique(dev.column("query_id").to_numpy(), return_index=True, return_inverse=True)
    stratum = dev.column("stratum").to_numpy()[first]
    gain, target = metrics.grades(dev.column("gain").to_numpy()), dev.column("target").to_numpy()
    tie = trec.tie_ranks(dev.column("product_id").to_pylist())
    ranked = metrics.rankable(query, gain)
    with np.errstate(divide="ignore"):
        by_query = {
            "ndcg_at_10": {name: metrics.ndcg(query, gain, score, 10, tie) for name, score in systems.items()},
            "pair_accuracy": {name: metrics.pair_accuracy(query, gain, score) for name, score in systems.items()},
        }
    parts = {"all": np.ones(len(stratum), bool), **{name: stratum == name for name in sorted(set(stratum))}}
    slices = {}
    for part, inside in parts.items():
        rows, counted = inside[query], inside & ranked
        slices[part] = {
            "pairs": int(rows.sum()),
            "queries": int(inside.sum()),
            "ranked_queries": int(counted.sum()),
            **{
                metric: {
                    name: float(scores[counted].mean()) if counted.any() else None for name, scores in values.items()
                }
                for metric, values in by_query.items()
            },
            "mean_probability": float(probability[rows].mean()),
            "mean_target": float(target[rows].mean()),
        }
    return slices


def disagreements(dev: pa.Table, probability: np.ndarray, count: int, curve: dict[str, Any]) -> pa.Table:
    """The judgements that the teacher contradicts most confidently, in that order: often human errors, worth a review.

    They are sorted by |probability - target| over the root of the error expected at that probability: where the
    teacher is mostly right, a gap is worth more.

    Args:
        dev: schemas.JUDGED.
        probability: the teacher's, out of fold, shape (rows,).
        count: most rows to return; a query gives three at most, and gaps below a third of the scale none.
        curve: of `confidence`.

    Returns:
        query, product_id, title, target, raters, probability, gap (probability minus target), stratum.
    """
    target = dev.column("target").to_numpy().astype(np.float64)
    gap = probability - target
    surprise = np.abs(gap) / np.sqrt(expected_error(curve, probability))
    tie = trec.tie_ranks(dev.column("product_id").to_pylist())
    _, query = np.unique(dev.column("query_id").to_numpy(), return_inverse=True)
    order = np.lexsort((-tie, query, -surprise))
    within = metrics.ranks(query, surprise, tie)
    rows = order[(np.abs(gap[order]) >= LEAST_GAP) & (within[order] < PER_QUERY)][:count]
    selected = dev.take(pa.array(rows))
    return pa.table(
        {
            **{name: selected.column(name) for name in ("query", "product_id", "title")},
            "target": pa.array(target[rows].round(4)),
            "raters": selected.column("raters"),
            "probability": pa.array(probability[rows].round(4)),
            "gap": pa.array(gap[rows].round(4)),
            "stratum": selected.column("stratum"),
        }
    )


def write_csv(table: pa.Table, path: Path) -> None:
    """Write a table for a spreadsheet: UTF-8 with a byte order mark, without which Excel garbles other scripts.

    Text that a spreadsheet would run as a formula (it begins with = + - @, a tab or a line break) gets a leading
    apostrophe; numbers are left as they are.
    """
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(table.column_names)
    for row in table.to_pylist():
        rows.writerow(
            f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in row.values()
        )
    artifacts.write_text(path, "\ufeff" + buffer.getvalue())


# Confidence -------------------------------------------------------------------------------------------------------


def confidence(probability: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """Expected squared error of the teacher as a function of its probability, as a JSON value.

    The squared error of out-of-fold probabilities, averaged in quantile bins, shrunk towards the mean of all as if 50
    rows of that error were in each bin, and smoothed over neighbors (weights 1, 2, 1).

    Args:
        probability: calibrated, out of fold, shape (n,).
        target: soft targets, shape (n,).

    Returns:
        The curve's `probability` and `error`; and the `scale` of weights on either kind of target (see `weights`).
    """
    squares = (probability - target) ** 2
    bins = int(np.clip(len(squares) // BIN_ROWS, 1, CURVE_BINS))
    edges = np.unique(np.quantile(probability, np.arange(1, bins) / bins))
    bin_of_row = np.searchsorted(edges, probability, side="right")
    _, bin_of_row = np.unique(bin_of_row, return_inverse=True)  # ties may leave a bin empty
    rows = np.bincount(bin_of_row).astype(np.float64)
    error = (np.bincount(bin_of_row, squares) + PRIOR_ROWS * squares.mean()) / (rows + PRIOR_ROWS)
    kernel = [1, 2, 1]
    smooth = (np.convolve(rows * error, kernel) / np.convolve(rows, kernel))[1:-1]
    curve = {
        "probability": (np.bincount(bin_of_row, probability) / rows).tolist(),
        "error": np.maximum(smooth, 1e-6).tolist(),
    }
    return {
        **curve,
        "scale": {scale: _scale(_variance(curve, probability, scale)) for scale in ("logit", "probability")},
    }


def expected_error(curve: dict[str, Any], probability: np.ndarray) -> np.ndarray:
    """Mean squared error that `confidence` expects at calibrated probabilities of any shape."""
    return np.interp(probability, curve["probability"], curve["error"])


def weights(curve: dict[str, Any], probability: np.ndarray, target: str) -> np.ndarray:
    """Weights of labels, float32, in [1/3, 3] and 1 on average over the judgements of the curve.

    Inverse-variance weighting (Aitken 1935): a label counts as one over the squared error expected of it. That error is
    one of the probability; on the scale of logits it is, to first order, divided by (p (1 - p))^2, so that there it is
    the labels near 0 and 1 that are uncertain.

    Args:
        curve: of `confidence`.
        probability: calibrated probabilities of the labels, shape (n,).
        target: what the student's loss compares, `probability` or `logit`.
    """
    return np.clip(curve["scale"][target] / _variance(curve, probability, target), LEAST, MOST).astype(np.float32)


def _variance(curve: dict[str, Any], probability: np.ndarray, target: str) -> np.ndarray:
    error = expected_error(curve, probability)
    if target == "probability":
        return error
    inside = np.clip(probability, calibration.EDGE, 1 - calibration.EDGE)
    return error / (inside * (1 - inside)) ** 2


def _scale(variance: np.ndarray) -> float:
    """What to divide by variances so that weights, once within their bounds, are 1 on average."""
    low, high = LEAST * variance.min(), MOST * variance.max()
    return float(brentq(lambda scale: np.clip(scale / variance, LEAST, MOST).mean() - 1, low, high))
