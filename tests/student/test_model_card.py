from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from distilrank.config import Student
from distilrank.core import artifacts
from distilrank.core.errors import InputError
from distilrank.student import model_card

PARITY = {
    "reference": {"system": "torch 2, fp32", "pairs": 90, "queries": 11, "ndcg_at_10": 0.9},
    "bounds": {"max_difference": 1e-3, "max_ndcg_loss": 0.002},
    "files": {
        "model.onnx": {
            "bytes": 2**20,
            "fused": {},
            "max_difference": 2e-6,
            "mean_difference": 1e-7,
            "spearman": None,
            "ndcg_at_10": 0.9,
            "ndcg_loss": 0.0,
        }
    },
    "left_out": {"model_qint8_avx512_vnni.onnx": "ndcg_loss 0.01 from torch in fp32, expected at most 0.002"},
}
EVALUATION = {
    "protocol": {"source": "demo_shop", "rating_range": [1, 3], "split": {"salt": "s", "test_share": 0.25}},
    "systems": {
        "random": {"ndcg_at_10": 0.81, "ece": None},
        "student": {"ndcg_at_10": 0.91, "ece": 0.02},
        "champion": None,
    },
}


def _record(**changes: Any) -> dict[str, Any]:
    return {"config": Student(**changes).model_dump(mode="json"), "inputs": {"judgements": "a1b2", "teacher": "c3d4"}}


@pytest.fixture
def student(tmp_path: Path) -> Path:
    description = {
        "base": "hub:org/small-bert@abc",
        "text": {"fields": ["title", "product_type"], "separator": " [SEP] ", "max_tokens": 96},
        "calibration": {"method": "platt", "slope": 1.25, "intercept": -0.5},
    }
    artifacts.write_json(tmp_path / "distilrank.json", description)
    artifacts.write_json(tmp_path / "metrics.json", {"dev": {"student": 0.9312, "bm25": 0.9}})
    return tmp_path


def test_the_hub_reads_its_metadata(student: Path) -> None:
    artifacts.write_json(student / model_card.PARITY, PARITY)
    model_card.write(student, _record(), license="apache-2.0")
    data = ModelCard.load(student / "README.md").data
    assert (data.license, data.base_model, data.library_name) == (
        "apache-2.0",
        "org/small-bert",
        "sentence-transformers",
    )
    assert data.pipeline_tag == "text-ranking" and {"cross-encoder", "onnx"} <= set(data.tags)
    assert data.eval_results is not None
    assert [(result.metric_type, result.metric_value) for result in data.eval_results] == [("ndcg_at_10", 0.9312)]


def test_it_states_what_the_folder_and_the_record_contain(student: Path) -> None:
    record = _record(
        pointwise=0.5, judged_weight=0, target="probability", optimizer={"learning_rate": 3e-5, "seed": 99}
    )
    card = model_card.render(student, record, teacher="hub:org/large@def")
    assert "title and product type, at most 96 tokens" in card
    assert '("cordless drill", "18 V drill with two batteries [SEP] drills")' in card
    for setting in (
        "loss | margin",
        "target | probability",
        "pointwise | 0.5",
        "judged_weight | 0.0",
        "optimizer.seed | 99",
    ):
        assert f"| {setting} |" in card
    assert "| judgements | `a1b2` |" in card and "`hub:org/large@def`" in card
    assert "sigmoid(1.2500 * logit -0.5000)" in card
    assert "| this model | 0.9312 |" in card


def test_what_is_not_known_is_stated_as_unknown(student: Path) -> None:
    description = artifacts.read_json(student / "distilrank.json")
    artifacts.write_json(
        student / "distilrank.json", description | {"base": "wheel:w/m", "calibration": {"method": "none"}}
    )
    card = model_card.render(student, _record())
    data = ModelCard(card).data
    assert data.license is None and data.base_model is None and "onnx" not in data.tags
    for sentence in (
        "has a license that is not known here",
        "Its teacher was fine-tuned from a model that is not known here",
        "On test queries: not known when this card was written.",
        "The model is not calibrated",
    ):
        assert sentence in card
    assert "onnxruntime" not in card


def test_test_figures_can_be_added_later(student: Path) -> None:
    card = model_card.render(student, _record(), evaluation=EVALUATION)
    results = {result.metric_name: result.metric_value for result in ModelCard(card).data.eval_results or []}
    assert results == {"nDCG@10 (dev)": 0.9312, "nDCG@10 (test)": 0.91, "ECE (test)": 0.02}
    assert "| this model | 0.9100 | 0.0200 |\n| random order | 0.8100 | - |" in card
    assert "- rating_range: 1, 3\n- split: salt s, test_share 0.25" in card


def test_exported_files_are_listed_with_what_they_lose(student: Path) -> None:
    artifacts.write_json(student / model_card.PARITY, PARITY)
    card = model_card.render(student, _record())
    assert "| `onnx/model.onnx` | 1.0 | 2e-06 | 1e-07 | - | +0.0000 |" in card
    assert "`model_qint8_avx512_vnni.onnx` was left out: ndcg_loss 0.01" in card
    assert '{"file_name": "model.onnx"}' in card


def test_a_licence_is_read_from_the_base_models_own_card(tmp_path: Path) -> None:
    assert model_card.read_licence(tmp_path) == ""
    path = tmp_path / "README.md"
    for text, license in (
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model", "apache-2.0"),
        ("---\nlanguage: en\n---\nlicense: mit", ""),
        ("---\nlicense: [mit\n---\n", ""),
        ("# license: mit", ""),
    ):
        path.write_text(text)
        assert model_card.read_licence(tmp_path) == license


def test_a_folder_that_is_not_a_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"distilrank\.json: no such file"):
        model_card.write(tmp_path, _record())
    assert list(tmp_path.iterdir()) == []
