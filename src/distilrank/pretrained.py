"""Loading of pretrained classifiers with transformers: every tensor accounted for, and no code of the model's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from distilrank import encoding, models, weights
from distilrank.errors import InputError

# Its bars and its report of a head that we train anew tell our users nothing.
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

POOLER = re.compile(r"(?:^|\.)pooler\.")


def is_head(model: PreTrainedModel, name: str) -> bool:
    """Whether the tensor `name` belongs to the classifier's head or pooler, which a base model's weights may lack."""
    inner = model.base_model is not model
    return (inner and not name.startswith(f"{model.base_model_prefix}.")) or bool(POOLER.search(name))


def inputs(folder: Path, model: PreTrainedModel) -> encoding.Inputs:
    """What `Encoder` needs to know of the base model in `folder`, with transformers' defaults for what its JSON omits.

    Raises:
        InputError: the model brings code of its own, or its tokenizer.json is missing or unreadable.
    """
    models.refuse_code(str(folder), folder)
    read, tokenizer = encoding.Inputs.read(folder), encoding.load_tokenizer(folder)
    try:
        default = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).special_tokens_map
    except Exception:  # a class that cannot read this tokenizer.json, which is what counts, knows no roles either
        default = {}
    default = {role: token for role, token in default.items() if role in encoding.ROLES}
    known = {role: token for role, token in default.items() if tokenizer.token_to_id(token) is not None}
    return encoding.Inputs(model.config.to_dict(), {**known, **read.special_tokens}, read.names)


def load(folder: Path, *, whole: bool = False, **settings: Any) -> PreTrainedModel:
    """Load a sequence classifier from safetensors.

    Prefixes of training frameworks are stripped from the tensors' names. A missing head or pooler is initialized from
    the current torch seed.

    Args:
        folder: a model folder.
        whole: not even the head may be missing, as in a folder that a stage of ours saved.
        settings: further arguments of transformers' `from_pretrained`.

    Raises:
        InputError: no model of a known architecture, one with code of its own, or weights that are not all there.
    """
    models.refuse_code(str(folder), folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            prefix = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False).base_model_prefix
        tensors = weights.headers(folder, prefix)
        renamed = {f"^{re.escape(header.name)}$": name for name, header in tensors.items() if header.name != name}
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            key_mapping=renamed or None,
            ignore_mismatched_sizes=True,  # reported, and refused below by name
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
            **settings,
        )
    except (OSError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
        raise InputError(f"{folder}: not a model that can be loaded ({' '.join(str(error).split())[:200]})") from error
    if renamed:  # save under the architecture's own names
        model._weight_conversions = [
            conversion
            for conversion in model._weight_conversions
            if not set(conversion._original_source_patterns) & set(renamed)
        ]
    _refuse_incomplete(folder, model, report, whole)
    return model


def check(folder: Path, **settings: Any) -> None:
    """Check as `load` does, reading no weights.

    Raises:
        InputError: as `load` does.
    """
    load(folder, device_map="meta", **settings)


def _refuse_incomplete(folder: Path, model: PreTrainedModel, report: dict[str, Any], whole: bool) -> None:
    """Refuse a model with tensors that did not come from its weights, or weights of another architecture."""
    base, prefix = model.base_model, f"{model.base_model_prefix}."
    inner = base is not model

    def is_base(name: str) -> bool:
        """Whether it would belong to the base model: language modelling heads are rightly left out."""
        return not inner or name.removeprefix(prefix).partition(".")[0] in dict(base.named_children())

    weights.refuse(
        str(folder),
        len(model.state_dict()),
        missing=[name for name in report["missing_keys"] if whole or not is_head(model, name)],
        unexpected=[name for name in report["unexpected_keys"] if whole or is_base(name)],
        reshaped={name: (tuple(stored), tuple(expected)) for name, stored, expected in report["mismatched_keys"]},
        whole=whole,
    )
