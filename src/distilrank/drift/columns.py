"""Columns of two samples of traffic: the distance between the samples, and the distance that chance alone produces."""

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

MAX_CATEGORIES = 20
"""Categories that are counted separately: the most frequent of both samples together. The rest become one category, so
that a long tail does not count as drift. Both samples choose them, since the flips of `noise_bounds` must see the same
categories whichever sample a row is in."""

OTHER, MISSING = "(other)", "(none)"
MIN_DEVIATION = 0.001
"""Lower bound of the standard deviation that a distance is divided by, as in Evidently."""

FLIPS = 1000
MIN_QUERIES = 6
"""Queries that a sample must have. With n queries, a share of 2 ** (1 - n) of all flips leaves everything unchanged or
swaps the samples as a whole, and so reaches the observed distance: 3 % with 6 queries, 6 % with 5."""
ROUNDING = 1e-5
"""Relative rounding error of a distance: it is computed in 64 bits, the flips in 32; equal ones are within chance."""
MAX_GROUPS = 4096
"""Largest number of independent signs; with more queries, several share a sign."""
MIN_SHARE = 1e-9  # a smaller share is a rounding error
GRID_POINTS = 256
"""Quantiles, and steps of equal width, at which distribution functions are compared for the noise."""


@dataclass(frozen=True)
class Column:
    """One column of both samples, ready to compare.

    Attributes:
        group: what the column is about: query, product, clicks or score.
        kind: `numeric` or `categorical`.
        reference: float64 values without gaps, or, for a categorical column, indices into `names`, shape (n,).
        current: the same of the current sample, shape (m,).
        reference_query: integer code of the query of each value, shape (n,).
        current_query: integer code of the query of each value, shape (m,).
        threshold: smallest distance that counts as drift.
        names: the categories.
        note: anything unusual about how the column is compared.
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
    def is_absent(self) -> bool:
        """Whether a sample has no values, so that there is no distance."""
        return not (self.reference.size and self.current.size)


@dataclass(frozen=True)
class Limits:
    """Smallest distance that counts as drift, by kind of column."""

    numeric: float
    categorical: float


@dataclass(frozen=True)
class ColumnSpec:
    """Description of a column, from which `numeric_column` or `categorical_column` prepares it.

    Attributes:
        group: what the column is about: query, product, clicks or score.
        limits: smallest distances that count as drift.
        queries: integer codes of the queries of the reference and of the current sample.
    """

    name: str
    group: str
    limits: Limits
    queries: tuple[np.ndarray, np.ndarray]


def numeric_column(spec: ColumnSpec, values: tuple[np.ndarray, np.ndarray]) -> Column:
    """Prepare a numeric column. A reference without spread has no unit of distance, so it is compared as categories.

    Args:
        spec: description of the column.
        values: values of the reference and of the current sample; a value that is not finite is a gap.
    """
    limits, queries = spec.limits, spec.queries
    is_finite = [np.isfinite(sample) for sample in values]
    reference, current = (sample[mask].astype(np.float64) for sample, mask in zip(values, is_finite, strict=True))
    reference_query, current_query = (codes[mask] for codes, mask in zip(queries, is_finite, strict=True))
    gaps = sum(int(mask.size - mask.sum()) for mask in is_finite)
    note = f"{gaps} rows without a value left out" if gaps else ""
    column = Column(
        spec.name, spec.group, "numeric", reference, current, reference_query, current_query, limits.numeric, note=note
    )
    if not reference.size and not current.size:
        return replace(column, note="no values, so not counted")
    if not reference.size or not current.size:
        note = "one sample has no values: compared by the share of rows with a value"
        return _binary_column(column, limits, (is_finite[0], is_finite[1]), queries, (MISSING, "a value"), note)
    constant = reference.min()
    if reference.max() == constant:
        if (current == constant).all():
            return replace(column, note=f"{constant:g} throughout")
        differs = reference != constant, current != constant
        note = f"{constant:g} throughout the reference: compared by the share of rows with another value"
        names = f"{constant:g}", "other values"
        return _binary_column(column, limits, differs, (reference_query, current_query), names, note)
    return column


def _binary_column(
    column: Column,
    limits: Limits,
    is_second: tuple[np.ndarray, np.ndarray],
    queries: tuple[np.ndarray, np.ndarray],
    names: tuple[str, str],
    note: str,
) -> Column:
    """The column as two categories; `is_second` says which rows of each sample are in the second."""
    reference, current = (mask.astype(np.int64) for mask in is_second)
    return Column(
        column.name, column.group, "categorical", reference, current, *queries, limits.categorical, names, note
    )


def categorical_column(spec: ColumnSpec, values: tuple[pa.ChunkedArray, pa.ChunkedArray]) -> Column:
    """Prepare a column of texts; null and the empty text together are a separate category.

    Args:
        spec: description of the column.
        values: texts of the reference and of the current sample.
    """
    name, group, limit = spec.name, spec.group, spec.limits.categorical
    samples = [_fill_missing(sample) for sample in values]
    shares: Counter[str] = Counter()
    for sample in samples:
        for entry in pc.value_counts(sample).to_pylist():
            shares[entry["values"]] += entry["counts"] / len(sample)
    if not shares.keys() - {MISSING}:
        empty = np.empty(0)
        note = "no values, so not counted"
        return Column(name, group, "categorical", empty, empty, empty, empty, limit, note=note)
    frequent = sorted(shares, key=lambda value: (-shares[value], value))[:MAX_CATEGORIES]
    categories = pa.array(frequent, pa.string())
    reference, current = (
        np.asarray(pc.fill_null(pc.index_in(sample, value_set=categories), len(frequent))).astype(np.int64)
        for sample in samples
    )
    occurring = np.union1d(reference, current)
    names = (*frequent, OTHER)
    note = f"{names[occurring[0]]!r} throughout" if len(occurring) == 1 else ""
    return Column(name, group, "categorical", reference, current, *spec.queries, limit, names, note)


def _fill_missing(column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = pc.fill_null(column.cast(pa.string()), MISSING)
    return pc.if_else(pc.equal(text, ""), MISSING, text)


def distance(column: Column) -> float:
    """Distance between the two samples, over all of their rows; 0 if their distributions are equal."""
    if column.kind == "numeric":
        return float(wasserstein_distance(column.reference, column.current) / _deviation(column))
    counts = [np.bincount(sample, minlength=len(column.names)) for sample in (column.reference, column.current)]
    return float(np.nan_to_num(jensenshannon(*counts)))  # NaN is the square root of a rounding error below 0


def _deviation(column: Column) -> float:
    return max(float(column.reference.std()), MIN_DEVIATION)


def just_above(distance: float) -> float:
    """The smallest distance that exceeds `distance` by more than rounding."""
    return distance * (1 + ROUNDING)


def noise_bounds(columns: Sequence[Column], chance: float) -> dict[str, float]:
    """The distance of each column that chance alone reaches in any of the columns with probability `chance`.

    Rows of one query resemble each other, so the unit of a permutation is the query: with probability one half, its
    rows in the two samples are swapped. If the two periods were alike, all outcomes of such flips would be as likely as
    the observed one. A query that is equally frequent in both samples therefore adds no noise, however many rows it
    has, while a query that is frequent in only one sample may be there by chance. All columns share the flips, and
    their bounds are then raised together until at most a share `chance` of the flips reaches any of them (Westfall and
    Young 1993), so that more columns do not mean more false alarms.

    The distance of a numeric column is compared with its own flips. For a categorical column the category that moved
    furthest relative to its noise counts; otherwise a new category of many queries would drown in what a few frequent
    queries do to all the others. The bound is the distance at which that category would be just beyond chance.

    Everything is a matrix product: the difference of two flipped distributions is the sum over queries of what each
    adds to the difference, times its sign. What a query adds is relative to its number of rows, as for any ratio of
    sums.

    Args:
        columns: none of them absent.
        chance: in (0, 1]; 1 switches the bounds off (all are 0).

    Returns:
        Just above that distance, by column name.
    """
    if chance == 1 or not columns:
        return dict.fromkeys((column.name for column in columns), 0.0)
    rng = np.random.default_rng(0)  # comparing the same samples again must give the same bounds
    group = _sign_groups(columns, rng)
    signs = rng.choice(np.array([-1, 1], np.float32), (FLIPS, int(group.max()) + 1))
    observed, flipped = zip(*(_flip(column, group, signs) for column in columns), strict=True)
    reached = np.stack(flipped, axis=1)
    bounds = np.quantile(reached, 1 - chance, axis=0)
    relative = np.divide(reached, bounds, out=np.zeros_like(reached), where=bounds > 0)
    bounds *= max(float(np.quantile(relative.max(axis=1), 1 - chance)), 1.0)
    noise = {}
    for column, bound, moved in zip(columns, bounds.tolist(), observed, strict=True):
        if column.kind == "categorical":
            bound = distance(column) * bound / moved if moved else 0.0
        noise[column.name] = just_above(bound)
    return noise


def _sign_groups(columns: Sequence[Column], rng: np.random.Generator) -> np.ndarray:
    """Index of the sign that each query shares, shape (queries,)."""
    queries = 1 + max(
        int(codes.max()) for column in columns for codes in (column.reference_query, column.current_query)
    )
    return np.arange(queries) if queries <= MAX_GROUPS else rng.integers(0, MAX_GROUPS, queries)


def _flip(column: Column, group: np.ndarray, signs: np.ndarray) -> tuple[float, np.ndarray]:
    """The observed statistic, and the statistic after each of the flips, float64, shape (flips,).

    For a numeric column the statistic is the distance (the observed one is 0 here: `distance` computes it). For a
    categorical column it is the largest change of a category's share, in standard deviations of its flips.

    Args:
        column: not absent.
        group: index of each query's sign, shape (queries,).
        signs: -1 or 1, float32, shape (flips, groups).
    """
    if column.kind == "numeric":
        points = _grid(column)
        bins, width = [np.searchsorted(points, sample) for sample in (column.reference, column.current)], len(points)
    else:
        bins, width = [column.reference, column.current], len(column.names)
    shares = [
        np.bincount(group[query] * width + index, minlength=signs.shape[1] * width).reshape(-1, width) / len(index)
        for index, query in zip(bins, (column.reference_query, column.current_query), strict=True)
    ]
    mean_shares = (shares[0].sum(axis=0) + shares[1].sum(axis=0)) / 2
    added = shares[0] - shares[1]
    added -= added.sum(axis=1, keepdims=True) * mean_shares
    difference = (signs @ added.astype(np.float32)).astype(np.float64)
    if column.kind == "numeric":
        return 0.0, np.abs(np.cumsum(difference, axis=1)[:, :-1]) @ np.diff(points) / _deviation(column)
    deviation = np.sqrt((added**2).sum(axis=0))
    moves = deviation > MIN_SHARE
    if not moves.any():
        return 0.0, np.zeros(len(signs))
    observed = np.abs(added.sum(axis=0)[moves]) / deviation[moves]
    return float(observed.max()), (np.abs(difference[:, moves]) / deviation[moves]).max(axis=1)


def _grid(column: Column) -> np.ndarray:
    """Points at which to compare distribution functions: every value if few, else dense in the bulk and the tails."""
    values = np.unique(np.concatenate([column.reference, column.current]))
    if len(values) <= 2 * GRID_POINTS:
        return values
    quantiles = np.quantile(np.concatenate([column.reference, column.current]), np.linspace(0, 1, GRID_POINTS))
    return np.union1d(quantiles, np.linspace(values[0], values[-1], GRID_POINTS))
