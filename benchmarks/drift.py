"""Drift detection: false alarms, detection rates, and time and memory for a million rows.

`python -m benchmarks.drift [--quick] [--resamples N] [--only alarms|size]`; see docs/drift.md. A period of real
features (the demo shop's log without drift; Home Depot's judged pairs, if available) represents an unchanging
population of queries. Both windows are drawn from it, whole queries with replacement, and sampled as preparation
samples traffic. Shifts are added to the second window. Both go through `distilrank.drift.compare` with the default
configuration; a bi-encoder's cosine stands in for the student's score.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import machine
from benchmarks.result import at_least, at_most, clopper_pearson, report, say
from distilrank import config
from distilrank.core import artifacts, normalize, schemas, unicode_script
from distilrank.core.arrays import systematic_sample
from distilrank.data import bm25, prepare
from distilrank.data.window import LogWindow
from distilrank.drift.compare import compare_windows
from distilrank.drift.embeddings import MAX_TOKENS
from distilrank.drift.measure import measure_drift
from distilrank.modeling import references
from distilrank.modeling.bi_encoder import Retriever, TokenCounter

ROOT = Path(__file__).resolve().parents[1]
HOME_DEPOT = ROOT.parent / "shared/data/home-depot/train.csv.gz"
ENCODER = config.Retriever().model
SEED = 29
GIB = 2**30
CONFIDENCE = 0.95
FALSE_ALARMS, DETECTED, SECONDS, MEMORY_GIB = 0.05, 0.95, 60, 2.0

SPANISH = (
    "zapatos mujer taladro inalámbrico mesa madera lámpara techo silla oficina negra auriculares niños camisa "
    "algodón blanca cortina baño alfombra salón juego sábanas cama matrimonio cuchillo cocina martillo grifo lavabo "
    "pintura pared exterior escalera aluminio mochila escolar impermeable funda móvil cargador rápido vestido verano "
    "largo pantalón vaquero hombre bombilla luz cálida estantería pequeña manguera jardín"
).split()
RUSSIAN = (
    "туфли женские дрель аккумуляторная стол деревянный лампа потолочная стул офисный чёрный наушники детские рубашка "
    "хлопковая белая штора ванная ковёр гостиная набор простыней кровать нож кухонный молоток смеситель краска стены "
    "лестница алюминиевая рюкзак школьный чехол телефон зарядка платье летнее брюки мужские лампочка полка шланг сад"
).split()


SNOW = (
    "snow shovel blower ice melt scraper roof rake plow pusher salt spreader brush winter sidewalk driveway electric "
    "gas cordless heavy duty ergonomic"
).split()


@dataclass(frozen=True)
class Scale:
    """Resamples of the null and of each shift, rows of the period, rows in all of the large comparison."""

    resamples: int = 300
    shifted: int = 100
    period: int = 12_000
    rows: int = 1_000_000


QUICK = Scale(resamples=6, shifted=3, period=4_000, rows=20_000)


# A period ---------------------------------------------------------------------------------------------------------


class Known:
    """An encoder that has seen all texts of the benchmark before: each is embedded once."""

    def __init__(self, reference: str) -> None:
        self._encoder = Retriever(reference, max_tokens=MAX_TOKENS, precision="int8")
        self._vectors: dict[str, np.ndarray] = {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """As `drift.embeddings.Encoder`."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, self._encoder.embed(new), strict=True))
        return np.stack([self._vectors[text] for text in texts])


@dataclass
class Period:
    """One unchanging population: traffic with a score, sorted by query, and where each query's rows are."""

    table: pa.Table
    starts: np.ndarray
    counts: np.ndarray
    index: bm25.Index
    tokens: TokenCounter

    @classmethod
    def from_table(cls, table: pa.Table, encoder: Known) -> Period:
        table = table.sort_by([("query_id", "ascending")])
        if "score" not in table.column_names:
            query, title = (
                encoder.embed([text or "" for text in table[name].to_pylist()]) for name in ("query", "title")
            )
            table = table.append_column("score", pa.array((query * title).sum(axis=1)))
        _, starts, counts = np.unique(
            np.asarray(table["query_id"].to_pylist(), dtype=object).astype(str), return_index=True, return_counts=True
        )
        titles = [title or "" for title in pc.unique(table["title"]).to_pylist()]
        return cls(table, starts, counts, bm25.Index(titles), TokenCounter(ENCODER))

    def window(self, draw: np.random.Generator, size: int) -> pa.Table:
        """Whole queries with replacement, then a systematic sample of their rows."""
        queries = np.sort(draw.integers(0, len(self.starts), len(self.starts)))
        counts = self.counts[queries]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = np.repeat(self.starts[queries], counts) + within
        return self.table.take(pa.array(rows[systematic_sample(len(rows), size, draw)]))


