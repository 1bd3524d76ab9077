"""Evidently's page on two samples of traffic, and the snapshot that a workspace takes."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset

from distilrank.drift.columns import Column

METHODS = {"numeric": "wasserstein", "categorical": "jensenshannon"}
LESS_THAN = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}"
_RANDOM = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}|metric_[0-9a-f]{32}")


@dataclass(frozen=True)
class Pages:
    """Evidently's page (HTML) and snapshot (JSON) of two samples; the same samples give the same texts."""

    page: str
    snapshot: str


def render(
    columns: Sequence[Column],
    bounds: Mapping[str, float],
    share: float,
    rows: int,
    *,
    title: str,
    caption: str,
    notes: Sequence[str],
) -> Pages:
    """Render Evidently's page, with a heading of ours above it, and its snapshot.

    Args:
        columns: none of them absent.
        bounds: distance from which each column counts as drifted.
        share: share of drifted columns above which Evidently calls the data set drifted.
        rows: largest number of rows of each sample that Evidently gets; more are sampled with a fixed seed.
        title: heading.
        caption: what is compared.
        notes: lines below the caption.
    """
    definition = DataDefinition(
        numerical_columns=[column.name for column in columns if column.kind == "numeric"],
        categorical_columns=[column.name for column in columns if column.kind == "categorical"],
    )

    def dataset(side: str) -> Dataset:
        frame = pd.DataFrame({column.name: pd.Series(_sampled_values(column, side, rows)) for column in columns})
        return Dataset.from_pandas(frame, data_definition=definition)

    preset = DataDriftPreset(
        columns=[column.name for column in columns],
        per_column_method={column.name: METHODS[column.kind] for column in columns},
        per_column_threshold={column.name: bounds[column.name] for column in columns},
        drift_share=share,
    )
    largest = max(max(column.reference.size, column.current.size) for column in columns)
    if largest > rows:
        notes = [*notes, f"This page shows at most {rows:,} rows of each sample; drift.json is computed from all."]
    with np.errstate(divide="ignore", invalid="ignore"):  # Evidently also correlates columns, constant ones too
        snapshot = Report([preset], include_tests=True).run(
            dataset("current"), dataset("reference"), timestamp=datetime(1970, 1, 1)
        )
    page = _repeatable(snapshot.get_html_str(as_iframe=False))
    return Pages(_with_heading(page, title, caption, notes), _repeatable(snapshot.dumps()))


def _sampled_values(column: Column, side: str, rows: int) -> np.ndarray:
    values = getattr(column, side)
    if len(values) > rows:
        values = values[np.sort(np.random.default_rng(0).choice(len(values), rows, replace=False))]
    if column.kind == "numeric":
        return values
    # Evidently copies names of categories unescaped into a script and into labels.
    return np.array([name.replace("<", LESS_THAN) for name in column.names], dtype=object)[values]


def _repeatable(text: str) -> str:
    """Replace random widget identifiers by their order of appearance, so that the folder's digest is repeatable."""
    names: dict[str, str] = {}
    return _RANDOM.sub(lambda match: names.setdefault(match[0], f"widget_{len(names)}"), text)


def _with_heading(page: str, title: str, caption: str, notes: Sequence[str]) -> str:
    lines = "".join(f"<p style='margin:4px 0'>{html.escape(text)}</p>" for text in (caption, *notes))
    heading = (
        "<header style='font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:24px 24px 0;color:#444'>"
        f"<h1 style='font-size:22px;color:#111;margin:0'>{html.escape(title)}</h1>{lines}</header>"
    )
    page = page.replace("<head>", f"<head><title>{html.escape(title)}</title>", 1)
    return page.replace("<body>", f"<body>{heading}", 1).lstrip()
