"""Tiny models of random weights, one an architecture, each with the tokenizer class that transformers has for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tiny_models import WORDS

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;'|?-"
QWEN_ROPE = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 1.0, "mrope_section": [2, 1, 1]}
SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

OFFSET = {"max_position_embeddings": SHAPE["max_position_embeddings"] + 2}  # their first two are no token's


@dataclass(frozen=True)
class Architecture:
    """How a tiny model of it is made."""

    model_type: str
    tokenizer: Callable[[], Any]
    shape: dict[str, Any] = field(default_factory=dict)
    """Of the configuration, beside SHAPE."""
    vision: dict[str, Any] = field(default_factory=dict)
    """Configuration of the part that reads images; the text model's is in a section of its own then."""


def _pieces(*special: str) -> dict[str, int]:
    """A WordPiece vocabulary."""
    pieces = [*special, *WORDS, *CHARACTERS, *(f"##{character}" for character in CHARACTERS)]
    return {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}


def _unigrams(*special: str) -> list[tuple[str, float]]:
    """A vocabulary of SentencePiece's unigram model."""
    pieces = [*special, "▁", *(f"▁{word}" for word in WORDS), *CHARACTERS]
    return [(piece, 0.0 if piece in special else -float(len(special) > 0) * 2) for piece in dict.fromkeys(pieces)]


def _bytes(*special: str) -> dict[str, int]:
    """A vocabulary of byte-level BPE without merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    return {piece: index for index, piece in enumerate([*special, *sorted(ByteLevel.alphabet())])}


def _metaspaced(*special: str) -> dict[str, int]:
    """A vocabulary of SentencePiece's BPE without merges, where other characters become bytes."""
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *CHARACTERS]
    return {piece: index for index, piece in enumerate(pieces)}


def _wordpiece() -> Any:
    from transformers import BertTokenizer

    return BertTokenizer(vocab=_pieces("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))


def _roberta() -> Any:
    from transformers import RobertaTokenizer

    return RobertaTokenizer(vocab=_bytes("<s>", "<pad>", "</s>", "<unk>", "<mask>"), merges=[])


def _xlm_roberta() -> Any:
    from transformers import XLMRobertaTokenizer

    return XLMRobertaTokenizer(vocab=_unigrams("<s>", "<pad>", "</s>", "<unk>"))


def _albert() -> Any:
    from transformers import AlbertTokenizer

    return AlbertTokenizer(vocab=_unigrams("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"))


def _mpnet() -> Any:
    from transformers import MPNetTokenizer

    return MPNetTokenizer(vocab=_pieces("<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"))


def _deberta() -> Any:
    from transformers import DebertaTokenizer

    return DebertaTokenizer(vocab=_bytes("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"), merges=[])


def _deberta_v2() -> Any:
    from transformers import DebertaV2Tokenizer

    return DebertaV2Tokenizer(vocab=_unigrams("[PAD]", "[CLS]", "[SEP]", "[UNK]"), unk_id=3)


def _modernbert() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    vocabulary = _bytes(*special.values(), "[MASK]")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )


def _llama() -> Any:
    from transformers import LlamaTokenizer

    return LlamaTokenizer(vocab=_metaspaced("<unk>", "<s>", "</s>"), merges=[])


def _gemma() -> Any:
    from transformers import GemmaTokenizer

    return GemmaTokenizer(vocab=_metaspaced("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"), merges=[])


def _gemma_with_image() -> Any:
    """Gemma 3's: beside its vocabulary stands a token for images, which has no place in the table of embeddings."""
    tokenizer = _gemma()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image_soft_token>"]})
    return tokenizer


def _gpt2() -> Any:
    from transformers import GPT2Tokenizer

    return GPT2Tokenizer(vocab=_bytes("<|endoftext|>"), merges=[])


def _gpt_neox() -> Any:
    from transformers import GPTNeoXTokenizer

    return GPTNeoXTokenizer(vocab=_bytes("<|endoftext|>", "<|padding|>"), merges=[])


def _qwen2() -> Any:
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer(vocab=_bytes("<|endoftext|>"), merges=[])


ARCHITECTURES = {
    "BERT, MiniLM": Architecture("bert", _wordpiece),
    "DistilBERT": Architecture("distilbert", _wordpiece),
    "ELECTRA": Architecture("electra", _wordpiece, {"embedding_size": 8}),
    "MPNet": Architecture("mpnet", _mpnet, OFFSET),
    "RoBERTa": Architecture("roberta", _roberta, OFFSET),
    "XLM-RoBERTa": Architecture("xlm-roberta", _xlm_roberta, OFFSET),
    "ALBERT": Architecture("albert", _albert, {"embedding_size": 8, "num_hidden_layers": 2}),
    "DeBERTa": Architecture("deberta", _deberta, {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "DeBERTa-v3": Architecture(
        "deberta-v2",
        _deberta_v2,
        {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
            "pooler_hidden_size": 16,
        },
    ),
    "ModernBERT": Architecture("modernbert", _modernbert, {"num_hidden_layers": 3, "local_attention": 16}),
    "Llama 2, SmolLM": Architecture("llama", _llama),
    "Mistral": Architecture("mistral", _llama, {"num_hidden_layers": 2}),
    "Qwen 2.5": Architecture("qwen2", _qwen2),
    "Qwen 3": Architecture("qwen3", _qwen2, {"head_dim": 8}),
    "Gemma 2": Architecture("gemma2", _gemma, {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "Gemma 3 1B": Architecture("gemma3_text", _gemma_with_image, {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "Gemma 3 4B": Architecture(
        "gemma3",
        _gemma_with_image,
        {"head_dim": 8, "query_pre_attn_scalar": 8},
        {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    ),
    "Qwen 3.5": Architecture(
        "qwen3_5",
        _qwen2,
        {"head_dim": 8, "num_hidden_layers": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
        | {
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "rope_parameters": QWEN_ROPE,
            "layer_types": ["linear_attention", "full_attention"],
        },
        {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
    ),
    "GPT-2": Architecture("gpt2", _gpt2),
    "GPT-NeoX, Pythia": Architecture("gpt_neox", _gpt_neox),
    "Phi-2": Architecture("phi", _gpt2),
}


def write(folder: Path, name: str) -> Path:
    """Write the architecture `name` to `folder`."""
    import torch
    from transformers import AutoConfig, AutoModel

    architecture = ARCHITECTURES[name]
    tokenizer = architecture.tokenizer()
    torch.manual_seed(0)
    special = {role: getattr(tokenizer, role) for role in ("pad_token_id", "bos_token_id", "eos_token_id")}
    image = "<image_soft_token>" in tokenizer.get_vocab()
    text = {"vocab_size": len(tokenizer) - image, **SHAPE, **special, **architecture.shape}
    nested = {"text_config": text, "vision_config": architecture.vision}
    config = AutoConfig.for_model(architecture.model_type, **(nested if architecture.vision else text))
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
