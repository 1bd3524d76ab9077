"""Calibration: maps a model's raw logit to a probability of relevance, fitted on held-out judgements.

Only fitting imports scipy and scikit-learn; applying a fitted calibration does not need them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distilrank.core import artifacts

EDGE = 1e-3  # a probability of exactly 0 or 1 has no finite logit
FOLDS = 5
MIN_QUERIES, MIN_ROWS = 20, 200
"""With less than either, `auto` does not compare, since a step curve and the comparison would fit noise."""
TAIL = 0.1
"""Slope of an isotonic curve beyond its outer blocks, as a share of the sigmoid's."""


def fit(method: str, logits: np.ndarray, targets: np.ndarray, groups: np.ndarray | None = None) -> dict[str, Any]:
    """Fit a calibration as a JSON value for `probability`.

    `auto` takes isotonic only where its log loss on queries left out of the fit is lower than Platt's by more than one
    standard error of that difference over queries (the rule of Breiman et al. 1984), since Platt has two parameters.
    The log loss, unlike Brier, feels an error near 0 and 1 as strongly as the logits that a student learns from.
    `chosen_by` records rows and queries and, if there are enough of them, the metrics of both methods.

    Args:
        method: `platt` (a sigmoid of a line; Platt 1999), `isotonic` (a monotone curve through block centers), `auto`
            or `none`.
        logits: raw scores, shape (n,).
        targets: soft targets in [0, 1], shape (n,).
        groups: rows that are left out together, shape (n,), such as the query of each row; None: each row separately.
    """
    if method == "none":
        return {"method": "none"}
    logits, targets = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    if method == "auto":
        chosen_by = _compare(logits, targets, groups)
        better = chosen_by.get("gain", 0.0) > chosen_by.get("standard_error", 0.0)
        return {**fit("isotonic" if better else "platt", logits, targets), "chosen_by": chosen_by}
    return _isotonic(logits, targets) if method == "isotonic" else _platt(logits, targets)


