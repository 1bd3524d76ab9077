"""What is saved scores as what was trained: in every library, for the usual tokenizer classes and architectures."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    AlbertTokenizer,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    DebertaV2Tokenizer,
    DistilBertTokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from distilrank import artifacts, network, parity, pretrained
from distilrank.compute import Runtime
from distilrank.config import TeacherText, Text
from distilrank.encoding import Encoder, PromptEncoder
from distilrank.errors import InputError, RunStopped
from distilrank.scorer import Scorer, describe, load_encoder
from tests.tiny_models import WORDS

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
TEXT = Text(fields=("title", "brand"), max_tokens=96)
DEV = pa.table({"query": ["red sofa", "Leather Chair"], "title": ["Sofa, red", "chair"], "brand": ["Acme", None]})
CHARACTERS = string.ascii_letters + string.digits + string.punctuation + "éèàüß½™″№²①ﬁ沙发сокрел"
LIKE_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LIKE_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def _wordpiece(cls: type, *special: str, **settings: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        pieces = [*special, *WORDS, *CHARACTERS, *(f"##{one}" for one in CHARACTERS)]
        cls(vocab={piece: at for at, piece in enumerate(dict.fromkeys(pieces))}, **settings).save_pretrained(folder)

    return write


def _unigram(cls: type, *special: str, normalizer: normalizers.Normalizer | None = None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        pieces = [*special, *(f"▁{word}" for word in WORDS), "▁", *CHARACTERS]
        cls(vocab=[(piece, -float(at)) for at, piece in enumerate(dict.fromkeys(pieces))]).save_pretrained(folder)
        if normalizer:
            path = str(folder / "tokenizer.json")
            tokenizer = Tokenizer.from_file(path)
            tokenizer.normalizer = normalizer
            tokenizer.save(path)

    return write


def _roberta(folder: Path) -> None:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(LIKE_ROBERTA), initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    RobertaTokenizer(vocab=model["vocab"], merges=list(map(tuple, model["merges"]))).save_pretrained(folder)


def _generic(folder: Path) -> None:
    """BERT's tokenizer in the generic class, whose settings say nothing of segments."""
    bert(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").unlink()
    roles = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), LIKE_BERT, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)


def _contradictory(folder: Path) -> None:
    """A tokenizer.json that lowers case, beside settings that deny it."""
    bert(folder)
    path = folder / "tokenizer_config.json"
    artifacts.write_json(path, artifacts.read_json(path) | {"do_lower_case": False})


def _bare(folder: Path) -> None:
    """BERT's tokenizer in the days of transformers 3: a single file, special tokens known by the class alone."""
    bert(folder)
    (folder / "tokenizer_config.json").unlink()


