"""The folders of a small run, from which the tests make reports, and a parser of the page."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.special import expit

from distilrank import report
from distilrank.config import Evaluate, Gate, Report
from distilrank.core import artifacts, schemas
from distilrank.core.run_folders import RunFolders
from distilrank.evaluation import score_spread
from distilrank.evaluation.judged import Judged, System
from distilrank.evaluation.systems import compare_systems, score_baselines
from distilrank.modeling import calibration
from distilrank.promotion import gate
from distilrank.promotion.checks import Evidence
from distilrank.teacher import label_manifest, quality

WORDS = ["cordless", "drill", "hammer", "saw", "blade", "ladder", "paint", "roller", "brush", "hose", "tap", "valve"]
VERSION, CHAMPION, ANCHOR = "v0123456789ab", "vba9876543210", "vaabbccddeeff"


def judgements(folder: Path, split: str, queries: int, seed: int, text: str = "") -> pa.Table:
    """A split of a small shop's judgements; `text` is put into the first query and the first title."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(queries):
        words = rng.choice(WORDS, 2, replace=False).tolist()
        for product in range(8):
            target = float(rng.choice([0, 1 / 3, 2 / 3, 1], p=[0.3, 0.2, 0.2, 0.3]))
            title = " ".join([*words[: 1 + round(target)], *rng.choice(WORDS, 4).tolist()]).capitalize()
            first = number == 0
            rows.append(
                {
                    "query_id": f"{split}{number:04d}",
                    "query": f"{words[0]} {words[1]}{text if first else ''}",
                    "product_id": f"p{product}",
                    "title": f"{title}{text if first else ''}",
                    "product_type": words[0],
                    "brand": None,
                    "color": None,
                    "gender": None,
                    "description": None,
                    "target": target,
                    "gain": target,
                    "raters": 3,
                    "locale": None,
                    "stratum": ("head", "torso", "tail")[number % 3],
                    "bm25": 6 * target + float(rng.normal(4, 4)),
                }
            )
    table = pa.Table.from_pylist(rows)
    schemas.write(table, folder / f"{split}.parquet", schemas.JUDGED)
    return schemas.read(folder / f"{split}.parquet", schemas.JUDGED)


def record(folder: Path, stage: str, seconds: float, **facts: object) -> None:
    artifacts.write_record(
        folder,
        {
            "stage": stage,
            "started": "2026-11-20T08:15:00Z",
            "seconds": seconds,
            "peak_memory_mib": 300 + 8 * seconds,
            "config": {"seed": 13},
            "inputs": {"judgements": "0f" * 32},
            "facts": facts,
        },
    )


def drift_part(drifted: bool, text: str = "") -> dict:
    return {
        "share": 0.25 if drifted else 0.0,
        "drifted": drifted,
        "rows": {"reference": 2000, "current": 1800},
        "columns": [
            {
                "name": "bm25", "kind": "numeric", "statistic": "Wasserstein", "value": 0.031, "threshold": 0.1,
                "noise": 0.04, "drifted": False, "reference_mean": 6.312, "current_mean": 6.108,
                "group": "score", "shift": "mean 6.11, was 6.31",
            },
            {
                "name": "product_type", "kind": "categorical", "statistic": "Jensen-Shannon",
                "value": 0.213 if drifted else 0.071, "threshold": 0.1, "noise": 0.05, "drifted": drifted,
                "moved": [{"value": f"snow shovel{text}", "reference": 0.0, "current": 0.118 if drifted else 0.011}],
                "group": "product", "shift": f"snow shovel{text} {'11.8' if drifted else '1.1'} %, was 0.0 %",
            },
            {
                "name": "embedding", "kind": "numeric", "statistic": "domain classifier ROC-AUC", "value": 0.612,
                "threshold": 0.75, "noise": 0.03, "drifted": False, "group": "embedding",
                "shift": "a classifier tells the newest rows from the reference's with ROC-AUC 0.612",
            },
            {
                "name": "color", "kind": "categorical", "statistic": "Jensen-Shannon", "value": None,
                "threshold": 0.1, "noise": 0.0, "drifted": False, "moved": [], "note": "no values, so not counted",
                "group": "product", "shift": "no values, so not counted",
            },
        ],
        "embedding": {
            "auc": 0.612, "ci_low": 0.581, "ci_high": 0.643, "limit": 0.75, "drifted": False,
            "rows": {"reference": 900, "current": 900},
            "examples": [{"query": f"ice melt{text}", "title": "Ice melt, 10 kg", "probability": 0.934}],
        },
        "examples": {"queries": [{"query": f"snow shovel{text}", "rows": 84}, {"query": "ice melt", "rows": 31}]},
        "new_queries": [f"snow shovel{text}", "ice melt", "window insulation"] if drifted else [],
        "new_query_share": 0.146,
        "new_product_types": [f"snow shovel{text}"] if drifted else [],
        "note": "",
    }  # fmt: skip


