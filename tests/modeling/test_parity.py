"""What is saved scores as what was trained: in every library, for the usual tokenizer classes and architectures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer, processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from distilrank.config import Compute, TeacherText, Text
from distilrank.core import artifacts
from distilrank.core.errors import InputError, RunStopped
from distilrank.modeling import parity, pretrained, torch_backend
from distilrank.modeling.encoding import PairEncoder, PromptEncoder
from distilrank.modeling.runtime import Runtime
from distilrank.modeling.scorer import Scorer, describe, load_encoder
from tests.bases import BASES, write_base

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
TEXT = Text(fields=("title", "brand"), max_tokens=96)
FP32 = Compute(device="cpu", precision="fp32", threads=1)
DEV = pa.table({"query": ["red sofa", "Leather Chair"], "title": ["Sofa, red", "chair"], "brand": ["Acme", None]})


def save(base: Path, folder: Path, text: Text = TEXT) -> tuple[Any, PairEncoder]:
    """What the student stage does before and after its training: the network and its encoder."""
    torch.manual_seed(1)
    model = torch_backend.load_model(base, CPU)
    encoder = PairEncoder(base, text, pretrained.inputs(base, model))
    parity.check(encoder, model, DEV)
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model.save_pretrained(folder)
    torch_backend.save_tokenizer(encoder, folder)
    describe(folder, role="student", encoder=encoder, text=text, tokens=512, base=str(base))
    return model, encoder


@pytest.mark.parametrize("name", [name for name in BASES if name != "fnet"])
def test_all_libraries_score_as_the_network_in_memory(name: str, tmp_path: Path) -> None:
    base, folder = write_base(name, tmp_path / "base"), tmp_path / "student"
    model, encoder = save(base, folder)
    differences = parity.prove(folder, model, encoder, DEV, FP32)["max_difference"]
    assert artifacts.read_json(folder / parity.FILE)["max_difference"] == differences
    assert set(differences) == {"scorer, torch", "transformers"}
    table, ours = parity.sample(encoder, DEV), Scorer.load(folder, FP32, backend="torch")
    expected, shown = ours.score(table), ours.pairs(table)
    assert np.std(expected) > 0.05
    assert np.abs(CrossEncoder(str(folder), device="cpu").predict(shown) - expected).max() < parity.BOUND

    source, saved = Tokenizer.from_file(str(base / "tokenizer.json")), AutoTokenizer.from_pretrained(folder)
    read = saved(*map(list, zip(*shown, strict=True)))["input_ids"]  # alone, it takes an empty product for none
    assert [encoding.ids for encoding in source.encode_batch(shown)] == read
    types = saved("red", "sofa").get("token_type_ids")
    assert types == ([0, 0, 0, 1, 1] if getattr(model.config, "type_vocab_size", 0) > 1 else None)


def test_pairs_are_cut_at_the_last_position(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    model, encoder = save(write_base("roberta", tmp_path / "base"), folder, TEXT.model_copy(update={"max_tokens": 600}))
    parity.prove(folder, model, encoder, DEV, FP32)
    assert encoder.max_tokens == AutoTokenizer.from_pretrained(folder).model_max_length == 128
    pairs = [("red sofa", "sofa " * 500)]
    expected = Scorer.load(folder, FP32, backend="torch").score_lists(["red sofa"], [[{"title": "sofa " * 500}]])
    assert np.abs(CrossEncoder(str(folder), device="cpu").predict(pairs) - expected[0]).max() < parity.BOUND


def test_pairs_may_be_as_short_as_the_configuration_allows(tmp_path: Path) -> None:
    text, folder = TEXT.model_copy(update={"max_tokens": 16}), tmp_path / "student"
    model, encoder = save(write_base("roberta", tmp_path / "base"), folder, text)
    assert parity.prove(folder, model, encoder, DEV, FP32)["pairs"] > 10


def test_a_model_that_looks_at_padding_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"base: a pair has the logit .* ignores padding, which fnet does not"):
        save(write_base("fnet", tmp_path / "base"), tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_tokenizer_that_is_saved_as_another_one_is_refused_before_training(tmp_path: Path) -> None:
    base = write_base("bert", tmp_path / "base")
    model = torch_backend.load_model(base, CPU)
    encoder = PairEncoder(base, TEXT, pretrained.inputs(base, model))
    encoder.tokenizer.encode_special_tokens = True  # which tokenizer.json does not hold
    with pytest.raises(InputError, match=r"base: transformers reads the pair 'red sofa' / .* \[CLS\] red sofa \[SEP\]"):
        parity.check(encoder, model, DEV)


@pytest.mark.parametrize("what", ["weights", "tokenizer", "settings"])
def test_a_student_that_scores_differently_than_it_was_trained_is_refused(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    model, encoder = save(write_base("bert", tmp_path / "base"), folder)
    if what == "weights":
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        weights["classifier.bias"] += 3e-4
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    elif what == "tokenizer":
        shutil.rmtree(tmp_path / "base")
        write_base("bert, cased", tmp_path / "base")
        shutil.copy(tmp_path / "base" / "tokenizer.json", folder)
    else:
        path = folder / "tokenizer_config.json"
        artifacts.write_json(
            path, artifacts.read_json(path) | {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
        )
    way = "transformers" if what == "settings" else "scorer, torch"
    with pytest.raises(RunStopped, match=rf"student: {way} gives the pair '.*' / '.*' the logit .* at most 0.0001"):
        parity.prove(folder, model, encoder, DEV, FP32)
    assert not (folder / parity.FILE).exists()


def test_the_last_token_of_a_prompt_is_read_also_where_it_is_the_end_token(models: Path, tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "teacher"
    shutil.copytree(models / "decoder", base)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 1)])
    tokenizer.save(str(base / "tokenizer.json"))
    torch.manual_seed(1)
    model = torch_backend.load_model(base, CPU)
    torch.nn.init.normal_(model.score.weight)
    text = TeacherText(fields=("title",))
    encoder = load_encoder(base, text, inputs=pretrained.inputs(base, model))
    assert isinstance(encoder, PromptEncoder) and encoder.pad_token == "<|start|>"
    model.config.pad_token_id = encoder.pad_token_id
    model.save_pretrained(folder)
    torch_backend.save_tokenizer(encoder, folder)
    describe(folder, role="teacher", encoder=encoder, text=text, tokens=512, base="tiny")
    table = pa.table({"query": ["red sofa", "lamp"], "title": ["Sofa, red, of leather", "x"]})
    ours = Scorer.load(folder, FP32, backend="torch")
    prompts = [text.template.replace("{query}", q).replace("{product}", p) for q, p in ours.pairs(table)]
    read = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")
    assert read["input_ids"][:, -1].tolist() == [1, 0]
    with torch.inference_mode():
        theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**read).logits[:, 0].numpy()
    np.testing.assert_allclose(ours.score(table), theirs, atol=1e-4)

    tokenizer.save(str(base / "tokenizer.json"))
    content = artifacts.read_json(base / "tokenizer.json")
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] == "<|end|>"]
    artifacts.write_json(base / "tokenizer.json", content)
    settings = artifacts.read_json(base / "tokenizer_config.json")
    artifacts.write_json(base / "tokenizer_config.json", settings | {"bos_token": None})
    with pytest.raises(InputError, match=r"base: its prompts end in '<\|end\|>', which it pads with"):
        load_encoder(base, text)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_teacher_that_lost_more_than_rounding_is_refused(bf16: bool, tmp_path: Path) -> None:
    runtime = Runtime(torch.device("cpu"), torch.bfloat16 if bf16 else torch.float32, "test")
    trained = np.array([-2.0, 0.0, 2.0])
    rounding = 0.1 if bf16 else 1e-5
    assert parity.compare(tmp_path, trained, trained + rounding, runtime) == pytest.approx(rounding)
    with pytest.raises(RunStopped, match=r"a logit of the saved teacher differs by 0.6 from the trained one's"):
        parity.compare(tmp_path, trained, trained + 0.6, runtime)
