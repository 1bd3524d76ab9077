"""Comparison of two samples of traffic."""

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
from distilrank.drift.columns import Column, Limits
from distilrank.drift.embeddings import Encoder

SMALL = 30
EXAMPLES = 20

READ = ("query_id", "query", "title", *schemas.TRAFFIC_NUMERIC, *schemas.TRAFFIC_CATEGORICAL)
ALWAYS = ("query_id", "query", "title")
_UNITS = {"query_words": "words", "query_characters": "characters", "query_tokens": "tokens", "title_words": "words"}
_SHARES = {"unseen_words": "of the words unseen", "clicked": "clicked"}


@dataclass(frozen=True)
class Compared:
    """Two samples, compared."""

    part: dict[str, Any]
    """Of drift.json."""
    columns: list[Column]
    """Those that have values."""
    bounds: dict[str, float]
    """The distance from which each of them has drifted."""


def compare_windows(
    config: Drift,
    reference: pa.Table,
    current: pa.Table,
    encoder: Encoder | None,
    names: Sequence[str] = READ,
) -> Compared:
    """Say what differs between two samples of traffic.

    Args:
        reference: rows of TRAFFIC with a column `score` beside it; `current` likewise, scored by the same model.
        encoder: embeds the texts; None: they are not compared.
        names: the columns of TRAFFIC that both have.
    """
    queries = _query_codes(reference, current)
    compared = _columns(config, reference, current, names, queries)
    present = [column for column in compared if not column.absent]
    values = {column.name: columns.distance(column) for column in present}
    noise = columns.noise(present, config.chance)
    found = tuple(len(np.unique(side)) for side in queries)
    too_few = config.chance < 1 and min(found) < columns.FEWEST
    if too_few:
        noise = {name: max(bar, columns.beyond(values[name])) for name, bar in noise.items()}
    bounds = {column.name: max(column.threshold, noise[column.name]) for column in present}
    entries = [_entry(column, values.get(column.name), noise, bounds) for column in compared]

    notes = []
    smallest = min(reference.num_rows, current.num_rows)
    if min(found) < SMALL:
        notes.append(f"Samples of only {smallest} rows, {min(found)} queries: shifts that matter may well be missed.")
    if too_few:
        notes.append(f"Fewer than {columns.FEWEST} queries in a sample: chance explains any distance, so none counts.")
    embedding = None
    if encoder and config.embedding_rows:
        embedding = embeddings.compare_embeddings(config, reference, current, queries, encoder)
        if embedding:
            entries.append(embeddings.entry(embedding))
        else:
            notes.append(f"Embeddings not compared: fewer than {domain.FEWEST} queries in a sample.")

    counted = [entry for entry in entries if entry["value"] is not None]
    share = sum(entry["drifted"] for entry in counted) / len(counted)
    why = [entry["name"] for entry in entries if entry["drifted"] and entry["group"] in config.alarm]
    alarm = bool(why) or share > config.share
    new_queries = _new(reference, current, "query_id", "query")
    types = _new(reference, current, "product_type", "product_type") if "product_type" in names else []
    part = {
        "comparable": True,
        "share": share,
        "drifted": alarm,
        "alarm": alarm,
        "why": why,
        "rows": {"reference": reference.num_rows, "current": current.num_rows},
        "queries": {"reference": found[0], "current": found[1]},
        "columns": entries,
        "embedding": embedding,
        "examples": {"queries": [{"query": query, "rows": rows} for query, rows in new_queries[:EXAMPLES]]},
        "new_queries": [query for query, _ in new_queries[:EXAMPLES]],
        "new_query_share": sum(rows for _, rows in new_queries) / current.num_rows,
        "new_product_types": [name for name, _ in types[:EXAMPLES]],
        "note": " ".join(notes),
    }
    return Compared(part, present, bounds)


