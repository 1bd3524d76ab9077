"""Comparison of two samples of traffic, column by column: what drifted, by how much, and what is new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilrank.config import Drift
from distilrank.core import schemas
from distilrank.drift import columns, domain, embeddings
from distilrank.drift.columns import Column, ColumnSpec, Limits
from distilrank.drift.embeddings import Encoder

FEW_QUERIES = 30
"""A sample with fewer queries carries a note: it may miss shifts that matter."""
EXAMPLES = 20
MOVED_CATEGORIES = 3

REQUIRED_COLUMNS = ("query_id", "query", "title")
COMPARED_COLUMNS = (*REQUIRED_COLUMNS, *schemas.TRAFFIC_NUMERIC, *schemas.TRAFFIC_CATEGORICAL)
_UNITS = {"query_words": "words", "query_characters": "characters", "query_tokens": "tokens", "title_words": "words"}
_SHARES = {"unseen_words": "of the words unseen", "clicked": "clicked"}


@dataclass(frozen=True)
class WindowComparison:
    """Result of comparing two samples of traffic."""

    part: dict[str, Any]
    """The entry `candidate` or `champion` of drift.json."""
    columns: list[Column]
    """The columns that have values."""
    bounds: dict[str, float]
    """Distance from which each of these columns counts as drifted."""

    def add_note(self, text: str) -> None:
        """Append a sentence to the note that readers see."""
        self.part["note"] = f"{self.part['note']} {text}".strip()


def compare_windows(
    config: Drift,
    reference: pa.Table,
    current: pa.Table,
    encoder: Encoder | None,
    names: Sequence[str] = COMPARED_COLUMNS,
) -> WindowComparison:
    """Compare two samples of traffic.

    Args:
        config: the distances that count as drift, and which columns raise the alarm.
        reference: rows of TRAFFIC with an additional column `score`.
        current: the same, scored by the same model.
        encoder: embeds the texts; None: the texts are not compared.
        names: the columns of TRAFFIC that both tables have.
    """
    query_codes = _encode_queries(reference, current)
    prepared = _prepare_columns(config, reference, current, names, query_codes)
    present = [column for column in prepared if not column.is_absent]
    distances = {column.name: columns.distance(column) for column in present}
    noise = columns.noise_bounds(present, config.chance)
    query_counts = tuple(len(np.unique(codes)) for codes in query_codes)
    has_too_few_queries = config.chance < 1 and min(query_counts) < columns.MIN_QUERIES
    if has_too_few_queries:
        noise = {name: max(bound, columns.just_above(distances[name])) for name, bound in noise.items()}
    bounds = {column.name: max(column.threshold, noise[column.name]) for column in present}
    entries = [_column_entry(column, distances.get(column.name), noise, bounds) for column in prepared]

    notes = []
    if min(query_counts) < FEW_QUERIES:
        rows = min(reference.num_rows, current.num_rows)
        notes.append(f"Samples of only {rows} rows, {min(query_counts)} queries: shifts that matter may be missed.")
    if has_too_few_queries:
        notes.append(
            f"Fewer than {columns.MIN_QUERIES} queries in a sample: chance explains any distance, so none counts."
        )
    embedding = None
    if encoder and config.embedding_rows:
        embedding = embeddings.compare_embeddings(config, reference, current, query_codes, encoder)
        if embedding:
            entries.append(embeddings.column_entry(embedding))
        else:
            notes.append(f"Embeddings not compared: fewer than {domain.MIN_QUERIES} queries in a sample.")

    compared = [entry for entry in entries if entry["value"] is not None]
    share = sum(entry["drifted"] for entry in compared) / len(compared)
    why = [entry["name"] for entry in entries if entry["drifted"] and entry["group"] in config.alarm]
    alarm = bool(why) or share > config.share
    new_queries = _new_values(reference, current, "query_id", "query")
    new_types = _new_values(reference, current, "product_type", "product_type") if "product_type" in names else []
    part = {
        "comparable": True,
        "share": share,
        "drifted": alarm,
        "alarm": alarm,
        "why": why,
        "rows": {"reference": reference.num_rows, "current": current.num_rows},
        "queries": {"reference": query_counts[0], "current": query_counts[1]},
        "columns": entries,
        "embedding": embedding,
        "examples": {"queries": [{"query": query, "rows": rows} for query, rows in new_queries[:EXAMPLES]]},
        "new_queries": [query for query, _ in new_queries[:EXAMPLES]],
        "new_query_share": sum(rows for _, rows in new_queries) / current.num_rows,
        "new_product_types": [name for name, _ in new_types[:EXAMPLES]],
        "note": " ".join(notes),
    }
    return WindowComparison(part, present, bounds)


def not_comparable(note: str) -> dict[str, Any]:
    """The entry of drift.json where there is nothing to compare; `note` says why."""
    counts = {"reference": 0, "current": 0}
    return {
        "comparable": False,
        "share": 0.0,
        "drifted": False,
        "alarm": False,
        "why": [],
        "rows": counts,
        "queries": counts,
        "columns": [],
        "embedding": None,
        "examples": {"queries": []},
        "new_queries": [],
        "new_query_share": 0.0,
        "new_product_types": [],
        "note": note,
    }


def drifted_columns(part: dict[str, Any]) -> list[str]:
    """Names of the drifted columns of an entry of drift.json."""
    return [column["name"] for column in part["columns"] if column["drifted"]]


def _encode_queries(reference: pa.Table, current: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Integer code of each row's query; the same query has the same code in both samples."""
    query_ids = pa.chunked_array([*reference["query_id"].chunks, *current["query_id"].chunks], pa.string())
    codes = query_ids.combine_chunks().dictionary_encode().indices.to_numpy()
    return codes[: reference.num_rows], codes[reference.num_rows :]


