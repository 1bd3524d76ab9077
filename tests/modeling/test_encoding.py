"""How pairs become tokens, beside what transformers does."""

from __future__ import annotations

import random
import shutil
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest
from transformers import AutoTokenizer
from transformers.models.auto import modeling_auto

from distilrank.config import Student, TeacherText, Text
from distilrank.core import artifacts
from distilrank.core.errors import InputError
from distilrank.modeling import encoding, references, scorer
from distilrank.modeling.encoding import PairEncoder, PromptEncoder, neutralize
from distilrank.modeling.scorer import load_encoder
from tests.small_pairs import ODD
from tests.tiny_models import WORDS


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_special_tokens_in_raw_text_are_ordinary_characters(models: Path, kind: str) -> None:
    encoder = scorer.load_encoder(models / kind, TeacherText())
    tokenizer = AutoTokenizer.from_pretrained(models / kind)
    hostile = " ".join(tokenizer.all_special_tokens) + " sofa [SEP][SEP]"
    clean = neutralize(hostile, encoder.special)
    ids = encoder.tokenizer.encode(clean, add_special_tokens=False).ids
    unknown = {tokenizer.unk_token_id} - {None}  # a real outcome for characters that the vocabulary lacks
    assert not (set(ids) - unknown) & set(tokenizer.all_special_ids)
    read = encoder.tokenizer.encode(hostile, add_special_tokens=False).ids
    assert set(read) & set(tokenizer.all_special_ids)  # it would matter
    assert neutralize("a red sofa", encoder.special) == "a red sofa"


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("query", ["red sofa", "red sofa " * 12])
def test_truncation_shortens_the_product_and_never_the_query(models: Path, kind: str, query: str) -> None:
    text = TeacherText(max_tokens=40, separator=" ")
    encoder = scorer.load_encoder(models / kind, text)
    encoded = encoder.encode([query] * 2, ["blue lamp", "blue lamp " * 100])
    assert encoded.truncated == 1, "the short product stays whole beside a long query too"
    short, size = encoded.lengths
    query_tokens = encoder.tokenizer.encode(query, add_special_tokens=False).ids
    decoded = encoder.tokenizer.decode(encoded.row(1))
    assert decoded.count("sofa") == query.count("sofa") * (2 if kind == "decoder" else 1)
    assert decoded.count("lamp") >= 2
    if len(query_tokens) < 10:
        assert size <= 40 and size >= 36  # the room is used
    assert short < size or len(query_tokens) > 10


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_field_has_a_budget_of_tokens(models: Path, kind: str) -> None:
    rows = {"title": ["red sofa " * 30, "lamp", None], "brand": ["blue", "blue", "blue"]}
    encoder, with_budget = (
        scorer.load_encoder(models / kind, TeacherText(fields=("title", "brand"), budgets=budgets))
        for budgets in ({}, {"title": 5})
    )
    whole, cut = encoder.render(rows), with_budget.render(rows)
    assert whole[0].startswith("red sofa red sofa red sofa red") and whole[1:] == cut[1:] == ["lamp | blue", "blue"]
    title, brand = cut[0].split(" | ")
    assert brand == "blue" and whole[0].startswith(title)
    assert len(encoder.tokenizer.encode(title, add_special_tokens=False)) == 5


def test_a_query_beyond_the_model_is_refused_by_name(models: Path) -> None:
    encoder = scorer.load_encoder(models / "encoder", Text())
    with pytest.raises(InputError, match=r"query 'sofa sofa.*tokens.*at most 512"):
        encoder.encode(["sofa " * 600], ["lamp"])


def test_the_prompt_may_hold_braces_and_placeholders_in_its_text(models: Path) -> None:
    encoder = scorer.load_encoder(models / "decoder", TeacherText(template="{query} with {product} with {query}"))
    assert isinstance(encoder, PromptEncoder)
    encoded = encoder.encode(["sofa {product} {x}"], ["red {query}"])
    assert encoder.tokenizer.decode(encoded.row(0)) == "sofa {product} {x} with red {query} with sofa {product} {x}"


def test_a_tokenizer_that_cannot_pad_is_refused(models: Path, tmp_path: Path) -> None:
    decoder = scorer.load_encoder(models / "decoder", TeacherText())
    assert decoder.pad_token == AutoTokenizer.from_pretrained(models / "decoder").eos_token == "<|end|>"
    shutil.copytree(models / "decoder", tmp_path / "bare")
    path = tmp_path / "bare" / "tokenizer_config.json"
    settings = artifacts.read_json(path)
    artifacts.write_json(
        path, {name: value for name, value in settings.items() if name not in ("eos_token", "pad_token")}
    )
    with pytest.raises(InputError, match="neither a pad token nor an end token"):
        scorer.load_encoder(tmp_path / "bare", TeacherText())