def curve(steps: int, start: float, end: float, loss: float) -> list[dict]:
    return [
        {
            "step": 40 * (number + 1), "epoch": 1 + number // 3, "loss": loss / (1 + 0.5 * number),
            "dev_ndcg_at_10": end - (end - start) * 0.5**number + (0.002 if number == steps - 2 else 0),
        }
        for number in range(steps)
    ]  # fmt: skip


def assessed(dev: pa.Table, method: str) -> quality.Quality:
    """What a teacher's stage leaves about itself; it is sure of its mind where people are wrong, in the first row."""
    rng = np.random.default_rng(5)
    target = dev["target"].to_numpy()
    logits = 2.6 * (target - 0.55) + rng.normal(0, 1.0, len(target))
    logits[0] = 5 if target[0] < 0.5 else -5
    fitted = calibration.fit(method, logits, target, dev["query_id"].to_numpy())
    return quality.assess(dev, logits, fitted, relevant_from=0.65)


def folders(
    root: Path,
    *,
    champion: bool = True,
    calibrated: bool = True,
    skill: float = 1.0,
    text: str = "",
    policy: Gate | None = None,
    unchanged: bool = False,
    promoted_by: str = "",
) -> dict:
    """Everything that a run leaves, small: real measures of made-up scores, a real verdict.

    Args:
        policy: of the gate.
        skill: how well the student ranks; 0 is random.
        text: put into a query, a title, a product type and a stage's configuration.
        unchanged: whether the student is the champion.
        promoted_by: the run that promoted the champion.
    """
    paths = {
        name: root / name for name in ("profile", "judgements", "teacher", "student", "evaluation", "drift", "verdict")
    }
    judgements(paths["judgements"], "train", 90, 1)
    held_out = judgements(paths["judgements"], "dev", 75, 2, text)
    test = judgements(paths["judgements"], "test", 60, 3, text)
    artifacts.write_json(
        paths["judgements"] / "protocol.json", {"source": "demo_shop", "relevant_from": 0.65, "near_duplicates": 0.02}
    )
    artifacts.seal(paths["judgements"])

    artifacts.write_json(
        paths["profile"] / "profile.json",
        {
            "rows": {"products": 1500, "judgements": 1440, "impressions": 54120},
            "dropped": [{"where": "log", "what": "impressions of unknown products", "rows": 12, "examples": []}],
            "strata": {"cut": "by frequency", "queries": {"head": 12, "torso": 80, "tail": 508}},
            "lengths": {
                "query_words": {"min": 1.0, "p50": 3.0, "p95": 6.0, "max": 11.0, "mean": 3.1804},
                "title_characters": {"min": 9.0, "p50": 64.0, "p95": 110.0, "max": 171.0, "mean": 66.8},
            },
        },
    )
    artifacts.seal(paths["profile"])
    record(paths["profile"], "prepare", 6.4)

    dev = {"student": 0.941, "teacher": 0.948, "bm25": 0.853, "random": 0.801}
    for name, steps, loss in (("teacher", 5, 0.62), ("student", 6, 2.9)):
        artifacts.write_json(
            paths[name] / "metrics.json",
            {
                "curve": curve(steps, 0.84, dev[name], loss),
                "best_step": 160,
                "dev": dev,
                "calibration": {"method": "platt"},
            },
        )
        if name == "teacher":
            assessed(held_out, "auto" if calibrated else "none").write(paths[name])
        artifacts.seal(paths[name])
        record(
            paths[name],
            name,
            140.2 if name == "teacher" else 61.7,
            runtime="cpu, bf16 (the processor has amx), 2 threads",
        )
    shards = [root / "labels" / f"shard-{number:05d}" for number in range(2)]
    for number, folder in enumerate(shards):
        manifest = {
            "shard": folder.name, "rows": 3120, "queries": 260, "teacher": "ab" * 32, "candidates": "cd" * 32,
            "labels": "ef" * 32,
            "logits": score_spread.spread(np.random.default_rng(number).normal(-0.9 + 0.2 * number, 1.3, 3120)),
            "work": {
                "pairs": 3120, "tokens": 201_400, "truncated": 37, "seconds": 42.0, "device_hours": 42 / 3600,
                "rows_per_second": 74.3, "device": "cpu", "price": None,
            },
        }  # fmt: skip
        label_manifest.write(folder, manifest)
        artifacts.seal(folder)
        record(
            folder, folder.name.replace("shard", "label"), 43.0, runtime="cpu, bf16 (the processor has amx), 2 threads"
        )

    rng = np.random.default_rng(4)
    judged = Judged.read(paths["judgements"])
    systems = score_baselines(judged, Evaluate())
    for name, noise, scale in (
        ("teacher", 0.8, 1.1),
        ("student", 1.0, 0.9),
        ("champion", 1.1, 0.7),
        ("anchor", 1.3, 0.6),
    ):
        if name in ("champion", "anchor") and not champion:
            continue
        signal = (judged.target - 0.5) * 3 * (skill if name == "student" else 1)
        score = signal + rng.normal(0, noise, len(signal))
        systems[name] = System(score.astype(np.float32), expit(scale * score) if calibrated else None)
        if unchanged and name == "champion":
            systems[name] = systems["student"]
    metrics, by_query = compare_systems(judged, systems, Evaluate(bootstrap=200, cluster_bootstrap=50))
    metrics["latency"] = {
        name: {"pairs_per_second": 1912.4, "p50_ms": 4.12, "p95_ms": 6.93, "p99_ms": 9.87, "pairs_per_request": 8.0}
        for name in ("student", "champion", "anchor")
        if name in systems
    }
    artifacts.write_json(paths["evaluation"] / "metrics.json", metrics)
    ranked = judged.ranked
    shared = {
        "query_id": judged.query_ids[ranked],
        "query": judged.per_query("query")[ranked],
        "stratum": judged.per_query("stratum")[ranked],
        "pairs": np.full(len(ranked), 8),
    }
    parts = [pa.table({"system": [name] * len(ranked), **shared, **values}) for name, values in by_query.items()]
    schemas.write(pa.concat_tables(parts), paths["evaluation"] / "per_query.parquet", schemas.PER_QUERY)
    parts = [
        pa.table(
            {
                "system": [name] * test.num_rows,
                **{column: test[column] for column in ("query_id", "product_id", "target")},
                "score": system.score,
                "probability": pa.nulls(test.num_rows, pa.float32())
                if system.probability is None
                else system.probability,
            },
            schema=schemas.PAIR_SCORES,
        )
        for name, system in systems.items()
    ]
    schemas.write(pa.concat_tables(parts), paths["evaluation"] / "pair_scores.parquet", schemas.PAIR_SCORES)
    artifacts.seal(paths["evaluation"])
    record(paths["evaluation"], "evaluate", 18.9, config=text)

    drift = {"candidate": drift_part(True, text), "champion": None}
    if champion:
        drift["champion"] = {**drift_part(False), "version": VERSION if unchanged else CHAMPION}
    artifacts.write_json(paths["drift"] / "drift.json", drift)
    artifacts.seal(paths["drift"])
    record(paths["drift"], "drift", 2.1)

    evidence = Evidence(
        metrics=metrics,
        drift=drift,
        candidate={"id": VERSION},
        champion={"id": VERSION if unchanged else CHAMPION} | ({"run": promoted_by} if promoted_by else {})
        if champion
        else None,
        anchor={"id": ANCHOR} if champion else None,
        test_evaluations=7,
        now=datetime(2026, 11, 20, 12, tzinfo=UTC),
    )
    chosen_policy = (policy or Gate(max_drift_share=0.5)).model_copy(update={"min_resamples": 200})
    decided = gate.decide(chosen_policy, evidence)
    artifacts.write_json(paths["verdict"] / "verdict.json", decided.to_json())
    artifacts.seal(paths["verdict"])
    record(paths["verdict"], "gate", 0.2)
    return {**paths, "labels": shards, "output": root / "report"}


class Page(HTMLParser):
    """The page's text, its tags and attributes; complains of tags that do not match."""

    VOID = ("meta", "br", "img", "hr", "link", "input")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"line {self.getpos()}: </{tag}>"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def seal(paths: dict) -> None:
    """Seal the folders as a test has changed them, each with its stage's record."""
    for name, path in paths.items():
        for folder in (path if isinstance(path, list) else [path]) if name != "output" else []:
            artifacts.seal(folder)
            if (folder / artifacts.RECORD).exists():
                record = artifacts.read_json(folder / artifacts.RECORD)
                del record["digest"]
                artifacts.write_record(folder, record)


def render(paths: dict, config: Report | None = None, *, changed: bool = True) -> tuple[str, Page]:
    if changed:
        seal(paths)
    parts = {key: value for key, value in paths.items() if key != "output"} | {"labels": tuple(paths["labels"])}
    report.render(config or Report(), RunFolders(**parts), name="home-depot", output=paths["output"])
    source = (paths["output"] / "report.html").read_text()
    return source, Page(source)