def demo_shop(rows: int, folder: Path) -> pa.Table:
    """Impressions of the demo shop's log, which does not drift, with five times its queries."""
    window = LogWindow("2025-10-27", "2025-11-24", "2025-12-01")
    return _prepared(config.DemoShop(source="demo_shop", queries=3000, searches=24_000), window, rows, folder)


def home_depot(rows: int, folder: Path) -> pa.Table:
    """Judged pairs of Home Depot, each once."""
    return _prepared(config.HomeDepot(source="home_depot", path=str(HOME_DEPOT)), LogWindow(), rows, folder)


def _prepared(data: Any, window: LogWindow, rows: int, folder: Path) -> pa.Table:
    parts = {name: folder / name for name in ("judgements", "candidates", "traffic", "profile")}
    settings = config.Prepare(traffic_sample=rows, log_queries=50, from_bm25=1, dev_queries=20, test_queries=20)
    prepare.prepare(settings, data, window, **parts)
    return schemas.read(parts["traffic"] / "reference.parquet", schemas.TRAFFIC)


# Shifts -----------------------------------------------------------------------------------------------------------

Shift = Callable[[pa.Table, "Period", np.random.Generator], pa.Table]


def _set(table: pa.Table, **columns: Any) -> pa.Table:
    for name, values in columns.items():
        column_index = table.column_names.index(name)
        table = table.set_column(column_index, name, pa.array(values, table.schema.field(name).type))
    return table


def _plus(table: pa.Table, name: str, more: float) -> np.ndarray:
    return table[name].to_numpy() + more


def one_token_longer(table: pa.Table, period: Period, draw: np.random.Generator) -> pa.Table:
    """Every query has one more word, of five letters, which is one more token; the text itself stays."""
    names = {"query_words": 1, "query_tokens": 1, "query_characters": 6}
    return _set(table, **{name: _plus(table, name, more) for name, more in names.items()})


def higher_scores(table: pa.Table, period: Period, draw: np.random.Generator) -> pa.Table:
    """Scores 0.3 standard deviations higher."""
    return _set(table, score=_plus(table, "score", 0.3 * period.table["score"].to_numpy().std()))


def _foreign(words: Sequence[str]) -> Shift:
    def shifted(table: pa.Table, period: Period, draw: np.random.Generator) -> pa.Table:
        queries = np.asarray(table["query_id"].to_pylist(), dtype=object)
        chosen = _some_queries(queries, 0.1, draw)
        texts = {query: " ".join(draw.choice(words, draw.integers(1, 4))) for query in sorted(set(queries[chosen]))}
        tokens = dict(zip(texts, period.tokens.count(list(texts.values())), strict=True))
        features = {
            query: {
                "query_id": normalize.query_id(text),
                "query": text,
                "query_words": len(normalize.words(text)),
                "query_characters": len(text),
                "query_tokens": int(tokens[query]),
                "unseen_words": period.index.unseen(text),
                "script": unicode_script.dominant(text),
                "bm25": 0.0,
            }
            for query, text in texts.items()
        }
        columns = {}
        for name in next(iter(features.values())):
            values = table[name].to_pylist()
            for row in np.flatnonzero(chosen):
                values[row] = features[queries[row]][name]
            columns[name] = values
        return _set(table, **columns)

    return shifted


def _some_queries(queries: np.ndarray, share: float, draw: np.random.Generator) -> np.ndarray:
    """Rows of as many queries as make up `share` of the rows, one more being too many."""
    counts = Counter(queries.tolist())
    names = sorted(counts)
    chosen, total = set(), 0
    for name_index in draw.permutation(len(names)):
        if total + counts[names[name_index]] <= share * len(queries):
            chosen.add(names[name_index])
            total += counts[names[name_index]]
    return np.array([query in chosen for query in queries])


def new_product_type(table: pa.Table, period: Period, draw: np.random.Generator) -> pa.Table:
    """A fifth of the traffic is of queries for a product type that was not there, found as well as any other."""
    queries = np.asarray(table["query_id"].to_pylist(), dtype=object)
    chosen = _some_queries(queries, 0.2, draw)
    texts = {query: " ".join(draw.choice(SNOW, 3, replace=False)) for query in sorted(set(queries[chosen]))}
    columns = {name: table[name].to_pylist() for name in ("query_id", "query", "title", "product_type")}
    for row in np.flatnonzero(chosen):
        text = texts[queries[row]]
        title = f"{text} {' '.join(draw.choice(SNOW, 4))}"
        changed = {"query_id": normalize.query_id(text), "query": text, "title": title, "product_type": "snow removal"}
        for name, value in changed.items():
            columns[name][row] = value
    return _set(table, **columns)


