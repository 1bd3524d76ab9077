from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch
from onnx import helper
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification

from distilrank.config import Compute, Text
from distilrank.core import artifacts, schemas
from distilrank.core.errors import InputError, RunStopped
from distilrank.modeling import encoding
from distilrank.modeling.scorer import Scorer, load_encoder
from distilrank.student import export
from tests.students import BERT, write_student
from tests.tiny_models import WORDS

BACKEND = Path(sys.prefix) / "onnx-backend"
TEXT = Text(fields=("title", "brand"), max_tokens=64)
LAYERS = 2
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": BERT | {"num_hidden_layers": LAYERS},
    "roberta": BERT | {"num_hidden_layers": LAYERS, "type_vocab_size": 1},
    "distilbert": {"dim": 32, "n_heads": 4, "hidden_dim": 64, "n_layers": 1},
}
PRODUCTS = [{"title": "sofa"}, {"title": "cordless drill bit " * 6, "brand": "acme"}, {"title": "red leather chair"}]


def _judged(queries: int = 12, products: int = 6) -> pa.Table:
    rng = np.random.default_rng(3)
    rows = []
    for query in range(queries):
        text = " ".join(rng.choice(WORDS, rng.integers(1, 5)))
        for product in range(products):
            gain = float(rng.integers(0, 3)) / 2
            rows.append(
                {
                    "query_id": f"q{query:02}",
                    "query": text,
                    "product_id": f"p{product}",
                    "title": " ".join(rng.choice(WORDS, rng.integers(1, 30))),
                    "brand": "acme" if product % 2 else None,
                    "target": gain,
                    "gain": gain,
                    "raters": 3,
                    "stratum": "head",
                    "bm25": 0.0,
                }
            )
    return pa.Table.from_pylist(rows, schema=schemas.JUDGED)


def _student(models: Path, family: str, folder: Path) -> Path:
    shape = FAMILIES[family] | {"max_position_embeddings": 96}
    return write_student(folder, models, TEXT, tokens=512, family=family, **shape)


