"""The network's forward pass in torch, shared by training and scoring."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from distilrank.config import Compute
from distilrank.core import artifacts, progress
from distilrank.core.errors import RunStopped
from distilrank.modeling import batching, packing, pretrained, weights
from distilrank.modeling.encoding import INPUTS, Encoder, Tokens
from distilrank.modeling.runtime import Runtime, setup_runtime


def collate(tokens: Tokens, rows: np.ndarray, pad_token: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Pad pairs on the right to their longest: int64 tensors of shape (rows, tokens), with an attention mask."""
    batch = tokens.padded(rows, pad_token)
    tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
    if device.type == "cuda":
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def forward(model: torch.nn.Module, tokens: Tokens, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """Raw logits of the pairs `rows`, shape (rows,): packed if the model supports it, otherwise padded."""
    if packing.is_packed(model):
        return packing.logits(model, tokens, rows, device)
    return model(**collate(tokens, rows, model.config.pad_token_id, device)).logits[:, 0]


def load_model(
    folder: Path, runtime: Runtime, dtype: torch.dtype | None = None, *, whole: bool = False
) -> PreTrainedModel:
    """Load a one-logit classifier from safetensors; a missing head is initialized from the current torch seed.

    Args:
        folder: a pretrained model, or one that the teacher or student stage saved.
        runtime: device and precision.
        dtype: of the weights; None: the runtime's.
        whole: whether a missing head is an error, too.

    Raises:
        InputError: as `pretrained.load` does.
    """
    packed = pretrained.read_config(folder).model_type in packing.MODEL_TYPES
    # On CPU, eager attention trains encoders 1.5x faster than SDPA, whose backward is slow there; on short inputs
    # it scores at the same speed. Elsewhere transformers takes SDPA where the architecture has it.
    padded = "eager" if runtime.device.type == "cpu" else None
    model = pretrained.load(
        folder,
        whole=whole,
        num_labels=1,
        dtype=dtype or runtime.dtype,
        attn_implementation=packing.ATTENTION if packed else padded,
    )
    model.config.use_cache = False  # nothing is generated
    model.config.problem_type = "regression"
    _widen_head(model, folder)
    return model.to(runtime.device)


def _widen_head(model: PreTrainedModel, folder: Path) -> None:
    """Make head and pooler compute in fp32 with their stored weights, since a logit in bf16 has two digits."""
    stored = weights.headers(folder, model.base_model_prefix)
    for name, parameter in model.named_parameters():
        if pretrained.is_head(model, name) and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
            if name in stored and stored[name].dtype == "F32":
                with safetensors.safe_open(stored[name].file, "pt") as file:
                    parameter.data.copy_(file.get_tensor(stored[name].name))
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and pretrained.is_head(model, f"{name}.weight"):
            module.__class__ = _Head


def narrow_base(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round all weights except those of head and pooler to `dtype` in place, as `load_model` does."""
    for name, parameter in model.named_parameters():
        if not pretrained.is_head(model, name):
            parameter.data = parameter.data.to(dtype)


class _Head(torch.nn.Linear):
    """Computes in the precision of its weights, regardless of its input and of autocast."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def score_encoded(
    model: torch.nn.Module,
    tokens: Tokens,
    device: torch.device,
    budget: int,
    counter: progress.Counter | None = None,
) -> np.ndarray:
    """Raw logits of pairs, float32, shape (n,), in the order given; a batch has at most `budget` tokens."""
    logits = np.empty(len(tokens), np.float32)
    if packing.is_packed(model):
        # pairs of a query share their beginning in a decoder; pairs of one length waste nothing in attention
        shared = packing.plain(model).config.model_type in packing.DECODERS
        key = tokens.queries if shared else -tokens.lengths
        batches = batching.sequential_batches(np.argsort(key, kind="stable"), tokens.lengths, budget)
    else:
        batches = batching.by_length(tokens.lengths, budget)
    with _evaluating(model):
        for batch in batches:
            logits[batch] = _within_memory(model, tokens, batch, device).float().cpu().numpy()
            if counter:
                counter.add(len(batch))
    return logits


def _within_memory(model: torch.nn.Module, tokens: Tokens, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """Run `forward`, in halves if the device has too little memory for the batch."""
    try:
        return forward(model, tokens, rows, device)
    except torch.OutOfMemoryError as error:
        if len(rows) == 1:
            raise RunStopped(
                f"out of memory on {device} with one pair of {tokens.lengths[rows[0]]} tokens; batches were halved "
                "down to it. Lower text.max_tokens, or take a smaller model or a larger device"
            ) from error
    if device.type == "cuda":
        torch.cuda.empty_cache()
    half = len(rows) // 2
    return torch.cat([_within_memory(model, tokens, part, device) for part in (rows[:half], rows[half:])])


class TorchBackend:
    """A loaded model as one of the backends of `scorer.Scorer`."""

    name = "torch"

    def __init__(self, model: PreTrainedModel, runtime: Runtime) -> None:
        self.model, self.runtime = model, runtime

    @classmethod
    def load(cls, folder: Path, compute_config: Compute) -> TorchBackend:
        """Load the model in `folder` with the configured device and precision.

        Raises:
            InputError: as `load_model`, or the device is not available.
        """
        runtime = setup_runtime(compute_config)
        return cls(load_model(folder, runtime, whole=True), runtime)

    def score(self, tokens: Tokens, budget: int, counter: progress.Counter | None = None) -> np.ndarray:
        """Apply `score_encoded`."""
        return score_encoded(self.model, tokens, self.runtime.device, budget, counter)

    def describe(self) -> str:
        """A readable description in one line."""
        return f"torch on {self.runtime.describe()}"


def save_tokenizer(encoder: Encoder, target: Path) -> None:
    """Write the tokenizer of `encoder` to `target` for transformers and sentence-transformers.

    It is saved with the generic class, which uses tokenizer.json unchanged. Most specific classes of transformers
    rebuild the tokenizer from the vocabulary and their settings, and ignore the rest of the file.
    """
    names = [name for name in INPUTS if name != "token_type_ids" or encoder.has_types]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=encoder.tokenizer,
        model_input_names=names,
        model_max_length=encoder.max_tokens,
        padding_side="right",
        truncation_side="right",
        **{**encoder.special_tokens, "pad_token": encoder.pad_token},
    )
    tokenizer.save_pretrained(target)
    path = target / "tokenizer_config.json"  # transformers 4 does not know the class name of transformers 5
    artifacts.write_json(path, artifacts.read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast"})
