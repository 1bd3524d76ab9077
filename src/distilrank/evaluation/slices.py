"""Slices of the test queries, each evaluated and compared separately, since a mean can hide a slice that got worse.

A slice consists of the ranked queries that share a value of a column, either of the judged rows or derived from the
query text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilrank.config import Evaluate
from distilrank.core import arrays, normalize, schemas, unicode_script
from distilrank.core.errors import InputError
from distilrank.evaluation import significance
from distilrank.evaluation.judged import Judged

METRICS = ("ndcg_at_10", "pair_accuracy")
NO_VALUE = "(none)"
MAX_TOO_SMALL = 20  # slices of a column that are listed as too small; the others become one row
RESOLUTION = 5
"""The smallest p-value of a randomization test is about one over its draws. Times the number of slices, it must stay
this many times below the level. Otherwise Holm's correction could never detect a single slice that got worse."""
FAMILY = "all slices of one baseline and metric, Holm"

_MAX_WORDS = 5
_CHARACTERS_STEP = 10
_MAX_CHARACTERS = 40
_UNSLICEABLE = ("query_id", "query", "product_id", "title", "description", "target", "gain", "bm25")


def _words_class(query: str) -> str:
    count = len(normalize.words(query))
    return f"{_MAX_WORDS}+" if count >= _MAX_WORDS else str(count)


