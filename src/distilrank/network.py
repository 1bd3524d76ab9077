"""The network's forward pass in torch: the one path on which models train and score."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel

from distilrank import batching, compute, models, packing, pretrained, progress
from distilrank.config import Compute
from distilrank.encoding import Tokens
from distilrank.errors import RunStopped


def collate(tokens: Tokens, rows: np.ndarray, pad_token: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Pad pairs on the right to their longest: int64 tensors of shape (rows, tokens), with an attention mask."""
    batch = tokens.padded(rows, pad_token)
    tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
    if device.type == "cuda":
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def forward(model: torch.nn.Module, tokens: Tokens, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """Raw logits of the pairs `rows`, shape (rows,): packed where the model can be, else padded."""
    if packing.is_packed(model):
        return packing.logits(model, tokens, rows, device)
    return model(**collate(tokens, rows, model.config.pad_token_id, device)).logits[:, 0]


def load_model(
    folder: Path, runtime: compute.Runtime, dtype: torch.dtype | None = None, *, whole: bool = False
) -> PreTrainedModel:
    """Load a one-logit classifier from safetensors; a missing head is made anew from the current torch seed.

    Args:
        folder: a pretrained model, or one that the teacher or student stage saved.
        runtime: device and precision.
        dtype: of the weights; None: the runtime's.
        whole: not even the head may be missing.

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
    for head in (module for module in model.modules() if isinstance(module, torch.nn.Linear)):
        if head.out_features == 1:  # a logit in bf16 has two digits: too few to rank by
            head.float().__class__ = _Head
    return model.to(runtime.device)


class _Head(torch.nn.Linear):
    """Computes in its weights' precision, whatever its input has and autocast wants."""

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
        batches = batching.consecutive(np.argsort(key, kind="stable"), tokens.lengths, budget)
    else:
        batches = batching.by_length(tokens.lengths, budget)
    with _evaluating(model):
        for batch in batches:
            logits[batch] = _within_memory(model, tokens, batch, device).float().cpu().numpy()
            if counter:
                counter.add(len(batch))
    return logits


def _within_memory(model: torch.nn.Module, tokens: Tokens, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """`forward`, in halves where the device has too little memory for the whole."""
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


class Network:
    """A loaded model as one of the backends of `scorer.Scorer`."""

    name = "torch"

    def __init__(self, model: PreTrainedModel, runtime: compute.Runtime) -> None:
        self.model, self.runtime = model, runtime

    @classmethod
    def load(cls, folder: Path, compute_config: Compute) -> Network:
        """Load the model in `folder` to the device and precision that the configuration asks for.

        Raises:
            InputError: as `load_model`, or the device is not there.
        """
        runtime = compute.setup(compute_config)
        return cls(load_model(folder, runtime, whole=True), runtime)

    def score(self, tokens: Tokens, budget: int, counter: progress.Counter | None = None) -> np.ndarray:
        """As `score_encoded`."""
        return score_encoded(self.model, tokens, self.runtime.device, budget, counter)

    def describe(self) -> str:
        """One line for people."""
        return f"torch on {self.runtime.describe()}"


def save_tokenizer(source: Path, target: Path, pad_token: str, max_tokens: int | None = None) -> None:
    """Write the tokenizer of the folder `source` to `target` as transformers and sentence-transformers read it.

    Args:
        pad_token: what it pads with, also where the source names nothing.
        max_tokens: what other libraries cut a pair to; None: as in `source`.

    Raises:
        InputError: the source brings code of its own.
    """
    models.refuse_code(str(source), source)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer.pad_token = pad_token
    if max_tokens is not None:
        tokenizer.model_max_length = max_tokens
    tokenizer.save_pretrained(target)
