"""Operations on arrays: the most frequent value of each group, and systematic samples."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def mode_by_group(group: np.ndarray, value: pa.Array | pa.ChunkedArray, groups: int) -> pa.StringArray:
    """Return each group's most frequent value, null for a group without values; ties go to the first by code point.

    Args:
        group: number of each row's group, 0 to groups - 1, shape (rows,).
        value: one text per row; null: no value.
        groups: number of groups.
    """
    rows = pa.table({"group": group, "value": value}).filter(pc.is_valid(value))
    counts = rows.group_by(["group", "value"]).aggregate([([], "count_all")])
    order = [("group", "ascending"), ("count_all", "descending"), ("value", "ascending")]
    counts = counts.sort_by(order).combine_chunks()
    present, first = np.unique(counts["group"].to_numpy(), return_index=True)
    indices = np.full(groups, -1)
    indices[present] = first
    return counts["value"].combine_chunks().take(pa.array(indices, mask=indices < 0))


def systematic_sample(total: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """Rows of a systematic sample: at equal distances from a random start, so that the rows' order is a stratification.

    Each row is equally likely, and each run of neighbors gets its share of the sample, to within one row.

    Args:
        total: how many rows there are.
        size: how many of them to draw.
        generator: gives the start.

    Returns:
        int64, ascending, shape (min(size, total),).
    """
    if size >= total:
        return np.arange(total)
    return ((generator.random() + np.arange(size)) * (total / size)).astype(np.int64)
