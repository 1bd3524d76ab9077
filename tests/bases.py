"""Base models of random weights with the usual architectures and tokenizer classes, a few thousand weights each."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    AlbertTokenizer,
    AutoConfig,
    AutoModel,
    BertTokenizer,
    DebertaV2Tokenizer,
    DistilBertTokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from distilrank.core import artifacts
from tests.tiny_models import WORDS

CHARACTERS = string.ascii_letters + string.digits + string.punctuation + "éèàüß½™″№²①ﬁ沙发сокрел"
LIKE_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LIKE_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def _wordpiece(cls: type, *special: str, **settings: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        pieces = [*special, *WORDS, *CHARACTERS, *(f"##{character}" for character in CHARACTERS)]
        cls(vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))}, **settings).save_pretrained(
            folder
        )

    return write


def _unigram(cls: type, *special: str, normalizer: normalizers.Normalizer | None = None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        pieces = [*special, *(f"▁{word}" for word in WORDS), "▁", *CHARACTERS]
        cls(vocab=[(piece, -float(index)) for index, piece in enumerate(dict.fromkeys(pieces))]).save_pretrained(folder)
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
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
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


def write_base(name: str, folder: Path, **settings: Any) -> Path:
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
    AutoModel.from_config(config, **settings).save_pretrained(folder)
    return folder
