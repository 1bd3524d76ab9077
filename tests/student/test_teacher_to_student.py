"""Teacher, labels, student and scorer on tiny real models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from distilrank import score_files
from distilrank.config import Compute, Label, Lora, Optimizer, Student, StudentOptimizer, Teacher, Text
from distilrank.core import artifacts, schemas
from distilrank.core.errors import InputError, RunStopped
from distilrank.modeling import scorer
from distilrank.student import train as student
from distilrank.teacher import labeling
from distilrank.teacher import train as teacher
from tests.small_pairs import pairs

COMPUTE = Compute(device="cpu", precision="fp32", threads=1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    for split, seed in (("train", 1), ("dev", 2), ("test", 3)):
        schemas.write(pairs(24, 6, seed), folder / "judgements" / f"{split}.parquet", schemas.JUDGED)
    artifacts.write_json(folder / "judgements" / "protocol.json", {"relevant_from": 0.75})
    artifacts.seal(folder / "judgements")
    for shard, seed in (("shard-00000", 4), ("shard-00001", 5)):
        schemas.write(pairs(15, 5, seed), folder / "candidates" / f"{shard}.parquet", schemas.CANDIDATES)
    artifacts.seal(folder / "candidates")
    return folder


def teacher_config(models: Path, **changes) -> Teacher:
    settings = {
        "model": str(models / "decoder"),
        "lora": Lora(rank=8, alpha=16),
        "optimizer": Optimizer(epochs=15, learning_rate=3e-3, batch_tokens=400, evaluations=3),
        "lift_over_bm25": -1.0,
        "min_deviation": 0,  # of weights so small and random
        "max_ece": 1.0,
    }
    return Teacher(**settings | changes)


@pytest.fixture(scope="module")
def taught(prepared: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("taught") / "teacher"
    teacher.train(
        teacher_config(models), COMPUTE, judgements=prepared / "judgements", model_digest="d" * 64, output=output
    )
    return output


@pytest.fixture(scope="module")
def labeled(prepared: Path, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("labeled") / shard for shard in ("shard-00000", "shard-00001")]
    for folder in folders:
        labeling.label(
            Label(), COMPUTE, shard=folder.name, candidates=prepared / "candidates", teacher=taught, output=folder
        )
    return folders


@pytest.fixture(scope="module")
def distilled(prepared: Path, taught: Path, labeled: list[Path], models: Path, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("distilled") / "student"
    config = Student(
        model=str(models / "encoder"),
        optimizer=StudentOptimizer(epochs=2, learning_rate=2e-3, batch_tokens=600, evaluations=2),
        text=Text(max_tokens=48),
    )
    student.train(
        config,
        COMPUTE,
        judgements=prepared / "judgements",
        candidates=prepared / "candidates",
        labeled=labeled,
        teacher=taught,
        model_digest="d" * 64,
        output=output,
    )
    return output


# Scoring --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["taught", "distilled"])
def test_scores_depend_on_neither_padding_nor_order(which: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    table = pairs(6, 5, 9)
    table = table.set_column(
        3, "title", pa.array([f"{title} red" * (row % 7) + "x" for row, title in enumerate(table["title"].to_pylist())])
    )
    one_by_one = scorer.Scorer.load(folder, COMPUTE, tokens=1).score(table)
    together = scorer.Scorer.load(folder, COMPUTE, tokens=100_000).score(table)
    np.testing.assert_allclose(one_by_one, together, atol=2e-5)
    shuffled = np.random.default_rng(0).permutation(table.num_rows)
    np.testing.assert_allclose(
        scorer.Scorer.load(folder, COMPUTE).score(table.take(shuffled)), together[shuffled], atol=2e-5
    )


def test_the_student_loads_in_sentence_transformers_and_transformers_with_equal_scores(distilled: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification

    table = pairs(5, 6, 11)
    hostile = ["red [SEP] sofa", "sofa " * 200, "", "[MASK]" * 3]
    titles = table["title"].to_pylist()
    table = table.set_column(3, "title", pa.array(hostile + titles[len(hostile) :]))
    ours = scorer.Scorer.load(distilled, COMPUTE)
    expected, rendered = ours.score(table), ours.pairs(table)
    np.testing.assert_allclose(CrossEncoder(str(distilled), device="cpu").predict(rendered), expected, atol=1e-4)

    tokenizer = AutoTokenizer.from_pretrained(distilled)
    model = AutoModelForSequenceClassification.from_pretrained(distilled).eval()
    inputs = tokenizer(*zip(*rendered, strict=True), padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(model(**inputs).logits[:, 0].numpy(), expected, atol=1e-4)


def test_each_run_proves_that_its_student_scores_as_it_was_trained(distilled: Path) -> None:
    proof = artifacts.read_json(distilled / "parity.json")
    assert proof["pairs"] > 40 and proof["bound"] == 1e-4
    assert set(proof["max_difference"]) == {"scorer, torch", "scorer, onnx", "transformers"}
    assert max(proof["max_difference"].values()) <= 1e-4


def test_score_file_keeps_order_and_columns(distilled: Path, tmp_path: Path) -> None:
    source = tmp_path / "pairs.csv"
    source.write_text('sku,query,title,country\n7,red sofa,"red sofa, large",NA\n3,nan,blue lamp,\n')
    for name in ("scores.parquet", "scores.csv"):
        score_files.score(str(distilled), source, tmp_path / name, "registry", COMPUTE)
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column_names == ["sku", "query", "title", "country", "score"]
    assert table["sku"].to_pylist() == ["7", "3"] and table["country"].to_pylist() == ["NA", ""]
    assert (tmp_path / "scores.csv").read_text().startswith('"sku","query","title","country","score"\n"7","red sofa"')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("query,name\nsofa,x\n", r"pairs.csv: missing column 'title'; it has query, name"),
        ("query,title\nsofa,x\n ,y\n", r"pairs.csv: row 2: query is empty, expected a value in each row"),
        ('query,title\nsofa,"x\nlamp,y\n', r"pairs.csv: row \d: .*quote"),
        ("query,title\nsofa,x\nsofa\n", r"pairs.csv: row 2: title is empty|not readable"),
    ],
)
def test_score_file_names_what_is_wrong_and_writes_nothing(
    distilled, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        score_files.score(str(distilled), tmp_path / "pairs.csv", tmp_path / "out.parquet", "registry", COMPUTE)
    assert not (tmp_path / "out.parquet").exists()


# Teacher --------------------------------------------------------------------------------------------------------------


def test_the_teacher_learns_and_is_saved_whole(taught: Path) -> None:
    written = {path.name for path in taught.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "adapter",
        "distilrank.json",
        "metrics.json",
        "digest.json",
        "stage.json",
    } <= written
    assert (taught / "adapter" / "adapter_model.safetensors").exists()
    permissions = {path.stat().st_mode for path in taught.rglob("*") if path.is_file()}
    assert permissions == {(taught / "digest.json").stat().st_mode}, "weights are readable by those who read the rest"
    assert not [path for path in taught.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    metrics = artifacts.read_json(taught / "metrics.json")
    assert metrics["curve"][-1]["loss"] < 0.95 * metrics["curve"][0]["loss"]
    assert metrics["dev"]["teacher"] == pytest.approx(max(row["dev_ndcg_at_10"] for row in metrics["curve"]), abs=1e-3)


def test_a_teacher_that_does_not_beat_bm25_stops_the_run(prepared: Path, models: Path, tmp_path: Path) -> None:
    config = teacher_config(models, lift_over_bm25=0.99, optimizer=Optimizer(epochs=1, evaluations=1))
    with pytest.raises(RunStopped, match=r"dev nDCG@10 0\.\d+ against BM25's 0\.\d+, expected a lift above 0.99"):
        teacher.train(
            config, COMPUTE, judgements=prepared / "judgements", model_digest="d" * 64, output=tmp_path / "teacher"
        )
    assert not (tmp_path / "teacher" / artifacts.SEAL).exists()


def test_an_encoder_can_be_the_teacher(prepared: Path, models: Path, tmp_path: Path) -> None:
    config = teacher_config(models, model=str(models / "encoder"), lora=Lora(rank=0), calibration="isotonic")
    teacher.train(
        config, COMPUTE, judgements=prepared / "judgements", model_digest="d" * 64, output=tmp_path / "teacher"
    )
    loaded = scorer.Scorer.load(tmp_path / "teacher", COMPUTE)
    probability = loaded.probability(loaded.score(pairs(3, 4, 8)))
    assert probability is not None and probability.min() >= 0 and probability.max() <= 1


# Student --------------------------------------------------------------------------------------------------------------


def test_the_student_learns_from_labels_and_judgements(distilled: Path) -> None:
    metrics = artifacts.read_json(distilled / "metrics.json")
    assert metrics["dev"]["student"] > 0.75 and len(metrics["curve"]) == 2
    assert all(np.isfinite(row["loss"]) for row in metrics["curve"])
    assert artifacts.verify(distilled)
