"""From a model's raw logit to a probability of relevance, fitted on held-out judgements."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

EDGE = 1e-3  # a probability of exactly 0 or 1 has no finite logit


def fit(method: str, logits: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Fit a calibration, as a JSON value that `probability` takes.

    Args:
        method: `platt` (a sigmoid of a line; Platt 1999), `isotonic` (a step-wise monotone curve) or `none`.
        logits: raw scores, shape (n,).
        targets: soft targets in [0, 1], shape (n,).
    """
    if method == "none":
        return {"method": "none"}
    logits, targets = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    if method == "isotonic":
        curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(logits, targets)
        return {"method": "isotonic", "x": curve.X_thresholds_.tolist(), "y": curve.y_thresholds_.tolist()}
    # A soft target y is y positives and 1 - y negatives: scikit-learn takes classes with weights.
    rows = np.concatenate([logits, logits])[:, None]
    classes = np.repeat([1, 0], len(logits))
    weights = np.concatenate([targets, 1 - targets])
    line = LogisticRegression(C=np.inf, max_iter=1000).fit(rows, classes, sample_weight=weights)
    return {"method": "platt", "slope": float(line.coef_[0, 0]), "intercept": float(line.intercept_[0])}


def probability(calibration: dict[str, Any], logits: np.ndarray) -> np.ndarray:
    """Calibrated probabilities in [0, 1], float64, of raw logits of any shape."""
    logits = np.asarray(logits, np.float64)
    if calibration["method"] == "isotonic":
        return np.interp(logits, calibration["x"], calibration["y"])
    if calibration["method"] == "platt":
        return expit(calibration["slope"] * logits + calibration["intercept"])
    return expit(logits)


def calibrated_logit(calibration: dict[str, Any], logits: np.ndarray) -> np.ndarray:
    """The logit of the calibrated probability, within +-6.9 (probabilities from .001 to .999)."""
    return logit(np.clip(probability(calibration, logits), EDGE, 1 - EDGE))
