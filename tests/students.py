"""Students of random weights for tests, in folders as the student stage writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from distilrank.config import Text
from distilrank.core import artifacts
from distilrank.modeling.scorer import DESCRIPTION, describe, load_encoder

PLATT = {"method": "platt", "slope": 2.0, "intercept": -1.0}
BERT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def write_student(folder: Path, models: Path, text: Text, *, tokens: int, family: str = "bert", **shape: Any) -> Path:
    """A calibrated student of this shape with the vocabulary of `models`, its weights so large that scores differ."""
    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(models / "encoder")
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
        initializer_range=0.3,
        **shape,
    )
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.model_max_length = text.max_tokens
    tokenizer.save_pretrained(folder)
    encoder = load_encoder(folder, text, "encoder")
    describe(folder, role="student", encoder=encoder, text=text, tokens=tokens, base=family)
    change(folder / DESCRIPTION, calibration=PLATT)
    return folder


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    artifacts.write_json(path, artifacts.read_json(path) | values)
