"""Two questions about drift, kept apart; the only module that imports Evidently.

*Candidate*: does what the candidate learned from still represent the traffic that it will meet? Training window
against newest traffic, the candidate's own scores on both: this can refuse a promotion. *Champion*: has traffic moved
away from the champion? Its stored reference against newest traffic, its own scores on both: this only reports.

The distances are effect sizes, so that a large sample does not turn a trifle into drift: for numeric columns the
Wasserstein distance over the reference's standard deviation (0.1: values moved by a tenth of it on average), for
categorical ones the Jensen-Shannon distance (natural logarithm, 0 to 0.83; 0.1: 3 % of the rows went to a category
that is new, or one of 50 % became one of 64 %).

Small samples differ by chance alone. Two samples of the same skewed numeric distribution, and of the same 21
categories with shares as 1/rank, gave (500 draws; median and 99th percentile, then how often 0.1 was reached):

    rows of each   Wasserstein           Jensen-Shannon
             200   0.11  0.25   62 %     0.16  0.23   99 %
             500   0.07  0.17   20 %     0.10  0.14   48 %
            1000   0.05  0.12    3 %     0.07  0.10    0 %
            2000   0.04  0.09    0 %     0.05  0.07    0 %

Hence the second bar, `chance`: a distance also has to be one that shuffling the rows between the two samples seldom
reaches. Rows of one search resemble each other, which shuffling ignores: samples that hold whole result lists are
noisier than that bar says.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset
from scipy.spatial.distance import jensenshannon

from distilrank import artifacts, progress, records
from distilrank import registry as registries
from distilrank.config import Drift, Registry
from distilrank.errors import InputError

METHODS = {"numeric": "wasserstein", "categorical": "jensenshannon"}
STATISTICS = {
    "numeric": "Wasserstein distance / standard deviation of the reference",
    "categorical": "Jensen-Shannon distance",
}

CATEGORIES = 20
"""Categories kept apart, the most frequent of the reference; the others are one, so that a long tail is no drift."""

OTHER, NONE = "(other)", "(none)"
LESS = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}"
SHUFFLES = 400
SMALL = 30
EXAMPLES = 20


@dataclass(frozen=True)
class Column:
    """One column, ready to compare; `reference` and `current` hold floats or category names, without gaps."""

    name: str
    kind: str
    reference: np.ndarray
    current: np.ndarray
    threshold: float
    note: str = ""

    @property
    def absent(self) -> bool:
        """Whether neither sample has a value."""
        return not (self.reference.size and self.current.size)


def measure(
    config: Drift, registry: Registry, *, traffic: Path, evaluation: Path, champion: str, output: Path
) -> float:
    """Compare the windows and write `drift.json`, `drift.html` and, with a champion, `champion.html`.

    Args:
        traffic: folder with `reference.parquet` (training window) and `current.parquet` (newest traffic).
        evaluation: folder with `traffic_scores/`: the student's scores on both, the champion's on the newest.
        champion: the champion's version id; empty: there is none.

    Returns:
        The share of drifted columns for the candidate, in [0, 1].

    Raises:
        InputError: a sample is missing, empty, damaged, or is not aligned with its scores.
    """
    scored = ["reference", "current", *(["champion_current"] if champion else [])]
    with artifacts.stage("drift", output, config=config) as record:
        record.inputs |= {
            "traffic": artifacts.verify(traffic),
            "evaluation": artifacts.verify(evaluation, [f"traffic_scores/{name}.parquet" for name in scored]),
            "champion": champion,
        }
        scores = evaluation / "traffic_scores"
        current = _sample(traffic / "current.parquet")
        candidate = _compare(
            config,
            _scored(_sample(traffic / "reference.parquet"), scores / "reference.parquet"),
            _scored(current, scores / "current.parquet"),
            "Does what the candidate learned from represent the newest traffic?",
            "Reference: the training window. Current: the newest traffic. Score: the candidate's, on both.",
            output / "drift.html",
        )
        against_champion = None
        (output / "champion.html").unlink(missing_ok=True)
        if champion:
            stored = registries.open(registry.uri).fetch(champion) / "traffic"
            against_champion = _compare(
                config,
                _scored(_sample(stored / "reference.parquet"), stored / "reference_scores.parquet"),
                _scored(current, scores / "champion_current.parquet"),
                f"Has traffic moved away from the champion, {champion}?",
                "Reference: the traffic that the champion was promoted on. Current: the newest traffic. "
                "Score: the champion's, on both. Only reported: a drifted champion is a reason to retrain.",
                output / "champion.html",
            )
            against_champion["version"] = champion
        artifacts.write_json(output / "drift.json", {"candidate": candidate, "champion": against_champion})
        artifacts.seal(output)
        record.facts.update(candidate["rows"], share=candidate["share"])
        drifted = [column["name"] for column in candidate["columns"] if column["drifted"]]
        progress.announce("drift", "note", f"drifted: {', '.join(drifted) or 'no column'}")
        return candidate["share"]


def _sample(path: Path) -> pa.Table:
    table = records.read(path, records.TRAFFIC)
    if not table.num_rows:
        raise InputError(f"{path}: no rows, expected a sample of traffic")
    return table


def _scored(sample: pa.Table, path: Path) -> pa.Table:
    scores = records.read(path, records.TRAFFIC_SCORES)
    if scores.num_rows != sample.num_rows:
        raise InputError(
            f"{path}: {scores.num_rows} scores, expected one for each of the {sample.num_rows} traffic rows"
        )
    return sample.append_column("score", scores["score"])


def _compare(
    config: Drift, reference: pa.Table, current: pa.Table, title: str, caption: str, page: Path
) -> dict[str, Any]:
    """One part of drift.json; its page is written to `page`."""
    columns = _columns(config, reference, current)
    noise = {column.name: 0.0 if column.absent else _noise(column, config.chance) for column in columns}
    bounds = {column.name: max(column.threshold, noise[column.name]) for column in columns}
    present = [column for column in columns if not column.absent]
    values, body = _evidently(config, present, bounds)

    smallest = min(reference.num_rows, current.num_rows)
    note = f"A sample of only {smallest} rows: shifts that matter may well be missed." if smallest < SMALL else ""
    page_notes = [note, *(f"{column.name}: {column.note}." for column in columns if column.note)]
    artifacts.write_text(page, _page(body, title, caption, [text for text in page_notes if text]))

    measured = []
    for column in columns:
        value = values.get(column.name)
        entry: dict[str, Any] = {
            "name": column.name,
            "kind": column.kind,
            "statistic": STATISTICS[column.kind],
            "value": value,
            "threshold": bounds[column.name],
            "noise": noise[column.name],
            "drifted": value is not None and value >= bounds[column.name],
        }
        if column.kind == "numeric" and not column.absent:
            entry["reference_mean"] = float(column.reference.mean())
            entry["current_mean"] = float(column.current.mean())
        if column.kind == "categorical":
            entry["moved"] = _moved(column)
        if column.note:
            entry["note"] = column.note
        measured.append(entry)

    share = sum(entry["drifted"] for entry in measured) / len(present)
    new_queries = _new(reference, current, "query_id")
    return {
        "share": share,
        "drifted": share > config.share,
        "rows": {"reference": reference.num_rows, "current": current.num_rows},
        "columns": measured,
        "new_queries": [query for query, _ in new_queries[:EXAMPLES]],
        "new_query_share": sum(count for _, count in new_queries) / current.num_rows,
        "new_product_types": [name for name, _ in _new(reference, current, "product_type")[:EXAMPLES]],
        "note": note,
    }


def _columns(config: Drift, reference: pa.Table, current: pa.Table) -> list[Column]:
    limits = {name: config.numeric for name in records.TRAFFIC_NUMERIC} | {"score": config.score}
    numeric = [
        _numeric(name, limit, config.categorical, _floats(reference[name]), _floats(current[name]))
        for name, limit in limits.items()
    ]
    categorical = [
        _categorical(name, config.categorical, reference[name].to_pylist(), current[name].to_pylist())
        for name in records.TRAFFIC_CATEGORICAL
    ]
    return numeric + categorical


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy().astype(np.float64)


def _numeric(
    name: str, threshold: float, categorical: float, all_reference: np.ndarray, all_current: np.ndarray
) -> Column:
    """A numeric column; where it has no spread to measure a shift by, it is compared as categories instead."""
    reference, current = (values[np.isfinite(values)] for values in (all_reference, all_current))
    gaps = all_reference.size + all_current.size - reference.size - current.size
    note = f"{gaps} rows without a value left out" if gaps else ""
    if not reference.size and not current.size:
        return Column(name, "numeric", reference, current, threshold, "no values, so not counted")
    if not reference.size or not current.size:
        before, after = (np.where(np.isfinite(values), "a value", NONE) for values in (all_reference, all_current))
        return Column(name, "categorical", before, after, categorical, "one side has no values: compared by having any")
    constant = reference.min()
    if reference.max() == constant:
        if (current == constant).all():
            return Column(name, "numeric", reference, current, threshold, f"{constant:g} throughout")
        before, after = (
            np.where(values == constant, f"{constant:g}", "other values") for values in (reference, current)
        )
        note = f"{constant:g} throughout the reference: compared by the share of rows with another value"
        return Column(name, "categorical", before, after, categorical, note)
    return Column(name, "numeric", reference, current, threshold, note)


def _categorical(name: str, threshold: float, reference: list[str | None], current: list[str | None]) -> Column:
    if not any(reference) and not any(current):
        return Column(name, "categorical", np.array([]), np.array([]), threshold, "no values, so not counted")
    counts = Counter(value or NONE for value in reference)
    kept = set(sorted(counts, key=lambda value: (-counts[value], value))[:CATEGORIES])
    before, after = (
        np.array([value if value in kept else OTHER for value in (text or NONE for text in values)], dtype=object)
        for values in (reference, current)
    )
    seen = set(before) | set(after)
    note = f"{seen.pop()!r} throughout" if len(seen) == 1 else ""
    return Column(name, "categorical", before, after, threshold, note)


def _noise(column: Column, chance: float) -> float:
    """The distance that shuffling the rows between the two samples reaches with probability `chance`."""
    if chance == 1:
        return 0.0
    rng = np.random.default_rng(0)  # the bar must be the same whenever the same samples are compared
    distance = _shuffled_wasserstein(column) if column.kind == "numeric" else _shuffled_jensenshannon(column)
    return float(np.quantile([distance(rng) for _ in range(SHUFFLES)], 1 - chance))


def _shuffled_wasserstein(column: Column) -> Callable[[np.random.Generator], float]:
    sizes = column.reference.size, column.current.size
    gaps = np.diff(np.sort(np.concatenate([column.reference, column.current])))
    weights = np.repeat([1 / sizes[0], -1 / sizes[1]], sizes)
    # Evidently divides by no less than 0.001.
    spread = max(column.reference.std(), 0.001)
    # A dot product of this length would wake all threads of BLAS, at a cost a hundred times its own.
    return lambda rng: float((np.abs(np.cumsum(rng.permutation(weights))[:-1]) * gaps).sum() / spread)


def _shuffled_jensenshannon(column: Column) -> Callable[[np.random.Generator], float]:
    codes = np.unique(np.concatenate([column.reference, column.current]).astype(str), return_inverse=True)[1]
    totals = np.bincount(codes)

    def distance(rng: np.random.Generator) -> float:
        counts = np.bincount(rng.permutation(codes)[: column.reference.size], minlength=totals.size)
        value = jensenshannon(counts, totals - counts)
        return float(np.nan_to_num(value))  # the square root of a rounding error below 0

    return distance


def _evidently(config: Drift, columns: list[Column], bounds: dict[str, float]) -> tuple[dict[str, float], str]:
    """The distance of each column, and Evidently's page."""
    definition = DataDefinition(
        numerical_columns=[column.name for column in columns if column.kind == "numeric"],
        categorical_columns=[column.name for column in columns if column.kind == "categorical"],
    )

    def dataset(side: str) -> Dataset:
        frame = pd.DataFrame({column.name: pd.Series(_safe(column, side)) for column in columns})
        return Dataset.from_pandas(frame, data_definition=definition)

    preset = DataDriftPreset(
        columns=[column.name for column in columns],
        per_column_method={column.name: METHODS[column.kind] for column in columns},
        per_column_threshold={column.name: bounds[column.name] for column in columns},
        drift_share=config.share,
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # it also correlates columns, constant ones too
        snapshot = Report([preset], include_tests=True).run(dataset("current"), dataset("reference"))
    results = [result for result in snapshot.dict()["metrics"] if "column" in result["config"]]
    values = {result["config"]["column"]: float(np.nan_to_num(result["value"])) for result in results}
    return values, snapshot.get_html_str(as_iframe=False)


def _safe(column: Column, side: str) -> np.ndarray:
    """The values for Evidently, which copies names of categories unescaped into a script and into labels."""
    values = getattr(column, side)
    if column.kind == "numeric":
        return values
    return np.array([value.replace("<", LESS) for value in values], dtype=object)


def _page(body: str, title: str, caption: str, notes: list[str]) -> str:
    """Evidently's page under a heading of our own, the same bytes for the same samples."""
    # Its widgets carry random identifiers; naming them by order of appearance makes the folder's digest repeatable.
    names: dict[str, str] = {}
    random = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}|metric_[0-9a-f]{32}")
    body = random.sub(lambda match: names.setdefault(match[0], f"widget_{len(names)}"), body)
    lines = "".join(f"<p style='margin:4px 0'>{html.escape(text)}</p>" for text in (caption, *notes))
    heading = (
        "<header style='font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:24px 24px 0;color:#444'>"
        f"<h1 style='font-size:22px;color:#111;margin:0'>{html.escape(title)}</h1>{lines}</header>"
    )
    body = body.replace("<head>", f"<head><title>{html.escape(title)}</title>", 1)
    return body.replace("<body>", f"<body>{heading}", 1).lstrip()


def _moved(column: Column) -> list[dict[str, Any]]:
    """The categories whose share changed most, with both shares."""
    shares = [
        {value: count / values.size for value, count in Counter(values.tolist()).items()}
        for values in (column.reference, column.current)
    ]
    rows = [
        {"value": value, "reference": shares[0].get(value, 0.0), "current": shares[1].get(value, 0.0)}
        for value in sorted(set(shares[0]) | set(shares[1]))
    ]
    rows.sort(key=lambda row: -abs(row["current"] - row["reference"]))
    return [row for row in rows[:3] if row["current"] != row["reference"]]


def _new(reference: pa.Table, current: pa.Table, key: str) -> list[tuple[str, int]]:
    """What occurs in `current` under a `key` that `reference` lacks, with its rows, most frequent first."""
    known = set(reference[key].to_pylist())
    named = {"query_id": "query"}.get(key, key)
    text = dict(zip(current[key].to_pylist(), current[named].to_pylist(), strict=True))
    counts = Counter(value for value in current[key].to_pylist() if value and value not in known)
    return sorted(((text[value], count) for value, count in counts.items()), key=lambda item: (-item[1], item[0]))
