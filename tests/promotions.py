"""Small finished runs: the folders that a promotion reads, as the stages leave them, and registries made of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distilrank import registry
from distilrank.config import Registry, Text
from distilrank.core import artifacts, schemas
from distilrank.core.run_folders import RunFolders
from distilrank.promotion import promote

IMAGES = {"ops": "shop/ops@sha256:" + "1" * 64, "train": "shop/train@sha256:" + "2" * 64}
LINEAGE = {"name": "nightly", "data": "d" * 64, "code": "c" * 64, "images": IMAGES}
OVERRIDE = {"by": "ana@shop.example", "reason": "season starts on Monday", "until": "2026-12-01"}
FOLDERS = ("resolved", "profile", "teacher", "student", "evaluation", "drift", "verdict", "report", "traffic")


def student(folder: Path, weights: str) -> str:
    """Write a sealed student; `weights` make its bytes. Returns the id of the version that it would be."""
    artifacts.write_text(folder / "model.safetensors", weights * 1000)
    artifacts.write_text(folder / "onnx" / "model.onnx", weights)
    description = {"base": "wheel:mini", "text": Text().model_dump(mode="json"), "calibration": {"method": "none"}}
    artifacts.write_json(folder / "distilrank.json", description)
    artifacts.write_json(folder / "metrics.json", {"dev": {"student": 0.91, "bm25": 0.85}})
    return registry.version_id(artifacts.seal(folder))


def stages(
    root: Path,
    weights: str = "a",
    *,
    champion: str = "",
    anchor: str = "",
    ndcg: float = 0.9,
    passes: int = 3,
    override: dict[str, str] | None = None,
) -> dict[str, Path]:
    """The folders of a run, whose student was made in `passes` and reached `ndcg`."""
    shutil.rmtree(root, ignore_errors=True)
    folders = {name: root / name for name in FOLDERS}
    candidate = student(folders["student"], weights)
    numbers = {field.name for field in schemas.TRAFFIC if not pa.types.is_string(field.type)}
    columns = {field.name: [1, 2] if field.name in numbers else ["x", "y"] for field in schemas.TRAFFIC}
    schemas.write(pa.table(columns), folders["traffic"] / "reference.parquet", schemas.TRAFFIC)
    scores = pa.table({"score": np.array([0.2, 0.8], np.float32)})
    schemas.write(scores, folders["evaluation"] / "traffic_scores" / "reference.parquet", schemas.TRAFFIC_SCORES)
    figures = {"student": {"ndcg_at_10": ndcg, "ece": 0.05, "mrr": None}, "bm25": {"ndcg_at_10": 0.8}}
    artifacts.write_json(folders["evaluation"] / "metrics.json", {"protocol": {"queries": 100}, "systems": figures})
    artifacts.write_json(folders["drift"] / "drift.json", {"candidate": {"share": 0.1}, "champion": None})
    for page in ("drift.html", "summary.html"):
        artifacts.write_text(folders["drift"] / page, "<p>drift</p>")
    artifacts.write_text(folders["report"] / "report.html", f"<p>report on {weights}</p>")
    artifacts.write_json(folders["teacher"] / "distilrank.json", {"base": "wheel:large"})
    check = {"name": "lift_over_bm25", "passed": True, "value": 0.07, "bound": 0, "detail": "95 % CI [0.071, 0.108]"}
    late = {"name": "latency", "passed": override is None, "value": 9.0, "bound": 8.0, "detail": "p99 is 9 ms"}
    verdict = {
        "outcome": "overridden" if override else "promoted" if champion else "cold_start",
        "promoted": True,
        "checks": [check, late],
        "candidate": {"id": candidate},
        "champion": {"id": champion} if champion else None,
        "anchor": {"id": anchor} if anchor else None,
        "override": override,
        "test_set": {"digest": "5" * 64, "test_evaluations": 2, "warn_after": 19},
    }
    artifacts.write_json(folders["verdict"] / "verdict.json", verdict)
    seal(folders, champion=champion, anchor=anchor, passes=passes)
    return folders


def seal(folders: dict[str, Path], *, champion: str = "", anchor: str = "", passes: int = 3) -> None:
    """Seal the folders of a run as they are now, with a record of each stage that tells what it was made from."""
    settings: dict[str, dict[str, Any]] = {
        "resolved": {"data": {"path": "shop.csv"}, "window": {"days": 28}, "gate": {"metric": "not the gate's own"}},
        "profile": {"salt": "s"},
        "student": {"passes": passes, "optimizer": {"rate": 3e-5}},
        "verdict": {"metric": "ndcg_at_10"},
    }
    digests = {name: artifacts.seal(folder) for name, folder in folders.items()}
    made_of = digests | {"champion": champion, "anchor": anchor}
    made_of["verdict"] = artifacts.digest_file(folders["verdict"] / "verdict.json")
    for name, folder in folders.items():
        facts = {"newest_end": "2026-11-01", "champion": champion}
        inputs = {key: made_of[key] for key in promote.EVIDENCE.get(name, ())}
        record = {"config": settings.get(name, {"of": name}), "inputs": inputs, "facts": facts}
        artifacts.write_record(folder, record)


def run(
    config: Registry,
    folders: dict[str, Path],
    *,
    champion: str = "",
    anchor: str = "",
    output: str = "promotion",
    lineage: dict[str, Any] | None = None,
) -> str:
    """Promote what the run made; returns the version."""
    return promote.promote(
        config,
        RunFolders(**folders),
        label={"batch": 32},
        champion=champion,
        anchor=anchor,
        lineage=LINEAGE if lineage is None else lineage,
        output=folders["student"].parent / output,
    )


def fill(config: Registry, root: Path, *weights: str) -> list[str]:
    """Promote a student after the other, each over the one before; returns the versions."""
    versions: list[str] = []
    for number, text in enumerate(weights):
        before = {"champion": versions[-1] if versions else "", "anchor": versions[0] if versions else ""}
        folders = stages(root / f"run-{text}", text, ndcg=0.9 + number / 100, passes=3 + number, **before)
        versions.append(run(config, folders, **before))
    return versions
