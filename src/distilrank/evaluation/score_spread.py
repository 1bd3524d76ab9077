"""How far the raw scores of a model spread, and whether it has collapsed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

BIN_WIDTH, REACH = 0.25, 16.0
"""Bins of the histogram of logits; what is further out counts in the outermost ones."""

FIRST = 1000
"""Rows whose distinct logits are counted: bf16 has few values, so their share falls with the rows."""
FEWEST = 20
"""Fewer logits than this may well be alike: that shows nothing."""


def spread(logits: np.ndarray) -> dict[str, Any]:
    """Mean, deviation, range, distinct values and histogram of logits.

    The histogram counts bins of `width` from `low` upwards, on one grid for all, so that those of shards add up.
    """
    logits = np.asarray(logits, np.float64)
    at = np.floor(np.clip(logits, -REACH, REACH - BIN_WIDTH) / BIN_WIDTH).astype(np.int64)
    first = int(at.min())
    return {
        "mean": float(logits.mean()),
        "deviation": float(logits.std()),
        "min": float(logits.min()),
        "max": float(logits.max()),
        "distinct": len(np.unique(logits)),
        "histogram": {"width": BIN_WIDTH, "low": first * BIN_WIDTH, "counts": np.bincount(at - first).tolist()},
    }


def collapsed(logits: np.ndarray, min_deviation: float, min_distinct: float) -> str | None:
    """Why a teacher that gives these scores tells products apart no longer, in words; None if it does.

    Args:
        logits: raw scores, shape (n,); fewer than twenty are never taken for a collapse.
        min_deviation: least standard deviation.
        min_distinct: least share of distinct values among the first thousand.
    """
    broken = int((~np.isfinite(logits)).sum())
    if broken:
        return f"{broken} of {len(logits)} logits are not finite"
    if len(logits) < FEWEST:
        return None
    deviation = float(np.std(logits, dtype=np.float64))
    if deviation < min_deviation:
        return f"the standard deviation of {len(logits)} logits is {deviation:.3g}, expected {min_deviation:g} or more"
    first = logits[:FIRST]
    distinct = len(np.unique(first))
    if distinct < min_distinct * len(first):
        return (
            f"{distinct} of the first {len(first)} logits are distinct, expected "
            f"{math.ceil(min_distinct * len(first))} or more"
        )
    return None
