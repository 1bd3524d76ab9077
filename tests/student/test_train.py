"""The student's training: what it learns from, by which loss, and what stops it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from distilrank.config import Compute, Export, Student, StudentOptimizer, Text
from distilrank.core import artifacts, schemas
from distilrank.core.errors import InputError
from distilrank.modeling.scorer import DESCRIPTION, Scorer
from distilrank.student import train as student
from distilrank.student.dataset import ListwiseDataset
from distilrank.teacher import label_manifest, quality
from distilrank.training import losses
from distilrank.training.checkpoints import Checkpoints
from tests.small_pairs import pairs
from tests.student.test_dataset import chunk

CPU = Compute(device="cpu", precision="fp32", threads=1)
WORK = {
    "pairs": 1, "tokens": 1, "truncated": 0, "seconds": 1.0, "device_hours": 0.1, "device": "cpu", "price": None
}  # fmt: skip
SHARDS = ("shard-00000", "shard-00001")


def lay_down(folder: Path, shards: dict[str, tuple[pa.Table, np.ndarray]]) -> Path:
    """Judgements, candidates, labels and what is read of a teacher, as the stages before would leave them."""
    for split, seed in (("train", 1), ("dev", 2), ("test", 3)):
        schemas.write(pairs(24, 6, seed), folder / "judgements" / f"{split}.parquet", schemas.JUDGED)
    artifacts.write_json(folder / "judgements" / "protocol.json", {"relevant_from": 0.75})
    artifacts.seal(folder / "judgements")
    (folder / "teacher").mkdir()
    artifacts.write_json(folder / "teacher" / DESCRIPTION, {"calibration": {"method": "none"}})
    curve = quality.confidence(np.linspace(0.05, 0.95, 200), np.linspace(0, 1, 200).round())
    artifacts.write_json(folder / "teacher" / quality.QUALITY, {"confidence": curve})
    artifacts.seal(folder / "teacher")
    for name, (table, _) in shards.items():
        schemas.write(table, folder / "candidates" / f"{name}.parquet", schemas.CANDIDATES)
    artifacts.seal(folder / "candidates")
    for name, (table, logits) in shards.items():
        output = folder / "labels" / name
        columns = [table[key] for key in ("query_id", "product_id")]
        labels = pa.table([*columns, pa.array(logits, pa.float32())], ["query_id", "product_id", "logit"])
        schemas.write(labels, output / "labels.parquet", schemas.LABELS)
        label_manifest.write(
            output,
            {
                "shard": name,
                "rows": len(table),
                "queries": len(set(table["query_id"].to_pylist())),
                "teacher": artifacts.sealed_digest(folder / "teacher"),
                "candidates": artifacts.digest_file(folder / "candidates" / f"{name}.parquet"),
                "labels": artifacts.digest_file(output / "labels.parquet"),
                "work": WORK,
            },
        )
        artifacts.seal(output)
    return folder


def taught(table: pa.Table) -> np.ndarray:
    """Logits of a teacher who knows."""
    return 4 * table["target"].to_numpy() - 2


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tables = {name: pairs(20, 6, seed) for name, seed in zip(SHARDS, (4, 5))}
    folder = tmp_path_factory.mktemp("stages")
    return lay_down(folder, {name: (table, taught(table)) for name, table in tables.items()})


def config(models: Path, **changes) -> Student:
    optimizer = {"epochs": 2, "learning_rate": 2e-3, "batch_tokens": 400, "evaluations": 2}
    settings = {"model": str(models / "encoder"), "text": Text(max_tokens=48), "export": Export(onnx=False)}
    return Student(**settings | changes | {"optimizer": StudentOptimizer(**optimizer | changes.get("optimizer", {}))})


def train(student_config: Student, stages: Path, output: Path, **compute) -> Path:
    student.train(
        student_config,
        CPU.model_copy(update=compute),
        judgements=stages / "judgements",
        candidates=stages / "candidates",
        labeled=[path for path in sorted((stages / "labels").iterdir())],
        teacher=stages / "teacher",
        model_digest="d" * 64,
        output=output,
    )
    return output


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


# Loss -----------------------------------------------------------------------------------------------------------------

SETTINGS = [
    {},
    {"target": "probability", "pointwise": 0.5, "judged_weight": 2.0},
    {"loss": "ranknet", "pointwise_loss": "cross_entropy", "judged_loss": "ranknet"},
    {"loss": "ranknet", "target": "probability", "pointwise": 0},
    {"loss": "listwise", "temperature": 2.0, "confidence": True},
    {"loss": "none", "pointwise": 1.0, "pointwise_loss": "cross_entropy", "target": "probability"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())) or "default")
def test_a_batch_costs_what_the_configuration_says(tmp_path: Path, settings: dict) -> None:
    student_config = Student(**settings)
    queries = [0, 0, 0, 1, 1, 2]
    labeled, judged = chunk(queries, 0), chunk([0, 0, 3, 3, 3], 6, True)
    rng = np.random.default_rng(0)
    labeled = labeled._replace(targets=rng.random(6), weights=rng.uniform(0.5, 2, 6))
    judged = judged._replace(targets=rng.random(5))
    lists = ListwiseDataset(iter([labeled, judged]), tmp_path)
    logits = torch.tensor(rng.normal(size=11), dtype=torch.float32, requires_grad=True)
    loss = student.Objective(student_config, lists, torch.device("cpu"))
    actual = loss(lambda tokens, rows: logits[torch.from_numpy(rows)], np.array([4, 0, 2, 1, 3]))

    target, weight, query = (torch.from_numpy(v) for v in (lists.targets, lists.weights, lists.tokens.queries))
    t, s, q, w = target[:6], logits[:6], query[:6], weight[:6] if student_config.confidence else None
    score = s if student_config.target == "logit" else s.sigmoid()
    prefer = losses.prefer_by_logit if student_config.target == "logit" else losses.prefer_by_probability
    expected = {
        "margin": lambda: losses.margin_loss(score, t, q, w),
        "ranknet": lambda: losses.ranknet_loss(s, prefer, t, q, w),
        "listwise": lambda: losses.listwise_loss(score, t, q, w, student_config.temperature),
        "none": lambda: 0,
    }[student_config.loss]()
    if student_config.pointwise_loss == "squared_error":
        expected = expected + student_config.pointwise * losses.pointwise_loss(score, t, q, w)
    else:
        soft = t if student_config.target == "probability" else t.sigmoid()
        expected = expected + student_config.pointwise * losses.pointwise_cross_entropy(s, soft, q, w)
    if student_config.judged_loss == "cross_entropy":
        people = losses.soft_cross_entropy(logits[6:], target[6:])
    else:
        people = losses.ranknet_loss(logits[6:], losses.prefer_by_probability, target[6:], query[6:])
    expected = 3 / 5 * expected + 2 / 5 * student_config.judged_weight * people
    assert float(actual.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    actual.backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad != 0).all() == (student_config.pointwise > 0)


def test_a_list_that_is_repeated_in_a_batch_is_two(tmp_path: Path) -> None:
    lists = ListwiseDataset(
        iter([chunk([0, 0], 0), chunk([5, 5, 6, 6], 2, True)._replace(targets=np.array([0, 1, 0.5, 0]))]), tmp_path
    )
    loss = student.Objective(Student(judged_loss="ranknet"), lists, torch.device("cpu"))
    logits = torch.tensor([0.3, 0.1, 2.0, -1.0, 0.5, 0.2])

    def loss_of(*batch: int) -> float:
        return float(loss(lambda tokens, rows: logits[torch.from_numpy(rows)], np.array(batch)))

    assert loss_of(1, 1, 2) == pytest.approx((2 * loss_of(1) + loss_of(2)) / 3, rel=1e-5)
    assert loss_of(0, 0, 1) == pytest.approx((2 * loss_of(0) + loss_of(1)) / 3, rel=1e-5)


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": 1, "dropout": 0.1},
        {"loss": "ranknet", "judged_loss": "ranknet", "judged_share": 0.4},
        {"loss": "listwise", "target": "probability", "confidence": True, "judged_weight": 0},
    ],
    ids=["shorter", "ranknet", "listwise"],
)
def test_the_student_learns_the_teachers_ranking(models: Path, stages: Path, tmp_path: Path, settings: dict) -> None:
    output = train(config(models, optimizer={"epochs": 8}, **settings), stages, tmp_path / "student")
    table = schemas.read(stages / "judgements" / "test.parquet", schemas.JUDGED)
    scorer = Scorer.load(output, CPU)
    assert np.corrcoef(scorer.score(table), table["target"])[0, 1] > 0.4
    assert artifacts.read_json(output / "config.json")["num_hidden_layers"] == settings.get("layers", 2)
    assert not list(output.glob(f"{student.TOKEN_FOLDER}*"))
    artifacts.verify(output)


def test_a_killed_student_resumes_and_ends_the_same(models: Path, stages: Path, tmp_path: Path, monkeypatch) -> None:
    student_config = config(models, dropout=0.1)
    whole = train(student_config, stages, tmp_path / "whole")
    progress = {"checkpoint_dir": str(tmp_path / "progress"), "checkpoint_seconds": 0.0}
    save = Checkpoints.save

    def cut_off(self, step: int, state: dict) -> None:
        save(self, step, state)
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train(student_config, stages, tmp_path / "broken", **progress)
    monkeypatch.setattr(Checkpoints, "save", save)
    assert list((tmp_path / "broken").glob(f"{student.TOKEN_FOLDER}*")), "a kill leaves its tokens"
    steps = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, state: steps.append(step) or save(self, step, state))
    train(student_config, stages, tmp_path / "broken", **progress)
    assert steps[0] == 4, "it went on after the third step"
    assert weights(tmp_path / "broken") == weights(whole)
    artifacts.verify(tmp_path / "broken")


@pytest.mark.usefixtures("warm_workers")
def test_two_processes_distil_as_one(models: Path, stages: Path, tmp_path: Path) -> None:
    student_config = config(models, optimizer={"accumulate": 2})
    curves = [
        artifacts.read_json(train(student_config, stages, tmp_path / str(count), processes=count) / "metrics.json")[
            "curve"
        ]
        for count in (1, 2)
    ]
    for ours, theirs in zip(*curves, strict=True):
        assert ours["step"] == theirs["step"] and ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    artifacts.verify(tmp_path / "2")


# Refusals -------------------------------------------------------------------------------------------------------------


def test_labels_that_teach_nothing_are_refused(models: Path, tmp_path: Path) -> None:
    table = pairs(12, 5, 4)

    def refused(message: str, rows: pa.Table, logits: np.ndarray, **settings) -> None:
        folder = tmp_path / hashlib.sha256(message.encode()).hexdigest()[:8]
        stages = lay_down(folder, {"shard-00000": (rows, logits)})
        with pytest.raises(InputError, match=message):
            train(config(models, **settings), stages, folder / "student")
        assert not (folder / "student" / artifacts.SEAL).exists()

    refused(r"all 60 teacher labels equal 0\.5: there is no margin to learn", table, np.full(60, 0.5))
    singles = table.take(np.arange(0, 60, 5))
    message = "each of the 12 labeled queries has one product.*student.pointwise above 0"
    refused(message, singles, np.arange(12.0), pointwise=0)
    broken = taught(table).astype(np.float64)
    broken[7] = np.nan
    refused(r"labels.parquet: row 8, logit nan, expected a finite one", table, broken)
    nothing = table.slice(0, 0)
    refused("candidates: no candidate is labeled", nothing, np.zeros(0))
    refused(r"student.layers: 9, but the model has 2", table, taught(table), layers=9)


def test_queries_of_one_product_feed_the_pointwise_term(models: Path, tmp_path: Path, capsys) -> None:
    table = pairs(12, 5, 4)
    rows = table.take(np.concatenate([np.arange(10), np.arange(10, 60, 5)]))
    stages = lay_down(tmp_path / "stages", {"shard-00000": (rows, taught(rows))})
    train(config(models, judged_weight=0), stages, tmp_path / "student")
    assert "10 of 12 labeled queries have one product: the pointwise term only" in capsys.readouterr().out


def test_a_loss_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="loss is 'none' and pointwise is 0"):
        Student(loss="none", pointwise=0)


def test_labels_of_two_teachers_are_refused(models: Path, stages: Path, tmp_path: Path) -> None:
    shutil.copytree(stages, tmp_path / "stages")
    output = tmp_path / "stages" / "labels" / SHARDS[1]
    manifest = {key: value for key, value in label_manifest.read(output).items() if key != "digest"}
    label_manifest.write(output, manifest | {"teacher": "0" * 64})
    artifacts.seal(output)
    with pytest.raises(InputError, match="labels of 2 different teachers"):
        train(config(models), tmp_path / "stages", tmp_path / "student")
