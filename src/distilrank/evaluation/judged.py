"""Judged pairs as arrays for the metrics, and the scores of a system on them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distilrank.core import artifacts, schemas, sketch
from distilrank.core.errors import InputError
from distilrank.evaluation import metrics, trec

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class System:
    """Scores of one system on the judged rows."""

    score: np.ndarray
    """Float32, shape (rows,); higher is more relevant."""

    probability: np.ndarray | None = None
    """Calibrated probability of relevance in [0, 1], shape (rows,); None if the system has none."""


@dataclass(frozen=True)
class Judged:
    """Judged rows of one split, usually the test split."""

    table: pa.Table
    query_ids: np.ndarray
    """Id of each query, shape (queries,), sorted."""
    query: np.ndarray
    """Index of each row's query, shape (rows,)."""
    target: np.ndarray
    """Soft target, float64, shape (rows,)."""
    grade: np.ndarray
    """Gain in whole hundredths, shape (rows,)."""
    relevant: np.ndarray
    """Whether each row counts as relevant by its soft target, bool, shape (rows,)."""
    relevant_grade: int
    """Smallest grade of a relevant row; it is above that of any other row."""
    ranked: np.ndarray
    """Indices of the queries whose products differ in gain, ascending, shape (ranked,)."""
    protocol: dict[str, Any]
    """Content of protocol.json."""
    judgements: int
    """Number of judged pairs in all splits together."""

    @classmethod
    def read(cls, source: Path) -> Judged:
        """Read the test split of a `judgements` folder, or the split whose Parquet file in such a folder is `source`.

        The files are checked against the folder's seal, if it has one.

        Raises:
            InputError: a file is damaged, or the split is empty, has a pair twice, a target outside [0, 1], or no query
                to rank.
        """
        path = source if source.suffix == ".parquet" else source / "test.parquet"
        folder = path.parent
        if path.is_file() and artifacts.is_sealed(folder):
            artifacts.verify(folder, [path.name, "protocol.json"])
        table = schemas.read(path, schemas.JUDGED)
        protocol = artifacts.read_json(folder / "protocol.json")
        relevant_from = protocol.get("relevant_from")
        if not isinstance(relevant_from, int | float) or not 0 < relevant_from <= 1:
            raise InputError(
                f"{folder / 'protocol.json'}: relevant_from is {relevant_from!r}, expected a number in (0, 1]"
            )
        if not table.num_rows:
            raise InputError(f"{path}: no rows, expected judged pairs; raise prepare.test_share or add judgements")
        target = table.column("target").to_numpy().astype(np.float64)
        outside = np.flatnonzero(~((target >= 0) & (target <= 1)))
        if len(outside):
            raise InputError(f"{path}: row {outside[0] + 1}: target is {target[outside[0]]}, expected 0 to 1")
        query_ids, query = _encode(table.column("query_id"))
        products, product = _encode(table.column("product_id"))
        _, first, count = np.unique(query * len(products) + product, return_index=True, return_counts=True)
        if count.max() > 1:
            repeated = table.slice(int(first[count > 1].min()), 1).to_pylist()[0]
            raise InputError(
                f"{path}: query {repeated['query']!r} and product {repeated['product_id']!r} are judged more than once,"
                " expected one row per pair"
            )
        grade = metrics.grades(table.column("gain").to_numpy())
        relevant = metrics.grades(target) >= metrics.grades([relevant_from])[0]
        min_relevant = int(grade[relevant].min()) if relevant.any() else int(metrics.grades([relevant_from])[0])
        if (grade[~relevant] >= min_relevant).any():
            raise InputError(
                f"{path}: a pair that is not relevant gains {grade[~relevant].max() / 100:g}, a relevant one "
                f"{min_relevant / 100:g}, expected relevant pairs to gain more"
            )
        if len(table) > 1 and grade.min() == grade.max():
            raise InputError(
                f"{path}: judgements without variance: all {len(table)} gain {grade[0] / 100:g}, expected pairs that "
                "are judged differently"
            )
        ranked = np.flatnonzero(metrics.rankable(query, grade))
        if not len(ranked):
            reason = " (each has a single product)" if len(query_ids) == len(table) else ""
            raise InputError(
                f"{path}: none of {len(query_ids)} queries has products of different rating{reason}, expected some to"
                " rank"
            )
        splits = [folder / f"{split}.parquet" for split in SPLITS]
        judgements = sum(pq.read_metadata(split).num_rows for split in splits if split.is_file())
        return cls(table, query_ids, query, target, grade, relevant, min_relevant, ranked, protocol, judgements)

    @cached_property
    def rows(self) -> np.ndarray:
        """Indices of the rows of ranked queries."""
        return np.flatnonzero(np.isin(self.query, self.ranked))

    @cached_property
    def product_ids(self) -> list[str]:
        """Product of each row."""
        return self.table.column("product_id").to_pylist()

    @cached_property
    def tie(self) -> np.ndarray:
        """Tie-break rank of each row, int64, shape (rows,): among equal scores, the larger rank comes first."""
        return trec.tie_ranks(self.product_ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of query_id, product_id and target of all rows, independent of their order."""
        names = ["query_id", "product_id"]
        content = hashlib.sha256()
        rows = self.table.select([*names, "target"]).sort_by([(name, "ascending") for name in names])
        for batch in rows.to_batches():
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                content.update("{}\0{}\0{:.6f}\n".format(*row).encode())
        return content.hexdigest()

    @cached_property
    def sketch(self) -> str:
        """Sketch of the ranked queries, from which the registry estimates how far two test sets overlap."""
        return sketch.from_ids(self.query_ids[self.ranked].tolist())

    def per_query(self, column: str) -> np.ndarray:
        """Value of each query in a column that is constant within a query, shape (queries,)."""
        first = np.unique(self.query, return_index=True)[1]
        return np.array(self.table.column(column).to_pylist(), object)[first]


def _encode(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct texts of a column, sorted by code point, and the index of each row's value among them."""
    encoded = column.combine_chunks().dictionary_encode()
    values = encoded.dictionary
    order = pc.array_sort_indices(values).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return np.array(values.take(pa.array(order)).to_pylist(), str), rank[encoded.indices.to_numpy()]