def _query_codes(reference: pa.Table, current: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The query of each row as a whole number, the same in both."""
    both = pa.chunked_array([*reference["query_id"].chunks, *current["query_id"].chunks], pa.string())
    codes = both.combine_chunks().dictionary_encode().indices.to_numpy()
    return codes[: reference.num_rows], codes[reference.num_rows :]


def _columns(
    config: Drift,
    reference: pa.Table,
    current: pa.Table,
    names: Sequence[str],
    queries: tuple[np.ndarray, np.ndarray],
) -> list[Column]:
    numeric = {name: group for name, group in schemas.TRAFFIC_NUMERIC.items() if name in names} | {"score": "score"}
    texts = {name: group for name, group in schemas.TRAFFIC_CATEGORICAL.items() if name in names}
    limits = Limits(config.numeric, config.categorical)
    of_score = Limits(config.score, config.categorical)
    return [
        *(
            columns.numeric(
                name,
                group,
                of_score if group == "score" else limits,
                (_floats(reference[name]), _floats(current[name])),
                queries,
            )
            for name, group in numeric.items()
        ),
        *(
            columns.categorical(name, group, limits, (reference[name], current[name]), queries)
            for name, group in texts.items()
        ),
    ]


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))


# Entries of drift.json --------------------------------------------------------------------------------------------


def _entry(column: Column, value: float | None, noise: dict[str, float], bounds: dict[str, float]) -> dict[str, Any]:
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
        "shift": _shift(column),
    }
    if column.kind == "numeric" and not column.absent:
        entry["reference_mean"] = float(column.reference.mean())
        entry["current_mean"] = float(column.current.mean())
    if column.kind == "categorical":
        entry["moved"] = _moved(column)
    if column.note:
        entry["note"] = column.note
    return entry


def _shift(column: Column) -> str:
    """One plain sentence on what changed."""
    if column.absent:
        return column.note
    if column.kind == "categorical":
        moved = _moved(column)
        if not moved:
            return column.note or "no category changed its share"
        return "; ".join(
            f"{row['value']} {_percent(row['current'])}, was {_percent(row['reference'])}" for row in moved
        )
    before, after = float(column.reference.mean()), float(column.current.mean())
    if column.name in _SHARES:
        return f"{_percent(after)} {_SHARES[column.name]}, was {_percent(before)}"
    unit = f" {_UNITS[column.name]}" if column.name in _UNITS else ""
    spread = (float(column.reference.std()), float(column.current.std()))
    text = f"mean {after:.3g}{unit}, was {before:.3g}"
    return (
        text if abs(spread[0] - spread[1]) < 0.1 * spread[0] else f"{text}; spread {spread[1]:.3g}, was {spread[0]:.3g}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _moved(column: Column) -> list[dict[str, Any]]:
    """The categories whose share changed most, with both shares."""
    if column.absent:
        return []
    before, after = (
        np.bincount(side, minlength=len(column.names)) / side.size for side in (column.reference, column.current)
    )
    order = sorted(
        range(len(column.names)), key=lambda place: (-abs(after[place] - before[place]), column.names[place])
    )
    return [
        {"value": column.names[place], "reference": float(before[place]), "current": float(after[place])}
        for place in order[:3]
        if after[place] != before[place]
    ]


def _new(reference: pa.Table, current: pa.Table, key: str, text: str) -> list[tuple[str, int]]:
    """What occurs in `current` under a `key` that `reference` lacks, with its rows, most frequent first."""
    fresh = pc.and_(
        pc.invert(pc.is_in(current[key], value_set=pc.unique(reference[key]))),
        pc.not_equal(pc.fill_null(current[key], ""), ""),
    )
    rows = pa.table({"key": current[key], "text": current[text]}).filter(fresh)
    counted = rows.group_by("key").aggregate([("text", "min"), ("key", "count")])
    found = zip(counted["text_min"].to_pylist(), counted["key_count"].to_pylist(), strict=True)
    return sorted(found, key=lambda item: (-item[1], item[0]))
