"""Spread of the raw scores of a model, and detection of a collapsed model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

BIN_WIDTH, HISTOGRAM_LIMIT = 0.25, 16.0
"""Bin width and range of the histogram of logits. Logits beyond the limit count in the outermost bins."""

MAX_CHECKED = 1000
"""Number of logits among which distinct values are counted: bf16 has few values, so more rows lower their share."""
MIN_LOGITS = 20
"""Smallest number of logits that can count as a collapse, since fewer may be equal by chance."""


def spread(logits: np.ndarray) -> dict[str, Any]:
    """Compute mean, standard deviation, range, number of distinct values and histogram of logits.

    The histogram counts bins of `width` from `low` upwards, on one common grid, so that those of shards can be added.
    """
    logits = np.asarray(logits, np.float64)
    bin_index = np.floor(np.clip(logits, -HISTOGRAM_LIMIT, HISTOGRAM_LIMIT - BIN_WIDTH) / BIN_WIDTH).astype(np.int64)
    lowest = int(bin_index.min())
    return {
        "mean": float(logits.mean()),
        "deviation": float(logits.std()),
        "min": float(logits.min()),
        "max": float(logits.max()),
        "distinct": len(np.unique(logits)),
        "histogram": {
            "width": BIN_WIDTH,
            "low": lowest * BIN_WIDTH,
            "counts": np.bincount(bin_index - lowest).tolist(),
        },
    }


def describe_collapse(logits: np.ndarray, min_deviation: float, min_distinct: float) -> str | None:
    """Explain why a model with these scores does not separate products; None if it does.

    Args:
        logits: raw scores, shape (n,); fewer than MIN_LOGITS finite ones never count as a collapse.
        min_deviation: smallest standard deviation.
        min_distinct: smallest share of distinct values among the first MAX_CHECKED.
    """
    not_finite = int((~np.isfinite(logits)).sum())
    if not_finite:
        return f"{not_finite} of {len(logits)} logits are not finite"
    if len(logits) < MIN_LOGITS:
        return None
    deviation = float(np.std(logits, dtype=np.float64))
    if deviation < min_deviation:
        return f"the standard deviation of {len(logits)} logits is {deviation:.3g}, expected {min_deviation:g} or more"
    checked = logits[:MAX_CHECKED]
    distinct = len(np.unique(checked))
    if distinct < min_distinct * len(checked):
        return (
            f"{distinct} of the first {len(checked)} logits are distinct, expected "
            f"{math.ceil(min_distinct * len(checked))} or more"
        )
    return None
