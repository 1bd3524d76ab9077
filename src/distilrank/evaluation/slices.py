"""Parts of the test queries, each measured and compared by itself: an average can hide a part that became worse.

A slice is the ranked queries that share a value of a column: of the judged rows, or derived from the query's text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
THIN_LISTED = 20  # thin slices of a column that are named; the rest become one line
FINER = 5
"""The least p-value of a randomization is one in its draws; times the family it must stay this far below the level, or
Holm could never find the one slice that broke."""
FAMILY = "all slices of one baseline and metric, Holm"

_MANY_WORDS = 5
_WIDTH = 10  # characters of a class of query_characters
_LONG = 40


def _words(query: str) -> str:
    count = len(normalize.words(query))
    return f"{_MANY_WORDS}+" if count >= _MANY_WORDS else str(count)


def _characters(query: str) -> str:
    if len(query) > _LONG:
        return f"{_LONG + 1}+"
    end = -(-len(query) // _WIDTH) * _WIDTH
    return f"{end - _WIDTH + 1}-{end}"


DERIVED: Mapping[str, Callable[[str], str]] = {
    "query_words": _words,
    "query_characters": _characters,
    "script": unicode_script.dominant,
}
"""Columns that are made of the query's text."""


def columns() -> list[str]:
    """The columns that queries can be sliced by."""
    texts = ("query_id", "query", "product_id", "title", "description", "target", "gain", "bm25")
    return [*DERIVED, *(name for name in schemas.JUDGED.names if name not in texts)]


def require(names: Sequence[str]) -> None:
    """Refuse what cannot be sliced by.

    Raises:
        InputError: a column is not one of `columns`.
    """
    for name in names:
        if name not in columns():
            raise InputError(
                f"evaluate.slices: {name!r} is no column of the judged rows, and none is made of that name; expected "
                f"some of {', '.join(columns())}"
            )


def values(judged: Judged, column: str) -> np.ndarray:
    """Each ranked query's value, str, shape (ranked,); None where it has none.

    Where rows of a query differ, the most frequent value of its relevant rows counts (of all, if none is relevant);
    of equally frequent ones the first by code point.
    """
    if column in DERIVED:
        texts = judged.per_query("query")[judged.ranked]
        return np.array([DERIVED[column](text) for text in texts], object)
    texts = judged.table.column(column).combine_chunks().cast(pa.string())
    value = pc.if_else(pc.equal(texts, ""), None, texts)
    rows = np.flatnonzero(judged.relevant | ~np.isin(judged.query, judged.query[judged.relevant]))
    found = arrays.mode_by_group(judged.query[rows], value.take(pa.array(rows)), len(judged.query_ids))
    return found.take(pa.array(judged.ranked)).to_numpy(zero_copy_only=False)


def measure(
    judged: Judged,
    by_query: Mapping[str, Mapping[str, np.ndarray]],
    versus: Sequence[tuple[str, str]],
    config: Evaluate,
) -> dict[str, Any]:
    """Measure systems on each slice and compare them there.

    p_holm is the p-value adjusted for all slices, of all columns, of one pair of systems and one metric: the first is
    worse on a slice where delta < 0 and p_holm < 1 - confidence, and the chance of any such finding where there is none
    stays below 1 - confidence.

    Args:
        judged: the test rows.
        by_query: per-query measures of the ranked queries, by system.
        versus: the pairs to compare, a system and its baseline, all of them in `by_query`.
        config: columns, least queries, resamples, confidence, seed.

    Returns:
        `slices` of metrics.json: rows, and what was left out as too thin, values and queries without one.

    Raises:
        InputError: a column is not one of `columns`.
    """
    require(config.slices)
    pairs = np.bincount(judged.query)[judged.ranked]
    keys = [(system, baseline, metric) for system, baseline in versus for metric in METRICS]
    deltas = np.empty((len(judged.ranked), 0))
    if keys:
        deltas = np.stack([by_query[one][metric] - by_query[other][metric] for one, other, metric in keys], axis=1)
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    drawn: list[tuple[np.ndarray, np.random.Generator]] = []
    for at, column in enumerate(config.slices):
        value = values(judged, column)
        kept = np.flatnonzero([one is not None for one in value])
        names, place, counts = np.unique(value[kept].astype(str), return_inverse=True, return_counts=True)
        left_out += _thin(column, names, counts, len(value) - len(kept), config.slice_queries)
        order = np.argsort(place, kind="stable")
        for number, inside in enumerate(np.split(kept[order], np.cumsum(counts)[:-1])):
            if len(inside) < config.slice_queries:
                continue
            rng = np.random.default_rng([config.seed, 3, at, number])
            rows.append(
                {
                    "column": column,
                    "value": str(names[number]),
                    "queries": len(inside),
                    "pairs": int(pairs[inside].sum()),
                    "systems": {
                        system: {metric: float(measured[metric][inside].mean()) for metric in METRICS}
                        for system, measured in by_query.items()
                    },
                }
            )
            drawn.append((inside, rng))
    resamples = max(config.bootstrap, math.ceil(FINER * len(rows) / (1 - config.confidence)))
    for row, (inside, rng) in zip(rows, drawn, strict=True):
        row["comparisons"] = _compare(keys, deltas[inside], config, resamples, rng)
    for number in range(len(keys)):
        family = [row["comparisons"][number] for row in rows]
        for one, adjusted in zip(family, significance.holm(np.array([one["p_value"] for one in family])), strict=True):
            one["p_holm"] = float(adjusted)
    return {"min_queries": config.slice_queries, "family": FAMILY, "rows": rows, "left_out": left_out}


def _thin(column: str, names: np.ndarray, counts: np.ndarray, unknown: int, least: int) -> list[dict[str, Any]]:
    thin = np.flatnonzero(counts < least)
    thin = thin[np.argsort(-counts[thin], kind="stable")]
    found = [{"column": column, "value": str(names[one]), "queries": int(counts[one])} for one in thin[:THIN_LISTED]]
    rest = thin[THIN_LISTED:]
    if len(rest):
        found.append({"column": column, "value": f"({len(rest)} more)", "queries": int(counts[rest].sum())})
    if unknown:
        found.append({"column": column, "value": NO_VALUE, "queries": unknown})
    return found


def _compare(
    keys: Sequence[tuple[str, str, str]],
    deltas: np.ndarray,
    config: Evaluate,
    resamples: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    if not keys:
        return []
    certainty = significance.paired_interval(
        deltas, resamples=resamples, confidence=config.confidence, rng=rng, interval=config.interval
    )
    return [
        {
            "system": system,
            "baseline": baseline,
            "metric": metric,
            "delta": float(delta),
            "ci_low": float(low),
            "ci_high": float(high),
            "p_value": float(p_value),
        }
        for (system, baseline, metric), delta, low, high, p_value in zip(
            keys, deltas.mean(axis=0), *certainty, strict=True
        )
    ]