bert = _wordpiece(BertTokenizer, *LIKE_BERT)
nfkc = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False, right=True)])  # as SentencePiece's
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
OFFSET = SHAPE | {"max_position_embeddings": 130, "type_vocab_size": 1}
ROTARY = SHAPE | {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
DISENTANGLED = SHAPE | {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
BASES: dict[str, tuple[str, Callable[[Path], None], dict[str, Any]]] = {
    "bert": ("bert", bert, SHAPE),
    "bert, cased": ("bert", _wordpiece(BertTokenizer, *LIKE_BERT, do_lower_case=False), SHAPE),
    "bert, generic tokenizer": ("bert", _generic, SHAPE),
    "bert, contradictory settings": ("bert", _contradictory, SHAPE),
    "bert, no settings": ("bert", _bare, SHAPE),
    "electra": ("electra", bert, SHAPE | {"embedding_size": 32}),
    "distilbert": (
        "distilbert",
        _wordpiece(DistilBertTokenizer, *LIKE_BERT),
        {"dim": 32, "n_heads": 4, "hidden_dim": 64, "n_layers": 1},
    ),
    "mpnet": ("mpnet", _wordpiece(MPNetTokenizer, "<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"), OFFSET),
    "roberta": ("roberta", _roberta, OFFSET),
    "xlm-roberta": ("xlm-roberta", _unigram(XLMRobertaTokenizer, *LIKE_ROBERTA), OFFSET),
    "albert": (
        "albert",
        _unigram(AlbertTokenizer, "<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
        SHAPE | {"embedding_size": 16},
    ),
    "deberta-v3": (
        "deberta-v2",
        _unigram(DebertaV2Tokenizer, *LIKE_BERT, normalizer=nfkc),
        DISENTANGLED | {"type_vocab_size": 0},
    ),
    "modernbert": ("modernbert", _generic, ROTARY),
    "fnet": ("fnet", bert, SHAPE),
}


def write_base(name: str, folder: Path) -> Path:
    """A base model without a head, with a real tokenizer and random weights so large that scores differ."""
    family, write_tokenizer, shape = BASES[name]
    folder.mkdir()
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pad = next(number for number in map(tokenizer.token_to_id, ("[PAD]", "<pad>")) if number is not None)
    config = AutoConfig.for_model(
        family, **{"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": pad, "initializer_range": 0.3}, **shape
    )
    torch.manual_seed(3)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def save(base: Path, folder: Path, text: Text = TEXT) -> tuple[Any, Encoder]:
    """What the student stage does before and after its training: the network and its encoder."""
    torch.manual_seed(1)
    model = network.load_model(base, CPU)
    encoder = load_encoder(base, text, "encoder", pretrained.inputs(base, model))
    parity.check(encoder, model, DEV)
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model.save_pretrained(folder)
    network.save_tokenizer(encoder, folder)
    describe(folder, role="student", encoder=encoder, text=text, tokens=512, base=str(base))
    return model, encoder


@pytest.mark.parametrize("name", [name for name in BASES if name != "fnet"])
def test_all_libraries_score_as_the_network_in_memory(name: str, tmp_path: Path) -> None:
    base, folder = write_base(name, tmp_path / "base"), tmp_path / "student"
    model, encoder = save(base, folder)
    found = parity.prove(folder, model, encoder, DEV)["max_difference"]
    assert artifacts.read_json(folder / parity.FILE)["max_difference"] == found
    assert set(found) == {"scorer, torch", "transformers"}
    table, ours = parity.sample(encoder, DEV), Scorer.load(folder, parity.FP32, backend="torch")
    expected = ours.score(table)
    assert np.std(expected) > 0.05
    assert np.abs(CrossEncoder(str(folder), device="cpu").predict(ours.pairs(table)) - expected).max() < parity.BOUND


def test_segments_are_told_apart_where_the_model_knows_them(tmp_path: Path) -> None:
    for number, (name, has_types) in enumerate(
        {"albert": True, "bert, generic tokenizer": True, "mpnet": False}.items()
    ):
        folder = tmp_path / str(number)
        _, encoder = save(write_base(name, tmp_path / name), folder)
        assert encoder.has_types == has_types
        read = AutoTokenizer.from_pretrained(folder)("red", "sofa")
        assert read.get("token_type_ids", []) == ([0, 0, 0, 1, 1] if has_types else []), name


def test_odd_text_reaches_the_network_as_the_base_read_it(tmp_path: Path) -> None:
    """What was lost: SentencePiece's normalization, and case against contradictory settings."""
    for name, odd, plain in (("deberta-v3", "№5 ½", "No5 1⁄2"), ("bert, contradictory settings", "RED", "red")):
        base = write_base(name, tmp_path / name)
        save(base, tmp_path / f"{name} saved")
        source = Tokenizer.from_file(str(base / "tokenizer.json")).encode(odd, "sofa").ids
        for loaded in (odd, plain):
            assert AutoTokenizer.from_pretrained(tmp_path / f"{name} saved")(loaded, "sofa")["input_ids"] == source


def test_pairs_end_where_positions_do(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    model, encoder = save(write_base("roberta", tmp_path / "base"), folder, TEXT.model_copy(update={"max_tokens": 600}))
    parity.prove(folder, model, encoder, DEV)
    assert encoder.max_tokens == AutoTokenizer.from_pretrained(folder).model_max_length == 128
    pairs = [("red sofa", "sofa " * 500)]
    expected = Scorer.load(folder, parity.FP32, backend="torch").score_lists(["red sofa"], [[{"title": "sofa " * 500}]])
    assert np.abs(CrossEncoder(str(folder), device="cpu").predict(pairs) - expected[0]).max() < parity.BOUND


def test_a_model_that_looks_at_padding_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"base: a pair has the logit .* ignores padding, which fnet does not"):
        save(write_base("fnet", tmp_path / "base"), tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_tokenizer_that_is_saved_as_another_one_is_refused_before_training(tmp_path: Path) -> None:
    base = write_base("bert", tmp_path / "base")
    model = network.load_model(base, CPU)
    encoder = load_encoder(base, TEXT, "encoder", pretrained.inputs(base, model))
    encoder.tokenizer.encode_special_tokens = True  # which tokenizer.json does not hold
    with pytest.raises(InputError, match=r"base: transformers reads the pair 'red sofa' / .* \[CLS\] red sofa \[SEP\]"):
        parity.check(encoder, model, DEV)


@pytest.mark.parametrize("what", ["weights", "tokenizer", "settings"])
def test_a_student_that_scores_otherwise_than_it_was_trained_is_refused(what: str, tmp_path: Path) -> None:
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
        parity.prove(folder, model, encoder, DEV)
    assert not (folder / parity.FILE).exists()


def test_the_last_token_of_a_prompt_is_read_also_where_it_is_the_end_token(models: Path, tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "teacher"
    shutil.copytree(models / "decoder", base)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 1)])
    tokenizer.save(str(base / "tokenizer.json"))
    torch.manual_seed(1)
    model = network.load_model(base, CPU)
    torch.nn.init.normal_(model.score.weight)
    text = TeacherText(fields=("title",))
    encoder = load_encoder(base, text, inputs=pretrained.inputs(base, model))
    assert isinstance(encoder, PromptEncoder) and encoder.pad_token == "<|start|>"
    model.config.pad_token_id = encoder.pad_token_id
    model.save_pretrained(folder)
    network.save_tokenizer(encoder, folder)
    describe(folder, role="teacher", encoder=encoder, text=text, tokens=512, base="tiny")
    table = pa.table({"query": ["red sofa", "lamp"], "title": ["Sofa, red, of leather", "x"]})
    ours = Scorer.load(folder, parity.FP32, backend="torch")
    prompts = [text.template.replace("{query}", q).replace("{product}", p) for q, p in ours.pairs(table)]
    read = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")
    assert read["input_ids"][:, -1].tolist() == [1, 0]
    with torch.inference_mode():
        theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**read).logits[:, 0].numpy()
    np.testing.assert_allclose(ours.score(table), theirs, atol=1e-4)

    tokenizer.save(str(base / "tokenizer.json"))
    content = artifacts.read_json(base / "tokenizer.json")
    content["added_tokens"] = [one for one in content["added_tokens"] if one["content"] == "<|end|>"]
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
