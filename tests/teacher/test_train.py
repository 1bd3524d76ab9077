"""The teacher by each recipe, and what stops it before it labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distilrank.config import Lora
from distilrank.core import artifacts, schemas
from distilrank.core.errors import RunStopped
from tests.small_teachers import config, digest, train, write_judgements


@pytest.fixture(scope="module")
def judgements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judgements(tmp_path_factory.mktemp("prepared") / "judgements")


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "ordinal", "levels": 3},
        {"weighting": "raters"},
        {"batches": "queries"},
        {"lora": Lora(rank=4, alpha=8, variant="rslora")},
        {"lora": Lora(rank=4, alpha=8, variant="dora")},
        {"lora": Lora(rank=4, alpha=8, dropout=0.1)},
    ],
)
def test_each_recipe_learns(models: Path, judgements: Path, tmp_path: Path, changes: dict) -> None:
    teacher_config = config(models, **changes, optimizer={"epochs": 10})
    output = train(teacher_config, judgements, tmp_path / "teacher")
    figures = artifacts.read_json(output / "metrics.json")
    losses = [row["loss"] for row in figures["curve"]]
    assert losses[-1] < losses[0]
    assert figures["dev"]["teacher"] > figures["dev"]["random"]
    assert json.loads((output / "quality.json").read_text())["calibration"]["method"] in ("platt", "isotonic")


def test_raters_weigh(models: Path, judgements: Path, tmp_path: Path) -> None:
    table = schemas.read(judgements / "train.parquet", schemas.JUDGED)
    raters = pa.array(np.where(np.arange(table.num_rows) % 2, 1, 2), pa.int32())
    other = tmp_path / "judgements"
    artifacts.copy_tree(judgements, other)
    schemas.write(
        table.set_column(table.column_names.index("raters"), "raters", raters), other / "train.parquet", schemas.JUDGED
    )
    artifacts.seal(other)
    equal, weighed = (
        digest(train(config(models, weighting=weighting), other, tmp_path / weighting))["model.safetensors"]
        for weighting in ("equal", "raters")
    )
    assert equal != weighed


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lift_over_bm25": 0.9}, r"expected a lift above 0\.9 before labeling"),
        ({"max_ece": 0.0}, r"calibration error \(ECE\) 0\.\d+ on dev, expected at most 0 before labeling"),
        (
            {"min_deviation": 50.0},
            r"teacher: the standard deviation of \d+ logits is .*, expected 50 or more; give it more judgements",
        ),
    ],
)
def test_a_teacher_that_misses_its_minimums_stops_the_run_before_labeling(
    models: Path, judgements: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(RunStopped, match=message):
        train(config(models, **changes), judgements, tmp_path / "teacher")
    assert not (tmp_path / "teacher" / artifacts.SEAL).exists()
