"""Small real things that the tests share: tiny models with real tokenizers, made once a session."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

# Tests run side by side; threads that spin against each other would slow all of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

WORDS = (
    "red blue green black white leather cotton sofa couch chair table lamp phone case charger drill bit shoe sneaker "
    "running trail dress shirt women men kids large small cordless steel wood query product for with and the of size"
).split()


LONG = ("test_pipeline.py", "test_training.py")
"""Files that take minutes: they begin first, since a file runs on one worker and the others would wait for the last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def _stacks_without_sources() -> Iterator[None]:
    """KFP reads the sources of all frames of the stack each time a task changes: below pytest, seconds a pipeline."""
    from kfp.dsl import pipeline_task

    with mock.patch.object(pipeline_task, "inspect", mock.Mock(stack=functools.partial(inspect.stack, 0))):
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `decoder` (Llama, BPE) and `encoder` (BERT, WordPiece), both of a few thousand random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizerFast,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [" ".join(WORDS)] * 3,
        trainers.BpeTrainer(vocab_size=500, special_tokens=["<|start|>", "<|end|>"], initial_alphabet=alphabet),
    )
    decoder_tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|start|>", eos_token="<|end|>")
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(decoder_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    decoder.save_pretrained(folder / "decoder")
    decoder_tokenizer.save_pretrained(folder / "decoder")

    (folder / "encoder").mkdir()
    characters = "abcdefghijklmnopqrstuvwxyz0123456789.,-'|"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *characters, *(f"##{one}" for one in characters)]
    vocabulary = folder / "encoder" / "vocab.txt"
    vocabulary.write_text("\n".join(dict.fromkeys(pieces)) + "\n")
    encoder_tokenizer = BertTokenizerFast(vocab=str(vocabulary))
    encoder = BertModel(
        BertConfig(
            vocab_size=len(encoder_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
        )
    )
    encoder.save_pretrained(folder / "encoder")
    encoder_tokenizer.save_pretrained(folder / "encoder")
    return folder
