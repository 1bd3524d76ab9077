"""What a run will take, told from a sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from distilrank.config import Compute, Label, Lora, Optimizer, Teacher
from distilrank.core import artifacts, schemas
from distilrank.modeling import encoding, scorer
from distilrank.teacher import estimate
from tests.small_pairs import pairs


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    for split, seed in (("train", 1), ("dev", 2)):
        schemas.write(pairs(12, 5, seed), tmp_path / "judgements" / f"{split}.parquet", schemas.JUDGED)
    artifacts.seal(tmp_path / "judgements")
    for number in range(2):
        path = tmp_path / "candidates" / f"shard-{number:05d}.parquet"
        schemas.write(pairs(9, 5, 3 + number), path, schemas.CANDIDATES)
    artifacts.seal(tmp_path / "candidates")
    return tmp_path


@pytest.mark.parametrize("kind, rank", [("decoder", 4), ("encoder", 0)])
def test_rows_and_tokens_are_those_of_the_data(prepared: Path, models: Path, monkeypatch, kind: str, rank: int) -> None:
    monkeypatch.setattr(estimate, "SECONDS", 0.2)
    teacher = Teacher(model=str(models / kind), lora=Lora(rank=rank), optimizer=Optimizer(epochs=3, evaluations=2))
    compute = Compute(device="cpu", precision="fp32", threads=1, price_per_hour=1000.0)
    result = estimate.estimate(
        teacher,
        Label(),
        compute,
        judgements=prepared / "judgements",
        candidates=prepared / "candidates",
        output=prepared / "spend",
    )
    assert result == artifacts.read_json(prepared / "spend" / "estimate.json")
    encoder = scorer.load_encoder(models / kind, teacher.text, teacher.kind)
    tokens = [
        len(encoding.encode_table(encoder, schemas.read(path, schema), teacher.text).ids)
        for path, schema in (
            (prepared / "judgements" / "train.parquet", schemas.JUDGED),
            (prepared / "candidates" / "shard-00000.parquet", schemas.CANDIDATES),
        )
    ]
    training, labeling = result["training"], result["labeling"]
    assert (training["rows"], training["tokens"]) == (60, 3 * tokens[0])
    assert (labeling["rows"], labeling["tokens"], labeling["shards"]) == (90, 2 * tokens[1], 2)
    for part in (training, labeling):
        assert part["device_hours"] >= part["tokens"] / part["tokens_per_second"] / 3600 * 0.9 - 1e-4
        assert part["price"] == pytest.approx(1000 * part["device_hours"], abs=0.1)


def test_unknown_prices_are_null(prepared: Path, models: Path, monkeypatch) -> None:
    monkeypatch.setattr(estimate, "SECONDS", 0.05)
    folders = {name: prepared / name for name in ("judgements", "candidates")}
    compute = Compute(device="cpu", precision="fp32", threads=1)
    result = estimate.estimate(
        Teacher(model=str(models / "decoder")), Label(), compute, **folders, output=prepared / "spend"
    )
    assert result["training"]["price"] is None and result["labeling"]["price"] is None
