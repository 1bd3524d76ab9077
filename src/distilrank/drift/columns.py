"""Columns of two samples of traffic, how far apart they are, and how far apart chance alone may bring them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

STATISTICS = {
    "numeric": "Wasserstein distance / standard deviation of the reference",
    "categorical": "Jensen-Shannon distance",
}

CATEGORIES = 20
"""Categories kept apart, the most frequent of both samples together; the others are one, so that a long tail is no
drift. Of both, since the flips of `noise` must find the same categories whichever sample a row is in."""

OTHER, MISSING = "(other)", "(none)"
LEAST_SPREAD = 0.001
"""A standard deviation counts as no less than this, as in Evidently."""

FLIPS = 1000
FEWEST = 6
"""Queries that a sample must have: of n queries a share of 2 ** (1 - n) of all flips leaves things as they are, or
exchanges the samples as a whole, and reaches what was seen: 3 % at 6 queries, 6 % at 5."""
ROUNDING = 1e-5
"""Of a distance: it is computed in 64 bits, those of the flips in 32, and equal ones are within chance."""
GROUPS = 4096
"""Most groups of queries whose signs are flipped; of more queries, several share a sign."""
TINY = 1e-9  # of a share: less is a rounding error
POINTS = 256
"""Quantiles, and steps of equal width, at which distribution functions are compared for the noise."""


@dataclass(frozen=True)
class Column:
    """One column, ready to compare.

    Attributes:
        reference: float64 values without gaps, or, for a categorical column, places in `names`; `current` likewise.
        reference_query: the query of each of them, a whole number; `current_query` likewise.
        threshold: the least distance that counts as drift.
    """

    name: str
    group: str
    kind: str
    reference: np.ndarray
    current: np.ndarray
    reference_query: np.ndarray
    current_query: np.ndarray
    threshold: float
    names: tuple[str, ...] = ()
    note: str = ""

    @property
    def absent(self) -> bool:
        """Whether neither sample has a value."""
        return not (self.reference.size and self.current.size)


@dataclass(frozen=True)
class Limits:
    """The least distance that counts as drift, by kind of column."""

    numeric: float
    categorical: float


def numeric(
    name: str,
    group: str,
    limits: Limits,
    values: tuple[np.ndarray, np.ndarray],
    queries: tuple[np.ndarray, np.ndarray],
) -> Column:
    """A numeric column; where it has no spread to measure a shift by, it is compared as categories instead.

    Args:
        values: of the reference and of the current sample; what is not finite is a gap.
        queries: the query of each of them.
    """
    there = [np.isfinite(one) for one in values]
    reference, current = (one[kept].astype(np.float64) for one, kept in zip(values, there, strict=True))
    of_reference, of_current = (one[kept] for one, kept in zip(queries, there, strict=True))
    gaps = sum(int(one.size - kept.sum()) for one, kept in zip(values, there, strict=True))
    note = f"{gaps} rows without a value left out" if gaps else ""
    column = Column(name, group, "numeric", reference, current, of_reference, of_current, limits.numeric, note=note)
    if not reference.size and not current.size:
        return replace(column, note="no values, so not counted")
    if not reference.size or not current.size:
        note = "one side has no values: compared by having any"
        return _either(column, limits, (there[0], there[1]), queries, (MISSING, "a value"), note)
    constant = reference.min()
    if reference.max() == constant:
        if (current == constant).all():
            return replace(column, note=f"{constant:g} throughout")
        others = reference != constant, current != constant
        note = f"{constant:g} throughout the reference: compared by the share of rows with another value"
        return _either(column, limits, others, (of_reference, of_current), (f"{constant:g}", "other values"), note)
    return column


def _either(
    column: Column,
    limits: Limits,
    values: tuple[np.ndarray, np.ndarray],
    queries: tuple[np.ndarray, np.ndarray],
    names: tuple[str, str],
    note: str,
) -> Column:
    """The column as one of two categories: `values` tell whether the second."""
    codes = [side.astype(np.int64) for side in values]
    return Column(
        column.name, column.group, "categorical", codes[0], codes[1], *queries, limits.categorical, names, note
    )


def categorical(
    name: str,
    group: str,
    limits: Limits,
    values: tuple[pa.ChunkedArray, pa.ChunkedArray],
    queries: tuple[np.ndarray, np.ndarray],
) -> Column:
    """A column of texts; a null or an empty one is a category of its own."""
    filled = [_filled(one) for one in values]
    shares: Counter[str] = Counter()
    for one in filled:
        for entry in pc.value_counts(one).to_pylist():
            shares[entry["values"]] += entry["counts"] / len(one)
    if not shares.keys() - {MISSING}:
        none = np.empty(0)
        note = "no values, so not counted"
        return Column(name, group, "categorical", none, none, none, none, limits.categorical, note=note)
    kept = sorted(shares, key=lambda value: (-shares[value], value))[:CATEGORIES]
    known = pa.array(kept, pa.string())
    codes = [np.asarray(pc.fill_null(pc.index_in(one, value_set=known), len(kept))).astype(np.int64) for one in filled]
    seen = np.union1d(*codes)
    names = (*kept, OTHER)
    note = f"{names[seen[0]]!r} throughout" if len(seen) == 1 else ""
    return Column(name, group, "categorical", codes[0], codes[1], *queries, limits.categorical, names, note)


def _filled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = pc.fill_null(column.cast(pa.string()), MISSING)
    return pc.if_else(pc.equal(text, ""), MISSING, text)


def distance(column: Column) -> float:
    """How far apart the two samples are, by all of their rows; 0 if they are alike."""
    if column.kind == "numeric":
        return float(wasserstein_distance(column.reference, column.current) / _spread(column))
    counts = [np.bincount(side, minlength=len(column.names)) for side in (column.reference, column.current)]
    return float(np.nan_to_num(jensenshannon(*counts)))  # the square root of a rounding error below 0


def _spread(column: Column) -> float:
    return max(float(column.reference.std()), LEAST_SPREAD)


def beyond(distance: float) -> float:
    """The least distance that is larger by more than rounding."""
    return distance * (1 + ROUNDING)


def noise(columns: Sequence[Column], chance: float) -> dict[str, float]:
    """The distances, just above what chance reaches, by column: it gets to any of them with probability `chance`.

    Rows of one query resemble each other, so the unit that chance moves about is the query: with probability one half
    its rows of both samples change places. Were the two periods alike, all outcomes of such flips would be as likely
    as what was seen. A query that is as frequent in both samples thus adds no noise, however many rows it has; and one
    that is frequent in a single sample may be there by chance. The same flips serve all columns, whose bars are then
    raised together until no more than `chance` of the flips reaches any of them (Westfall and Young 1993), so that more
    columns do not mean more false alarms.

    A numeric column's distance is held against its own flips. Of a categorical one the category that moved furthest
    for its noise counts, since a new category of many queries would else drown in what a few frequent queries do to
    all the others; the bar is the distance at which that category would be just beyond chance.

    To do this in products of matrices, a flipped difference of distributions is written as the sum over queries of
    what each adds to the difference, times its sign; what it adds is taken relative to its number of rows, as for any
    ratio of sums.

    Args:
        columns: none of them absent.
        chance: in (0, 1]; 1: no such bars, all are 0.
    """
    if chance == 1 or not columns:
        return dict.fromkeys((column.name for column in columns), 0.0)
    rng = np.random.default_rng(0)  # the bar must be the same whenever the same samples are compared
    group = _groups(columns, rng)
    signs = rng.choice(np.array([-1, 1], np.float32), (FLIPS, int(group.max()) + 1))
    seen, flipped = zip(*(_flips(column, group, signs) for column in columns), strict=True)
    reached = np.stack(flipped, axis=1)
    bars = np.quantile(reached, 1 - chance, axis=0)
    relative = np.divide(reached, bars, out=np.zeros_like(reached), where=bars > 0)
    bars *= max(float(np.quantile(relative.max(axis=1), 1 - chance)), 1.0)
    return {
        column.name: beyond(
            float(bar) if column.kind == "numeric" else (distance(column) * float(bar) / one if one else 0.0)
        )
        for column, bar, one in zip(columns, bars, seen, strict=True)
    }


def _groups(columns: Sequence[Column], rng: np.random.Generator) -> np.ndarray:
    """The group of each query."""
    count = 1 + max(int(side.max()) for column in columns for side in (column.reference_query, column.current_query))
    return np.arange(count) if count <= GROUPS else rng.integers(0, GROUPS, count)


def _flips(column: Column, group: np.ndarray, signs: np.ndarray) -> tuple[float, np.ndarray]:
    """What was seen, and what it is after each of the flips, float64, shape (flips,).

    Of a numeric column: the distance (seen: 0, it is computed elsewhere). Of a categorical one: the largest change of a
    category's share, in standard deviations of its flips.
    """
    if column.kind == "numeric":
        points = _points(column)
        places, width = [np.searchsorted(points, side) for side in (column.reference, column.current)], len(points)
    else:
        places, width = [column.reference, column.current], len(column.names)
    shares = [
        np.bincount(group[query] * width + place, minlength=signs.shape[1] * width).reshape(-1, width) / len(place)
        for place, query in zip(places, (column.reference_query, column.current_query), strict=True)
    ]
    both = (shares[0].sum(axis=0) + shares[1].sum(axis=0)) / 2
    added = shares[0] - shares[1]
    added -= added.sum(axis=1, keepdims=True) * both
    difference = (signs @ added.astype(np.float32)).astype(np.float64)
    if column.kind == "numeric":
        return 0.0, np.abs(np.cumsum(difference, axis=1)[:, :-1]) @ np.diff(points) / _spread(column)
    deviation = np.sqrt((added**2).sum(axis=0))
    moves = deviation > TINY
    if not moves.any():
        return 0.0, np.zeros(len(signs))
    seen = np.abs(added.sum(axis=0)[moves]) / deviation[moves]
    return float(seen.max()), (np.abs(difference[:, moves]) / deviation[moves]).max(axis=1)


def _points(column: Column) -> np.ndarray:
    """Where to compare distribution functions: at each value if there are few, else close in the bulk and the tails."""
    values = np.unique(np.concatenate([column.reference, column.current]))
    if len(values) <= 2 * POINTS:
        return values
    quantiles = np.quantile(np.concatenate([column.reference, column.current]), np.linspace(0, 1, POINTS))
    return np.union1d(quantiles, np.linspace(values[0], values[-1], POINTS))