def test_kind_is_inferred_from_the_architecture(models: Path) -> None:
    assert isinstance(scorer.load_encoder(models / "encoder", Text()), PairEncoder)
    with pytest.raises(InputError, match="a decoder needs a prompt template"):
        scorer.load_encoder(models / "decoder", Text())


@pytest.mark.parametrize("which", ["tiny", "MiniLM"])
def test_pairs_are_tokenized_as_transformers_does(models: Path, which: str) -> None:
    folder = models / "encoder" if which == "tiny" else references.resolve(Student().model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    draw = random.Random(1)
    words = [*WORDS, *ODD]
    queries = [" ".join(draw.choices(words, k=draw.randint(1, 5))) for _ in range(400)]
    products = [" [SEP] ".join(draw.choices(words, k=draw.randint(0, 6))) for _ in range(400)]
    encoder = load_encoder(folder, Text(max_tokens=512), "encoder")
    ours = encoder.encode(queries, products)
    theirs = tokenizer(queries, products, truncation="only_second", max_length=512)
    assert [ours.row(row).tolist() for row in range(400)] == theirs["input_ids"]
    assert ours.types is not None and ours.types.tolist() == [*chain.from_iterable(theirs["token_type_ids"])]
    assert len(set(ours.queries.tolist())) == len(set(queries))


@pytest.mark.parametrize("limit", [24, 40])
def test_a_long_pair_is_cut_as_transformers_cuts_the_second(models: Path, limit: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "encoder")
    queries = ["red sofa", "white leather chair with steel"] * 20
    products = [" ".join(WORDS[: 2 * count]) for count in range(40)]
    ours = load_encoder(models / "encoder", Text(max_tokens=limit), "encoder").encode(queries, products)
    theirs = tokenizer(queries, products, truncation="only_second", max_length=limit)["input_ids"]
    assert [ours.row(row).tolist() for row in range(40)] == theirs
    assert ours.truncated == sum(len(ids) == limit for ids in theirs) - sum(
        len(ids) == limit for ids in tokenizer(queries, products)["input_ids"]
    )


def test_a_long_query_keeps_eight_tokens_of_its_product(models: Path) -> None:
    encoder = load_encoder(models / "encoder", Text(max_tokens=24), "encoder")
    tokens = encoder.encode(["sofa " * 40] * 2, ["lamp " * 30, "lamp " * 3])
    sofa, lamp = (encoder.tokenizer.token_to_id(word) for word in ("sofa", "lamp"))
    assert [(row == word).sum() for row in (tokens.row(0), tokens.row(1)) for word in (sofa, lamp)] == [40, 8, 40, 3]


def test_prompts_are_tokenized_as_transformers_does(models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "decoder")
    text = TeacherText(max_tokens=512)
    encoder = load_encoder(models / "decoder", text)
    queries, products = [word for word in ODD if 0 < len(word) < 100], list(ODD[:8])
    ours = encoder.encode(queries, products)
    prompts = [
        text.template.replace("{query}", query).replace("{product}", product)
        for query, product in zip(queries, products)
    ]
    assert [ours.row(row).tolist() for row in range(len(queries))] == tokenizer(prompts)["input_ids"]


def test_special_tokens_that_only_the_settings_name_are_neutralized(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "encoder", tmp_path / "encoder")
    path = folder / "tokenizer.json"
    settings = artifacts.read_json(path)
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] != "[MASK]"]
    artifacts.write_json(path, settings)
    encoder = load_encoder(folder, Text(), "encoder")
    assert encoder.special.search("a [MASK]")
    mask = encoder.tokenizer.token_to_id("[MASK]")
    assert mask in encoder.encode(["[MASK]"], ["sofa"]).ids
    table = pa.table({"query": ["[MASK]"], "title": ["[MASK] sofa"]})
    assert mask not in encoding.encode_table(encoder, table, Text()).ids


def test_encoders_are_those_of_transformers() -> None:
    classifiers = set(modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    masked = set(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    assert masked & classifiers >= encoding.ENCODERS and encoding.OFFSET_POSITIONS <= encoding.ENCODERS
    assert not encoding.ENCODERS & {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt2", "t5", "bart"}
