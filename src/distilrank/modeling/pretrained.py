"""Loading of pretrained classifiers with transformers: every tensor accounted for, and no code of the model's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from distilrank.core import progress
from distilrank.core.errors import InputError, one_line
from distilrank.modeling import encoding, references, weights

# Its progress bars, and its warning about the new head, are of no use to users.
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

POOLER = re.compile(r"(?:^|\.)pooler\.")
LANGUAGE = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?")
"""Prefix of the text model's tensors in a model that also reads images."""
UNLOADABLE = (OSError, ValueError, RuntimeError, AttributeError, KeyError, SafetensorError, StrictDataclassError)


def read_config(folder: Path) -> PreTrainedConfig:
    """Read the configuration of the model in `folder`, or of its text model if it also reads images.

    Raises:
        InputError: the model brings its own code, or its architecture is unknown to transformers.
    """
    references.refuse_code(str(folder), folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except UNLOADABLE as error:
        raise _not_loadable(folder, error) from error
    if isinstance(getattr(config, "text_config", None), PreTrainedConfig):
        config = config.text_config
    if config.model_type in encoding.OFFSET_POSITIONS and config.pad_token_id is None:
        config.pad_token_id = 1  # their positions count from it, and transformers' default is what they learned with
    return config


def values_by_layer(config: PreTrainedConfig) -> dict[str, list]:
    """Settings that a configuration lists per layer, for example whether attention is local."""
    lists = {name: value for name, value in config.to_dict().items() if isinstance(value, list | tuple)}
    return {name: list(value) for name, value in lists.items() if len(value) == config.num_hidden_layers}


def keep_layers(config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Reduce `config` to these layers of the model.

    Raises:
        NotImplementedError: the architecture derives its number of layers from other settings.
    """
    by_layer = values_by_layer(config)
    config.num_hidden_layers = len(layers)
    for name, values in by_layer.items():
        setattr(config, name, [values[layer] for layer in layers])


def _not_loadable(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder}: not a model that can be loaded ({one_line(error)})")


def is_head(model: PreTrainedModel, name: str) -> bool:
    """Whether the tensor `name` belongs to the classifier's head or pooler, which a base model's weights may lack."""
    inner = model.base_model is not model
    return (inner and not name.startswith(f"{model.base_model_prefix}.")) or bool(POOLER.search(name))


def inputs(folder: Path, model: PreTrainedModel) -> encoding.Inputs:
    """Read what `Encoder` needs of the base model in `folder`, with transformers' defaults for omitted settings.

    Raises:
        InputError: the model brings its own code, or its tokenizer.json is missing or unreadable.
    """
    references.refuse_code(str(folder), folder)
    read, tokenizer = encoding.Inputs.read(folder), encoding.load_tokenizer(folder)
    try:
        default = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).special_tokens_map
    except Exception:  # a class that cannot read this tokenizer.json, which is what counts, knows no roles either
        default = {}
    default = {role: token for role, token in default.items() if role in encoding.ROLES}
    special_tokens = {role: token for role, token in default.items() if tokenizer.token_to_id(token) is not None}
    return encoding.Inputs(model.config.to_dict(), {**special_tokens, **read.special_tokens}, read.names)


def load(folder: Path, *, whole: bool = False, num_labels: int | None = None, **settings: Any) -> PreTrainedModel:
    """Load a sequence classifier from safetensors.

    Prefixes of training frameworks are stripped from the tensors' names. A missing head or pooler is initialized from
    the current torch seed.

    Args:
        folder: a model folder.
        whole: whether a missing head is an error, as in a folder that a stage saved.
        num_labels: outputs of the head; a head with another number is replaced by a new one. None: as stored.
        settings: further arguments of transformers' `from_pretrained`.

    Raises:
        InputError: unknown architecture, a model with its own code, or incomplete weights.
    """
    config = read_config(folder)
    if num_labels is not None:
        config.num_labels = num_labels
    try:
        with torch.device("meta"):
            prefix = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False).base_model_prefix
        tensors = {LANGUAGE.sub(f"{prefix}.", name): header for name, header in weights.headers(folder, prefix).items()}
        renamed = {f"^{re.escape(header.name)}$": name for name, header in tensors.items() if header.name != name}
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            key_mapping=renamed or None,
            ignore_mismatched_sizes=True,  # reported and refused below by name
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
            **settings,
        )
    except UNLOADABLE as error:
        raise _not_loadable(folder, error) from error
    if renamed:  # save under the architecture's own names
        model._weight_conversions = [
            conversion
            for conversion in model._weight_conversions
            if not set(conversion._original_source_patterns) & set(renamed)
        ]
    _refuse_incomplete(folder, model, report, whole)
    return model


def check(folder: Path, **settings: Any) -> None:
    """Check like `load`, without reading weights.

    Raises:
        InputError: as `load` does.
    """
    load(folder, device_map="meta", **settings)


def _refuse_incomplete(folder: Path, model: PreTrainedModel, report: dict[str, Any], whole: bool) -> None:
    """Refuse a model with tensors that did not come from its weights, or weights of another architecture."""
    base, prefix = model.base_model, f"{model.base_model_prefix}."
    inner = base is not model

    def is_base(name: str) -> bool:
        """Whether it would belong to the base model: language modeling heads are rightly left out."""
        return not inner or name.removeprefix(prefix).partition(".")[0] in dict(base.named_children())

    reshaped = {name: (tuple(stored), tuple(expected)) for name, stored, expected in report["mismatched_keys"]}
    heads = {} if whole or not inner else {name: shapes for name, shapes in reshaped.items() if not is_base(name)}
    labels = {stored[0] for stored, expected in heads.values() if stored[1:] == expected[1:]}
    if labels:
        progress.log_event(
            "model", "note", f"{folder}: its head has {max(labels)} labels: a new head with 1 logit is trained"
        )
    weights.refuse(
        str(folder),
        len(model.state_dict()),
        missing=[name for name in report["missing_keys"] if whole or not is_head(model, name)],
        unexpected=[name for name in report["unexpected_keys"] if whole or is_base(name)],
        reshaped={name: shapes for name, shapes in reshaped.items() if name not in heads},
        whole=whole,
    )
