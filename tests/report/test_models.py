from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distilrank.core import schemas
from distilrank.evaluation import score_spread
from distilrank.rendering import figures
from distilrank.report import models


def test_histograms_on_one_grid_add_up() -> None:
    rng = np.random.default_rng(1)
    shards = [rng.normal(mean, 1, 50) for mean in (-3, 0, 4)]
    whole = score_spread.spread(np.concatenate(shards))["histogram"]
    assert models.sum_histograms([score_spread.spread(shard)["histogram"] for shard in shards]) == whole


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"method": "none"}, "The teacher is not calibrated"),
        ({"method": "isotonic"}, "by a monotone curve (isotonic), as configured."),
        ({"method": "platt", "chosen_by": {"rows": 90, "queries": 12}}, "90 pairs of 12 queries are too few"),
        (
            {"method": "isotonic", "gain": 0.02, "standard_error": 0.004},
            "The gain of 0.0200 exceeds its standard error of 0.0040",
        ),
        ({"method": "platt", "gain": 0.002, "standard_error": 0.004}, "is within its standard error of 0.0040."),
        ({"method": "platt", "gain": -0.02, "standard_error": 0.004}, "that of a monotone curve (isotonic) is 0.4200."),
    ],
)
def test_the_choice_of_calibration_is_explained(chosen: dict, message: str) -> None:
    if "gain" in chosen:
        losses = {"platt": 0.4, "isotonic": 0.4 - chosen["gain"]}
        chosen = {"method": chosen["method"], "chosen_by": {"rows": 900, "queries": 90, "log_loss": losses, **chosen}}
    assert message in models.calibration_text(chosen)


def test_relevant_pairs_are_recognized_by_their_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gains need not be targets: those of ESCI are 1, .1, .01 and 0 for targets of 1, .5, .25 and 0."""
    metrics = {"systems": {"student": {"ece": None}}, "protocol": {"relevant_grade": 10, "relevant_from": 0.5}}
    metrics["reliability"] = {"teacher": []}
    rows = [{"system": "student", "query_id": "q", "product_id": f"p{number}", "target": target, "score": score}
            for number, (target, score) in enumerate([(1.0, 4.0), (0.5, 3.0), (0.25, 2.0), (0.0, 1.0)])]  # fmt: skip
    table = pa.Table.from_pylist([{**row, "probability": None} for row in rows], schema=schemas.PAIR_SCORES)
    schemas.write(table, tmp_path / "pair_scores.parquet", schemas.PAIR_SCORES)
    drawn = []
    monkeypatch.setattr(figures, "plot_score_histograms", lambda parts, *_: drawn.append(parts) or "")
    assert models.calibration_section(metrics, tmp_path)["scale"] == "raw score"
    ((relevant, others),) = (part["student"] for part in drawn)
    assert (relevant.tolist(), others.tolist()) == ([4, 3], [2, 1])
