"""The `monitor` stage: its outcome for programs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distilrank.config import Drift, Monitor, Registry
from distilrank.core import artifacts, progress, schemas
from distilrank.drift.monitor import monitor_champion
from tests.traffic_samples import folders, publish_champion, traffic


def test_the_outcome_is_logged_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, moved = traffic(400, 1), traffic(400, 2, bm25=np.random.default_rng(3).gamma(2, 9, 400))
    scores = np.full(400, 0.9) + np.arange(400) / 1e4
    champion, store = publish_champion(tmp_path, reference, scores), Registry(uri=str(tmp_path / "registry"))
    schemas.write(pa.table({"score": scores}), tmp_path / "scores" / "scores.parquet", schemas.TRAFFIC_SCORES)
    artifacts.seal(tmp_path / "scores")
    alarm = {"alarm": True, "failed": ["drift"]}
    for newest, retrain, expected in (
        (reference, "on_alarm", {"alarm": False, "failed": [], "retrain": False}),
        (moved, "never", alarm | {"retrain": False}),
        (moved, "on_alarm", alarm | {"retrain": True}),
    ):
        retrains = monitor_champion(
            Monitor(retrain=retrain),
            Drift(embedding_rows=0),
            store,
            traffic=folders(tmp_path, newest, newest)["traffic"],
            scores=tmp_path / "scores",
            champion=champion,
            name="daily",
            newest_end="",
            output=tmp_path / "monitored",
        )
        events = [event for line in capsys.readouterr().out.splitlines() if (event := progress.parse(line))]
        (outcome,) = (event for event in events if event.event == "outcome")
        assert (outcome.stage, json.loads(outcome.text)) == ("monitor", expected)
        assert retrains is expected["retrain"]