def out_of_fold(method: str, logits: np.ndarray, targets: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Probabilities of rows by calibrations that were fitted without their query, float64, shape (n,).

    On the rows of its fit, a calibration looks too good, especially a flexible one. The five folds are derived from
    the digest of the group, so they do not depend on row order. A single group cannot be left out, so its rows are in
    its own fit.

    Args: as for `fit`.
    """
    logits, targets = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    groups = _groups(groups, len(logits))
    fold_of_row = _folds(groups)
    held_out = np.empty(len(logits))
    for index in np.unique(fold_of_row):
        is_held_out = fold_of_row == index
        is_fitted = ~is_held_out if not is_held_out.all() else is_held_out
        held_out[is_held_out] = probability(
            fit(method, logits[is_fitted], targets[is_fitted], groups[is_fitted]), logits[is_held_out]
        )
    return held_out


def probability(calibration: dict[str, Any], logits: np.ndarray) -> np.ndarray:
    """Calibrated probabilities in [0, 1], float64, of raw logits of any shape.

    Example:
        >>> probability({"method": "platt", "slope": 2.0, "intercept": -1.0}, np.array([0.5])).tolist()
        [0.5]
    """
    logits = np.asarray(logits, np.float64)
    if calibration["method"] == "isotonic":
        return np.interp(logits, calibration["x"], calibration["y"])
    if calibration["method"] == "platt":
        return _sigmoid(calibration["slope"] * logits + calibration["intercept"])
    return _sigmoid(logits)


def calibrated_logit(calibration: dict[str, Any], logits: np.ndarray) -> np.ndarray:
    """The logit of the calibrated probability, within +-6.9 (probabilities from 0.001 to 0.999)."""
    return _logit(np.clip(probability(calibration, logits), EDGE, 1 - EDGE))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))


def _logit(probability: np.ndarray) -> np.ndarray:
    return np.log(probability) - np.log1p(-probability)


def _platt(logits: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    # Platt's priors: without them, perfectly separating logits would have an infinite slope.
    positive, negative = targets.sum(), (1 - targets).sum()
    targets = targets * (positive + 1) / (positive + 2) + (1 - targets) / (negative + 2)
    # scikit-learn takes weighted classes, so a soft target y is a positive of weight y and a negative of weight 1 - y.
    rows = np.concatenate([logits, logits])[:, None]
    classes = np.repeat([1, 0], len(logits))
    weights = np.concatenate([targets, 1 - targets])
    line = LogisticRegression(C=np.inf, max_iter=1000).fit(rows, classes, sample_weight=weights)
    return {"method": "platt", "slope": float(line.coef_[0, 0]), "intercept": float(line.intercept_[0])}


def _isotonic(logits: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Centered isotonic regression (Oron, Flournoy 2017): straight lines between the centers of the pooled blocks.

    The usual curve is flat on each block, where it would wipe out the teacher's margins. This one rises everywhere
    within one range of the logits beyond either end of them: past the outer centers by a tenth of Platt's slope, since
    judgements show no slope there, but candidates differ. Half a judgement at either end speaks against it, so that a
    few zeros are not taken for a probability of 0; what remains is squeezed into [0.002, 0.998].
    """
    from scipy.optimize import isotonic_regression

    values, position = np.unique(logits, return_inverse=True)
    weight, total = np.bincount(position).astype(np.float64), np.bincount(position, targets)
    weight[[0, -1]] += 0.5
    total[0] += 0.5
    pooled = isotonic_regression(total / weight, weights=weight)
    starts = pooled.blocks[:-1]
    starts = starts[np.diff(pooled.x[starts], prepend=-1) > 1e-9]  # equal means may differ by rounding
    rows = np.add.reduceat(weight, starts)
    x, y = np.add.reduceat(values * weight, starts) / rows, np.add.reduceat(total, starts) / rows
    y = 2 * EDGE + (1 - 4 * EDGE) * y
    slope = max(TAIL * _platt(logits, targets)["slope"], EDGE)
    reach = max(float(np.ptp(logits)), 1.0)
    outer = np.array([values[0] - reach, values[-1] + reach])
    ends = _sigmoid(_logit(y[[0, -1]]) + slope * (outer - x[[0, -1]])).clip(EDGE, 1 - EDGE)
    x, y = np.concatenate([outer[:1], x, outer[1:]]), np.concatenate([ends[:1], y, ends[1:]])
    return {"method": "isotonic", "x": x.tolist(), "y": y.tolist()}


def _groups(groups: np.ndarray | None, rows: int) -> np.ndarray:
    return np.arange(rows) if groups is None else np.asarray(groups, dtype=str)


def _folds(groups: np.ndarray) -> np.ndarray:
    names, group = np.unique(groups, return_inverse=True)
    order = np.argsort([artifacts.digest_bytes(str(name).encode()) for name in names])
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % FOLDS
    return fold[group]


def _compare(logits: np.ndarray, targets: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """Compare Platt and isotonic on queries left out of the fit, with the standard error of the difference."""
    groups = _groups(groups, len(logits))
    _, query = np.unique(groups, return_inverse=True)
    queries = int(query.max()) + 1
    facts: dict[str, Any] = {"rows": len(logits), "queries": queries}
    if queries < MIN_QUERIES or len(logits) < MIN_ROWS:
        return facts
    held_out = {method: out_of_fold(method, logits, targets, groups) for method in ("platt", "isotonic")}
    losses = {}
    for method, estimate in held_out.items():
        estimate = np.clip(estimate, EDGE, 1 - EDGE)  # as student targets
        losses[method] = -targets * np.log(estimate) - (1 - targets) * np.log(1 - estimate)
    gains = losses["platt"] - losses["isotonic"]
    by_query = np.bincount(query, gains - gains.mean())  # rows of one query are not independent draws
    return {
        **facts,
        "folds": FOLDS,
        "log_loss": {method: float(loss.mean()) for method, loss in losses.items()},
        "brier": {method: float(np.mean((estimate - targets) ** 2)) for method, estimate in held_out.items()},
        "gain": float(gains.mean()),
        "standard_error": float(np.sqrt(np.sum(by_query**2)) / len(gains)),
    }