@pytest.fixture(scope="module")
def student(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT exported in all variants, whatever they lose."""
    folder = _student(models, "bert", tmp_path_factory.mktemp("export") / "student")
    export.export(folder, _judged(), variants=("O2", "O4", *export.SIGNED), max_ndcg_loss=1)
    return folder


@pytest.fixture
def again(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it to export again, from the graph that was traced for it: tracing takes seconds."""
    folder = tmp_path / "student"
    shutil.copytree(student, folder)
    traced = onnx.load(student / "onnx" / "model.onnx")
    monkeypatch.setattr(export, "_trace", lambda *_: traced)
    yield folder


@cache
def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _run(path: Path, tokens: encoding.Tokens, rows: list[int] | None = None) -> np.ndarray:
    """Logits of pairs in one batch."""
    session = _session(path)
    values = tokens.padded(np.arange(len(tokens)) if rows is None else np.array(rows), pad_token=0)
    return session.run(None, {tensor.name: values[tensor.name] for tensor in session.get_inputs()})[0]


def _tokens(folder: Path) -> encoding.Tokens:
    return encoding.encode_table(load_encoder(folder, TEXT, "encoder"), _judged(), TEXT)


def test_files_have_the_names_and_inputs_that_sentence_transformers_knows(student: Path) -> None:
    files = {path.name for path in (student / "onnx").iterdir()}
    names = {f"model_{name}.onnx" for name in ("O2", "O4", "qint8_avx512_vnni", "quint8_avx2")}
    assert files == {"model.onnx", "parity.json", *names}
    assert not list(student.glob(".*"))
    for name in names | {"model.onnx"}:
        session = _session(student / "onnx" / name)
        inputs = {tensor.name: (tensor.type, tensor.shape) for tensor in session.get_inputs()}
        free = ("tensor(int64)", ["batch", "sequence"])
        assert inputs == {"input_ids": free, "attention_mask": free, "token_type_ids": free}
        (output,) = session.get_outputs()
        assert (output.name, output.type, output.shape) == ("logits", "tensor(float)", ["batch", 1])


def test_files_in_fp32_give_the_logits_of_transformers_in_any_batch(student: Path) -> None:
    tokens = _tokens(student)
    model = AutoModelForSequenceClassification.from_pretrained(student)
    values = {name: torch.from_numpy(array) for name, array in tokens.padded(np.arange(len(tokens)), 0).items()}
    with torch.inference_mode():
        expected = model(**values).logits.numpy()
    assert np.std(expected) > 0.1
    for name in ("model.onnx", "model_O2.onnx"):
        path = student / "onnx" / name
        assert np.abs(_run(path, tokens) - expected).max() < 1e-5
        shortest = int(np.argmin(tokens.lengths))
        assert np.abs(_run(path, tokens, [shortest]) - expected[shortest]).max() < 1e-5


def test_attention_is_fused_and_matrix_products_are_in_eight_bits(student: Path) -> None:
    files = artifacts.read_json(student / "onnx" / "parity.json")["files"]
    assert files["model.onnx"]["fused"] == {}
    # the last layer attends from one token, which is no operator of onnxruntime's
    fused = {"Attention": LAYERS - 1, "BiasGelu": LAYERS, "SkipLayerNormalization": 2 * LAYERS}
    assert files["model_O2.onnx"]["fused"] == fused
    assert files["model_O4.onnx"]["fused"]["FastGelu"] == LAYERS
    for name, kind in (("qint8_avx512_vnni", onnx.TensorProto.INT8), ("quint8_avx2", onnx.TensorProto.UINT8)):
        graph = onnx.load(student / "onnx" / f"model_{name}.onnx").graph
        weights = {weight.name: weight for weight in graph.initializer}
        products = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
        assert len(products) == 6 * LAYERS
        assert {weights[node.input[1]].data_type for node in products} == {kind}
        embedding = next(weight for weight in weights.values() if "word_embeddings" in weight.name)
        assert embedding.data_type == onnx.TensorProto.FLOAT
    half = onnx.load(student / "onnx" / "model_O4.onnx").graph
    kinds = {weight.data_type for weight in half.initializer if len(weight.dims) == 2}
    assert onnx.TensorProto.FLOAT16 in kinds and onnx.TensorProto.FLOAT not in kinds


@pytest.mark.parametrize("variant", export.SIGNED)
def test_a_score_in_eight_bits_does_not_depend_on_its_batch(student: Path, variant: str) -> None:
    path, tokens = student / "onnx" / f"model_{variant}.onnx", _tokens(student)
    together = _run(path, tokens)
    longest = int(np.argmax(tokens.lengths))
    assert np.ptp(tokens.lengths) > 10 and np.std(together) > 0.1
    for pair in range(0, len(tokens), 5):
        alone = _run(path, tokens, [pair])
        assert np.abs(alone - together[pair]).max() < 1e-5
        assert np.abs(alone - _run(path, tokens, [longest, pair])[1]).max() < 1e-5


@pytest.mark.parametrize("name", ["model.onnx", "model_qint8_avx512_vnni.onnx"])
def test_the_last_layer_computes_the_first_token_alone(student: Path, name: str) -> None:
    model = onnx.load(student / "onnx" / name)
    *_, last = (node.input[0] for node in model.graph.node if node.op_type == "Gelu")
    model.graph.output.append(helper.make_empty_tensor_value_info(last))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = _tokens(student).padded(np.arange(3), pad_token=0)
    (inner,) = session.run([last], {tensor.name: values[tensor.name] for tensor in session.get_inputs()})
    assert inner.shape == (3, 1, BERT["intermediate_size"])


def test_parity_reports_how_far_each_file_is_from_torch(student: Path) -> None:
    parity = artifacts.read_json(student / "onnx" / "parity.json")
    judged = _judged()
    reference = Scorer.load(student, Compute(device="cpu", precision="fp32"), backend="torch").score(judged)
    assert parity["reference"]["pairs"] == 72 and parity["reference"]["queries"] == 12
    tokens = _tokens(student)
    for name, figures in parity["files"].items():
        path = student / "onnx" / name
        assert figures["bytes"] == path.stat().st_size
        assert figures["mean_difference"] <= figures["max_difference"]
        assert figures["ndcg_loss"] == pytest.approx(parity["reference"]["ndcg_at_10"] - figures["ndcg_at_10"])
        difference = np.abs(_run(path, tokens)[:, 0] - reference)
        assert figures["max_difference"] == pytest.approx(difference.max(), abs=2e-3 if "O4" in name else 1e-5)
    assert parity["files"]["model.onnx"]["max_difference"] < 1e-5
    assert 1e-4 < parity["files"]["model_qint8_avx512_vnni.onnx"]["max_difference"] < np.ptp(reference) / 3
    assert parity["files"]["model_qint8_avx512_vnni.onnx"]["spearman"] > 0.9
    assert parity["left_out"] == {}


@pytest.mark.parametrize(("family", "fused"), [("roberta", LAYERS - 1), ("distilbert", 1)])
def test_other_encoders_are_exported(family: str, fused: int, models: Path, tmp_path: Path) -> None:
    folder = _student(models, family, tmp_path / "student")
    parity = export.export(folder, _judged(), variants=("O2",))
    assert parity["files"]["model.onnx"]["max_difference"] < 1e-4
    assert parity["files"]["model_O2.onnx"]["max_difference"] < 1e-4
    assert parity["files"]["model_O2.onnx"]["fused"]["Attention"] == fused
    names = [tensor.name for tensor in onnx.load(folder / "onnx" / "model.onnx").graph.input]
    assert names == ["input_ids", "attention_mask"]


def test_bytes_are_repeatable_and_contain_no_path(student: Path, again: Path) -> None:
    export.export(again, _judged(), variants=("O2", "O4", *export.SIGNED), max_ndcg_loss=1)
    for path in (student / "onnx").iterdir():
        content = path.read_bytes()
        assert (again / "onnx" / path.name).read_bytes() == content, path.name
        assert not any(location.encode() in content for location in (sys.prefix, str(Path.cwd()), str(student)))


def test_variants_that_the_architecture_lacks_or_that_lose_too_much_are_left_out(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "student"
    write_student(folder, models, TEXT, tokens=512, family="albert", **BERT, max_position_embeddings=96)
    parity = export.export(folder, _judged(), variants=("O2", "qint8_avx512_vnni"), max_ndcg_loss=-1)
    assert {path.name for path in (folder / "onnx").iterdir()} == {"model.onnx", "parity.json"}
    assert parity["left_out"].pop("model_O2.onnx") == "onnxruntime's optimizer does not know albert"
    ((name, reason),) = parity["left_out"].items()
    assert name == "model_qint8_avx512_vnni.onnx"
    assert reason.startswith("ndcg_loss ") and reason.endswith("expected at most -1")
    assert "model_qint8_avx512_vnni.onnx is left out: ndcg_loss" in capsys.readouterr().out


def test_a_variant_that_cannot_be_read_is_left_out(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_quantize", lambda source, target, signed: target.write_bytes(b"nonsense"))
    reason = export.export(again, _judged(), variants=("qint8_avx512_vnni",))["left_out"][
        "model_qint8_avx512_vnni.onnx"
    ]
    assert reason.startswith("bert does not survive it") and "not a readable ONNX model" in reason
    assert {path.name for path in (again / "onnx").iterdir()} == {"model.onnx", "parity.json"}


def test_a_wrong_file_in_fp32_stops_the_stage_and_changes_nothing(again: Path) -> None:
    before = artifacts.seal(again)
    traced = export._trace(None, True)  # type: ignore[arg-type]  # the fixture's
    weight = next(initializer for initializer in traced.graph.initializer if "classifier.weight" in initializer.name)
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) + np.float32(0.01)).tobytes()
    with pytest.raises(
        RunStopped, match=r"onnx/model\.onnx: max_difference \S+ from torch in fp32, expected at most 0.001"
    ):
        export.export(again, _judged())
    assert artifacts.seal(again) == before


def test_large_weights_go_to_a_separate_file(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "LARGEST", 1000)
    parity = export.export(again, _judged(), variants=("O2", "qint8_avx512_vnni"), max_ndcg_loss=1)
    for name in ("model.onnx", "model_O2.onnx", "model_qint8_avx512_vnni.onnx"):
        parts = [again / "onnx" / name, again / "onnx" / f"{name}_data"]
        assert parity["files"][name]["bytes"] == sum(part.stat().st_size for part in parts)
        assert parts[1].stat().st_size > parts[0].stat().st_size
    assert parity["files"]["model_O2.onnx"]["max_difference"] < 1e-5


def test_the_comparison_takes_whole_queries(again: Path) -> None:
    assert export.export(again, _judged(), variants=(), pairs=20)["reference"] | {"ndcg_at_10": 0} == {
        "system": f"torch {torch.__version__}, fp32",
        "pairs": 18,
        "queries": 3,
        "ndcg_at_10": 0,
    }
    assert export.export(again, _judged(), variants=(), pairs=1)["reference"]["pairs"] == 6


def test_a_folder_that_is_not_a_student_is_refused(tmp_path: Path, models: Path) -> None:
    with pytest.raises(InputError, match=r"distilrank\.json: no such file"):
        export.export(models / "encoder", _judged())


def _cross_encoder(folder: Path) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Pairs as another library wants them, and our scores of them."""
    scorer = Scorer.load(folder, Compute(device="cpu", precision="fp32"), backend="torch")
    table = pa.Table.from_pylist([{"query": "leather sofa", "brand": None} | product for product in PRODUCTS])
    return list(zip(table["query"].to_pylist(), scorer.render(table))), scorer.score(table)


def test_sentence_transformers_loads_the_folder(student: Path) -> None:
    pairs, ours = _cross_encoder(student)
    assert np.abs(CrossEncoder(str(student), device="cpu").predict(pairs) - ours).max() < 1e-4


@pytest.mark.skipif(not BACKEND.is_dir(), reason=f"{BACKEND} is not there: `make test` makes it, see docs/export.md")
def test_sentence_transformers_loads_the_files_in_its_onnx_backend(student: Path) -> None:
    pairs, ours = _cross_encoder(student)
    program = """
import json, sys
from sentence_transformers import CrossEncoder
folder, pairs, *files = json.loads(sys.stdin.read())
scores = {}
for file in files:
    settings = {"file_name": file, "provider": "CPUExecutionProvider"}
    model = CrossEncoder(folder, device="cpu", backend="onnx", model_kwargs=settings)
    scores[file] = model.predict(pairs).tolist()
print(json.dumps(scores))
"""
    files = ["model.onnx", "onnx/model_O2.onnx", "model_qint8_avx512_vnni.onnx"]
    ended = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([str(student), pairs, *files]),
        env=os.environ | {"PYTHONPATH": str(BACKEND)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    scores = {file: np.array(values) for file, values in json.loads(ended.stdout.splitlines()[-1]).items()}
    assert np.abs(scores["model.onnx"] - ours).max() < 1e-4
    assert np.abs(scores["onnx/model_O2.onnx"] - ours).max() < 1e-4
    assert 0 < np.abs(scores["model_qint8_avx512_vnni.onnx"] - ours).max() < np.ptp(ours)
