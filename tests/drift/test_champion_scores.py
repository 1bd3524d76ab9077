"""The champion's scores on the newest traffic, and its disagreement with its teacher, on small real models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from distilrank import registry
from distilrank.config import Monitor, Registry, Text
from distilrank.core import artifacts, schemas
from distilrank.drift.champion_scores import score_newest
from distilrank.modeling.scorer import Scorer
from tests.judged_samples import CPU, trained
from tests.tiny_models import WORDS
from tests.traffic_samples import traffic, with_texts

PLATT = {"method": "platt", "slope": 0.5, "intercept": -0.25}


def test_disagreement_is_the_mean_difference_of_the_probabilities(tmp_path: Path, models: Path) -> None:
    for name, seed in (("version/student", 1), ("teacher", 2)):
        trained(models / "encoder", tmp_path / name, seed, "encoder", Text(max_tokens=32), PLATT)
    windows = {
        "reference": with_texts(traffic(60, 1), WORDS[:20], 1),
        "newest": with_texts(traffic(40, 2), WORDS[10:40], 2),
    }
    schemas.write(windows["reference"], tmp_path / "version" / "traffic" / "reference.parquet", schemas.TRAFFIC)
    schemas.write(windows["newest"], tmp_path / "traffic" / "current.parquet", schemas.TRAFFIC)
    artifacts.seal(tmp_path / "traffic")
    champion = registry.version_id(artifacts.sealed_digest(tmp_path / "version" / "student"))
    registry.open(str(tmp_path / "registry")).publish(tmp_path / "version", champion)

    def disagreement(teacher: str) -> dict:
        score_newest(
            Monitor(teacher=str(tmp_path / teacher), pairs=1000),
            CPU,
            Registry(uri=str(tmp_path / "registry")),
            traffic=tmp_path / "traffic",
            champion=champion,
            output=tmp_path / "scores",
        )
        return artifacts.read_json(tmp_path / "scores" / "disagreement.json")

    result = disagreement("teacher")
    scorers = [Scorer.load(tmp_path / name, CPU) for name in ("teacher", "version/student")]
    gaps = {}
    for name, window in windows.items():
        teacher, student = (scorer.estimate(scorer.score(window)) for scorer in scorers)
        gaps[name] = np.abs(teacher - student)
        assert result[name] == {"pairs": window.num_rows, "mean": pytest.approx(gaps[name].mean(), abs=1e-6)}
    assert result["rise"] == pytest.approx(gaps["newest"].mean() - gaps["reference"].mean(), abs=1e-6)
    assert result["ci_low"] < result["rise"] < result["ci_high"]
    example_gaps = [abs(example["teacher"] - example["student"]) for example in result["examples"]]
    assert example_gaps == pytest.approx(sorted(gaps["newest"], reverse=True)[:10], abs=1e-6)
    scores = pq.read_table(tmp_path / "scores" / "scores.parquet")["score"].to_numpy()
    assert scores == pytest.approx(student, abs=1e-6)

    itself = disagreement("version/student")
    assert (itself["rise"], itself["ci_low"], itself["ci_high"]) == (0, 0, 0)
