"""Drift of texts by their embeddings."""

from __future__ import annotations

import shutil
from pathlib import Path

from distilrank.config import Drift
from distilrank.core import artifacts
from tests.traffic_samples import columns_by_name, folders, run_stage, traffic, with_texts


def test_new_texts_are_drift_and_repeated_ones_are_not(tmp_path: Path, models: Path) -> None:
    old = [f"{color} {thing}" for color in ("red", "blue", "green", "black") for thing in ("sofa", "couch", "chair")]
    new = [f"{thing} {kind}" for thing in ("cordless drill", "phone case") for kind in ("men", "kids", "steel", "wood")]
    reference = with_texts(traffic(300, 1), old, 1)
    config = Drift(embedding_rows=200)
    for name, queries, drifted in (("same", old, False), ("new", old[:2] + 2 * new, True)):
        paths = folders(tmp_path / name, reference, with_texts(traffic(300, 1), queries, 2))
        shutil.rmtree(paths["student"])
        shutil.copytree(models / "encoder", paths["student"])
        artifacts.seal(paths["student"])
        part = run_stage(paths, config)["candidate"]
        embedding = part["embedding"]
        assert embedding["drifted"] is drifted and ("embedding" in part["why"]) is drifted, name
        assert embedding["ci_low"] <= embedding["auc"] <= embedding["ci_high"] and embedding["rows"] == {
            "reference": 200,
            "current": 200,
        }
        assert columns_by_name(part)["embedding"]["value"] == embedding["auc"]
    assert {example["query"] for example in embedding["examples"]} >= set(new)
    assert embedding["examples"][0]["query"] in (paths["output"] / "summary.html").read_text()


def test_a_student_other_than_bert_is_noted_and_stops_nothing(tmp_path: Path) -> None:
    part = run_stage(folders(tmp_path, traffic(60, 1), traffic(60, 2)), Drift())["candidate"]
    assert part["embedding"] is None and "Embeddings not compared: " in part["note"]