def _characters_class(query: str) -> str:
    if len(query) > _MAX_CHARACTERS:
        return f"{_MAX_CHARACTERS + 1}+"
    end = -(-len(query) // _CHARACTERS_STEP) * _CHARACTERS_STEP
    return f"{end - _CHARACTERS_STEP + 1}-{end}"


DERIVED: Mapping[str, Callable[[str], str]] = {
    "query_words": _words_class,
    "query_characters": _characters_class,
    "script": unicode_script.dominant,
}
"""Columns that are derived from the query text."""


class Slice(NamedTuple):
    """Queries that share a value of a column."""

    column: str
    value: str
    indices: np.ndarray
    """Indices into the ranked queries."""
    rng: np.random.Generator
    """Source of the draws for this slice."""


def columns() -> list[str]:
    """Return the names of the columns by which queries can be sliced."""
    return [*DERIVED, *(name for name in schemas.JUDGED.names if name not in _UNSLICEABLE)]


def require_columns(names: Sequence[str]) -> None:
    """Check the configured slice columns.

    Raises:
        InputError: a name is not one of `columns`.
    """
    for name in names:
        if name not in columns():
            raise InputError(
                f"evaluate.slices: {name!r} is not a column of the judged rows and cannot be derived from the query; "
                f"expected some of {', '.join(columns())}"
            )


def values(judged: Judged, column: str) -> np.ndarray:
    """Return the value of each ranked query in a column, str, shape (ranked,); None if it has none.

    If the rows of a query differ, the most frequent value of its relevant rows counts (of all rows, if none is
    relevant); among equally frequent values, the first by code point.
    """
    if column in DERIVED:
        queries = judged.per_query("query")[judged.ranked]
        return np.array([DERIVED[column](query) for query in queries], object)
    texts = judged.table.column(column).combine_chunks().cast(pa.string())
    non_empty = pc.if_else(pc.equal(texts, ""), None, texts)
    has_relevant = np.isin(judged.query, judged.query[judged.relevant])
    rows = np.flatnonzero(judged.relevant | ~has_relevant)
    modes = arrays.mode_by_group(judged.query[rows], non_empty.take(pa.array(rows)), len(judged.query_ids))
    return modes.take(pa.array(judged.ranked)).to_numpy(zero_copy_only=False)


def compare_slices(
    judged: Judged,
    by_query: Mapping[str, Mapping[str, np.ndarray]],
    comparisons: Sequence[tuple[str, str]],
    config: Evaluate,
) -> dict[str, Any]:
    """Compute the metrics of systems on each slice and compare the systems there.

    `p_holm` is the p-value adjusted for all slices, of all columns, of one pair of systems and one metric. The system
    is worse on a slice where delta < 0 and p_holm < 1 - confidence; the probability of any such finding without a real
    difference stays below 1 - confidence.

    Args:
        judged: the test rows.
        by_query: per-query metrics of the ranked queries, by system.
        comparisons: pairs of a system and its baseline, both in `by_query`.
        config: slice columns, smallest slice, resamples, confidence, seed.

    Returns:
        `slices` of metrics.json: the rows, and the slices that were left out as too small or without a value.

    Raises:
        InputError: a slice column does not exist.
    """
    require_columns(config.slices)
    slices: list[Slice] = []
    left_out: list[dict[str, Any]] = []
    for number, column in enumerate(config.slices):
        column_slices, column_left_out = _split_by_column(judged, column, number, config)
        slices += column_slices
        left_out += column_left_out
    keys = [(system, baseline, metric) for system, baseline in comparisons for metric in METRICS]
    deltas = np.empty((len(judged.ranked), 0))
    if keys:
        deltas = np.stack(
            [by_query[system][metric] - by_query[baseline][metric] for system, baseline, metric in keys], axis=1
        )
    pairs = np.bincount(judged.query)[judged.ranked]
    resamples = max(config.bootstrap, math.ceil(RESOLUTION * len(slices) / (1 - config.confidence)))
    rows: list[dict[str, Any]] = [
        {
            "column": each.column,
            "value": each.value,
            "queries": len(each.indices),
            "pairs": int(pairs[each.indices].sum()),
            "systems": {
                system: {metric: float(metrics[metric][each.indices].mean()) for metric in METRICS}
                for system, metrics in by_query.items()
            },
            "comparisons": _compare(keys, deltas[each.indices], config, resamples, each.rng),
        }
        for each in slices
    ]
    for number in range(len(keys)):
        family = [row["comparisons"][number] for row in rows]
        adjusted = significance.holm(np.array([comparison["p_value"] for comparison in family]))
        for comparison, p_holm in zip(family, adjusted.tolist(), strict=True):
            comparison["p_holm"] = p_holm
    return {"min_queries": config.slice_queries, "family": FAMILY, "rows": rows, "left_out": left_out}


def _split_by_column(
    judged: Judged, column: str, number: int, config: Evaluate
) -> tuple[list[Slice], list[dict[str, Any]]]:
    """Split the ranked queries by a column into slices, and into entries of `left_out` for those too small."""
    value = values(judged, column)
    with_value = np.flatnonzero([text is not None for text in value])
    names, codes, counts = np.unique(value[with_value].astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(codes, kind="stable")
    slices = [
        Slice(column, str(names[index]), indices, np.random.default_rng([config.seed, 3, number, index]))
        for index, indices in enumerate(np.split(with_value[order], np.cumsum(counts)[:-1]))
        if len(indices) >= config.slice_queries
    ]
    return slices, _too_small(column, names, counts, len(value) - len(with_value), config.slice_queries)


def _too_small(
    column: str, names: np.ndarray, counts: np.ndarray, without_value: int, min_queries: int
) -> list[dict[str, Any]]:
    """List the `left_out` entries of a column: the largest slices that are too small, the rest, and no value."""
    small = np.flatnonzero(counts < min_queries)
    small = small[np.argsort(-counts[small], kind="stable")]
    entries = [
        {"column": column, "value": str(names[index]), "queries": int(counts[index])} for index in small[:MAX_TOO_SMALL]
    ]
    rest = small[MAX_TOO_SMALL:]
    if len(rest):
        entries.append({"column": column, "value": f"({len(rest)} more)", "queries": int(counts[rest].sum())})
    if without_value:
        entries.append({"column": column, "value": NO_VALUE, "queries": without_value})
    return entries


def _compare(
    keys: Sequence[tuple[str, str, str]],
    deltas: np.ndarray,
    config: Evaluate,
    resamples: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    if not keys:
        return []
    intervals = significance.paired_interval(
        deltas, resamples=resamples, confidence=config.confidence, rng=rng, interval=config.interval
    )
    return significance.comparison_rows(keys, deltas.mean(axis=0), intervals)