SHIFTS: dict[str, tuple[Shift, str]] = {
    "new_product_type_20": (new_product_type, "product_type"),
    "query_token_more": (one_token_longer, "query_tokens"),
    "score_0.3_sd": (higher_scores, "score"),
    "spanish_10": (_foreign(SPANISH), "unseen_words"),
    "russian_10": (_foreign(RUSSIAN), "script"),
}
"""What is put into the second window, and the column that it belongs to."""


# Alarms -----------------------------------------------------------------------------------------------------------


def _rate(hits: int, trials: int) -> dict[str, float]:
    low, high = clopper_pearson(hits, trials, CONFIDENCE)
    return {"rate": round(hits / trials, 4), "ci_low": round(low, 4), "ci_high": round(high, 4)}


def measure_alarms(
    name: str, table: pa.Table, encoder: Known, scale: Scale, settings: config.Drift, size: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """False alarms of unchanged traffic, and how often each shift is found."""
    period = Period.from_table(table, encoder)
    say(f"{name}: {period.table.num_rows} rows of {len(period.starts)} queries, {size} rows a window")
    draw = np.random.default_rng(SEED)
    drifted: Counter[str] = Counter()
    alarms = anything = shares = 0
    aucs = []
    for _ in range(scale.resamples):
        part = compare_windows(settings, period.window(draw, size), period.window(draw, size), encoder).part
        names = [column["name"] for column in part["columns"] if column["drifted"]]
        drifted.update(names)
        alarms += part["alarm"]
        anything += bool(names)
        shares += part["share"] > settings.share
        aucs.append(part["embedding"]["auc"] if part["embedding"] else 0.5)
    figures: dict[str, Any] = {
        "rows": period.table.num_rows,
        "queries": len(period.starts),
        "window_rows": size,
        "false_alarms": _rate(alarms, scale.resamples),
        "any_column": _rate(anything, scale.resamples),
        "share_above_limit": _rate(shares, scale.resamples),
        "columns": dict(drifted.most_common()),
        "embedding_auc": {"median": round(float(np.median(aucs)), 4), "p99": round(float(np.quantile(aucs, 0.99)), 4)},
        "shifts": {},
    }
    bars = [at_most(f"{name}_false_alarms_ci_low", figures["false_alarms"]["ci_low"], FALSE_ALARMS)]
    for shift, (change, column) in SHIFTS.items():
        detected = _detected(change, column, period, encoder, scale, settings, size)
        figures["shifts"][shift] = detected
        bars.append(at_least(f"{name}_{shift}_alarm", detected["alarm"], DETECTED))
        say(f"{name} | {shift}: {json.dumps(detected)}")
    return figures, bars


def _detected(
    change: Shift, column: str, period: Period, encoder: Known, scale: Scale, settings: config.Drift, size: int
) -> dict[str, Any]:
    draw = np.random.default_rng([SEED, 1])
    detected: Counter[str] = Counter()
    values, alarms, shares, aucs = [], 0, [], []
    for _ in range(scale.shifted):
        reference, current = period.window(draw, size), change(period.window(draw, size), period, draw)
        part = compare_windows(settings, reference, current, encoder).part
        entries = {entry["name"]: entry for entry in part["columns"]}
        detected.update(entry["name"] for entry in entries.values() if entry["drifted"])
        values.append(entries[column]["value"] / entries[column]["threshold"])
        alarms += part["alarm"]
        shares.append(part["share"])
        aucs.append((part["embedding"]["auc"], part["embedding"]["ci_low"]) if part["embedding"] else (0.5, 0.5))
    auc, low = np.median(aucs, axis=0)
    return {
        "column": column,
        "found": round(detected[column] / scale.shifted, 4),
        "of_limit": round(float(np.median(values)), 2),
        "alarm": round(alarms / scale.shifted, 4),
        "share": round(float(np.median(shares)), 3),
        "share_above_limit": round(float(np.mean(np.array(shares) > settings.share)), 4),
        "embedding": {
            "found": round(detected["embedding"] / scale.shifted, 4), "auc": round(auc, 4), "ci_low": round(low, 4)
        },
        "columns": {name: round(count / scale.shifted, 3) for name, count in detected.most_common()},
    }  # fmt: skip


# Size -------------------------------------------------------------------------------------------------------------


def measure_size(scale: Scale, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Time and memory of the stage with so many rows in all, pages included."""
    paths = _many_rows(scale.rows // 2, folder)
    measured = machine.measure(_stage, {name: str(path) for name, path in paths.items()}, scratch=folder)
    memory = measured.peak_bytes / GIB
    figures = {
        "rows": scale.rows,
        "seconds": round(measured.seconds, 1),
        "cpu_seconds": round(measured.cpu_seconds, 1),
        "peak_gib": round(memory, 2),
    }
    return figures, [
        at_most("rows_seconds", measured.seconds, SECONDS),
        at_most("rows_gib", memory, MEMORY_GIB),
    ]


def _stage(paths: dict[str, str]) -> float:
    folders = {name: Path(path) for name, path in paths.items()}
    return measure_drift(config.Drift(), config.Registry(), champion="", **folders)


def _many_rows(rows: int, folder: Path) -> dict[str, Path]:
    """Two windows of made-up traffic: a quarter as many queries as rows, frequencies as 1 / rank."""
    words = np.resize([*SPANISH, *SNOW], 2000)
    for number, name in enumerate(("reference", "current")):
        draw = np.random.default_rng([SEED, 2, number])
        rank = np.exp(draw.random(rows) * np.log(rows / 4)).astype(np.int64)
        product = draw.integers(0, 100_000, rows)
        texts = np.array(
            [" ".join(words[[position % 2000, position // 7 % 2000]]) for position in range(rows // 4 + 1)]
        )
        titles = np.array([" ".join(words[np.arange(start, start + 9) % 2000]) for start in range(100_000)])
        table = pa.table(
            {
                "query_id": pa.array(np.char.add("q", rank.astype(str))),
                "query": pa.array(texts[rank]),
                "product_id": pa.array(np.char.add("p", product.astype(str))),
                "title": pa.array(titles[product]),
                **{field: pa.array(words[product % count]) for field, count in
                   (("product_type", 30), ("brand", 70), ("color", 12))},
                "gender": pa.nulls(rows, pa.string()),
                "description": pa.nulls(rows, pa.string()),
                "query_words": 1 + rank % 5,
                "query_characters": 5 + rank % 40,
                "query_tokens": 1 + rank % 9,
                "unseen_words": (rank % 10 == 0) / 2,
                "script": np.where(rank % 50, "latin", "cyrillic"),
                "title_words": 4 + product % 12,
                "bm25": draw.gamma(2, 3, rows) + rank % 7,
                "position": draw.integers(1, 21, rows),
                "clicked": draw.random(rows) < 0.1,
            }
        )  # fmt: skip
        schemas.write(table, folder / "traffic" / f"{name}.parquet", schemas.TRAFFIC)
        scores = pa.table({"score": draw.normal(size=rows) + rank % 3})
        path = folder / "evaluation" / "traffic_scores" / f"{name}.parquet"
        schemas.write(scores, path, schemas.TRAFFIC_SCORES)
    artifacts.copy_tree(references.resolve(ENCODER), folder / "student")
    for name in ("traffic", "evaluation", "student"):
        artifacts.seal(folder / name)
    return {name: folder / name for name in ("traffic", "evaluation", "student")} | {"output": folder / "drift"}


# Command ----------------------------------------------------------------------------------------------------------


def main() -> int:
    """Print progress on standard error and one JSON line on standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drift", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: figures without meaning")
    parser.add_argument("--resamples", type=int, help=f"of unchanged traffic (default {Scale().resamples})")
    parser.add_argument("--shifted", type=int, help=f"of each shift (default {Scale().shifted})")
    parser.add_argument("--only", choices=("demo_shop", "home_depot", "size"), help="one part alone")
    parser.add_argument("--window", type=int, default=config.Prepare().traffic_sample, help="rows of a window")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of `drift`")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale()
    scale = Scale(
        options.resamples or scale.resamples, options.shifted or scale.shifted, scale.period, scale.rows
    )  # fmt: skip
    settings = dict(pair.split("=", 1) for pair in options.set)
    drift_config = config.Drift(**{name: json.loads(value) for name, value in settings.items()})
    described = machine.describe(("evidently", "numpy", "scikit-learn", "scipy", "onnxruntime"))
    figures: dict[str, Any] = {
        "quick": options.quick, "drift": drift_config.model_dump()
    }  # fmt: skip
    bars: list[dict[str, Any]] = []
    sources = {"demo_shop": demo_shop} | ({"home_depot": home_depot} if HOME_DEPOT.exists() else {})
    with tempfile.TemporaryDirectory(prefix="benchmark-drift-") as temporary, machine.output_to_stderr():
        folder, encoder = Path(temporary), Known(ENCODER)
        for name, load in sources.items():
            if options.only in (None, name):
                began = time.perf_counter()
                table = load(scale.period, folder / name)
                figures[name], part_bars = measure_alarms(name, table, encoder, scale, drift_config, options.window)
                figures[name]["seconds"] = round(time.perf_counter() - began)
                bars += part_bars
        if options.only in (None, "size"):
            figures["size"], part_bars = measure_size(scale, folder)
            bars += part_bars
    report("drift", described, figures, bars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