def _prepare_columns(
    config: Drift,
    reference: pa.Table,
    current: pa.Table,
    names: Sequence[str],
    query_codes: tuple[np.ndarray, np.ndarray],
) -> list[Column]:
    numeric = {name: group for name, group in schemas.TRAFFIC_NUMERIC.items() if name in names} | {"score": "score"}
    categorical = {name: group for name, group in schemas.TRAFFIC_CATEGORICAL.items() if name in names}
    limits = Limits(config.numeric, config.categorical)
    score_limits = Limits(config.score, config.categorical)
    prepared = []
    for name, group in numeric.items():
        values = _floats(reference[name]), _floats(current[name])
        column_limits = score_limits if group == "score" else limits
        prepared.append(columns.numeric_column(ColumnSpec(name, group, column_limits, query_codes), values))
    for name, group in categorical.items():
        texts = reference[name], current[name]
        prepared.append(columns.categorical_column(ColumnSpec(name, group, limits, query_codes), texts))
    return prepared


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))


def _new_values(reference: pa.Table, current: pa.Table, key: str, text: str) -> list[tuple[str, int]]:
    """The texts of `current` whose `key` does not occur in `reference`, with their rows, most frequent first."""
    is_new = pc.and_(
        pc.invert(pc.is_in(current[key], value_set=pc.unique(reference[key]))),
        pc.not_equal(pc.fill_null(current[key], ""), ""),
    )
    rows = pa.table({"key": current[key], "text": current[text]}).filter(is_new)
    counts = rows.group_by("key").aggregate([("text", "min"), ("key", "count")])
    pairs = zip(counts["text_min"].to_pylist(), counts["key_count"].to_pylist(), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


# Columns of drift.json --------------------------------------------------------------------------------------------


def _column_entry(
    column: Column, value: float | None, noise: dict[str, float], bounds: dict[str, float]
) -> dict[str, Any]:
    bound = bounds.get(column.name, column.threshold)
    entry: dict[str, Any] = {
        "name": column.name,
        "group": column.group,
        "kind": column.kind,
        "statistic": columns.STATISTICS[column.kind],
        "value": value,
        "threshold": bound,
        "noise": noise.get(column.name, 0.0),
        "drifted": value is not None and value >= bound,
        "shift": _describe_shift(column),
    }
    if column.kind == "numeric" and not column.is_absent:
        entry["reference_mean"] = float(column.reference.mean())
        entry["current_mean"] = float(column.current.mean())
    if column.kind == "categorical":
        entry["moved"] = _moved_categories(column)
    if column.note:
        entry["note"] = column.note
    return entry


def _describe_shift(column: Column) -> str:
    """One plain sentence on what changed."""
    if column.is_absent:
        return column.note
    if column.kind == "categorical":
        moved = _moved_categories(column)
        if not moved:
            return column.note or "no category changed its share"
        return "; ".join(
            f"{row['value']} {_percent(row['current'])}, was {_percent(row['reference'])}" for row in moved
        )
    reference_mean, current_mean = float(column.reference.mean()), float(column.current.mean())
    if column.name in _SHARES:
        return f"{_percent(current_mean)} {_SHARES[column.name]}, was {_percent(reference_mean)}"
    unit = f" {_UNITS[column.name]}" if column.name in _UNITS else ""
    reference_deviation, current_deviation = float(column.reference.std()), float(column.current.std())
    text = f"mean {current_mean:.3g}{unit}, was {reference_mean:.3g}"
    if abs(reference_deviation - current_deviation) < 0.1 * reference_deviation:
        return text
    return f"{text}; standard deviation {current_deviation:.3g}, was {reference_deviation:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _moved_categories(column: Column) -> list[dict[str, Any]]:
    """The categories whose share changed most, with both shares."""
    if column.is_absent:
        return []
    reference, current = (
        np.bincount(sample, minlength=len(column.names)) / sample.size for sample in (column.reference, column.current)
    )
    order = sorted(
        range(len(column.names)), key=lambda index: (-abs(current[index] - reference[index]), column.names[index])
    )
    return [
        {"value": column.names[index], "reference": float(reference[index]), "current": float(current[index])}
        for index in order[:MOVED_CATEGORIES]
        if current[index] != reference[index]
    ]
