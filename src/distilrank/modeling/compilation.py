"""Fused layers by torch.compile, where the work is long enough to pay for the compilation.

Only a model's layers are compiled: they share one program, so that 30 of them cost no more than one. It takes about a
minute on two cores and saves a quarter of a training, and as it is told from the amount of work alone, a task that is
killed and started again computes the same bits.
"""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from distilrank.config import Compute
from distilrank.core import progress
from distilrank.core.errors import InputError
from distilrank.modeling import packing
from distilrank.modeling.runtime import Runtime

PAYS_FROM = {"cpu": 1.5e14, "cuda": 1.5e17}
"""Operations from which compiling pays: about ten minutes of two AVX512-BF16 cores, or of one large GPU."""


def weights(model: nn.Module) -> int:
    """Weights that every token meets: all but the embeddings and the head, adapters not counted."""
    classifier = packing.plain(model)
    counted = {
        id(parameter): parameter.numel()
        for name, parameter in classifier.base_model.named_parameters()
        if "embed" not in name and "lora_" not in name
    }
    return sum(counted.values())


def compile_layers(stage: str, model: nn.Module, compute: Compute, runtime: Runtime, operations: float) -> bool:
    """Compile the layers of `model` if the configuration and `operations` say so; whether it was done.

    Args:
        stage: names the progress line.
        model: one that takes packed batches; others stay as they are unless asked for.
        compute: `compile` decides.
        runtime: device.
        operations: floating-point operations that lie ahead: 2 a weight and token to score, 4 to train adapters,
            6 to train all weights.

    Raises:
        InputError: `compile: on` where it cannot be done.
    """
    missing = "" if packing.is_packed(model) else f"not for models of type {model.config.model_type}"
    if runtime.device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        missing = "no C++ compiler on this machine"
    if runtime.device.type == "cuda" and not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        missing = "no C compiler on this machine, which Triton needs"
    if compute.compile == "on" and missing:
        raise InputError(f"compute.compile: on, but {missing}; expected auto or off")
    long = operations >= PAYS_FROM.get(runtime.device.type, float("inf"))
    if missing or compute.compile == "off" or (compute.compile == "auto" and not long):
        return False
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 16)
    for layer in packing.layers(model):
        layer.compile(dynamic=True)
    progress.log_event(stage, "note", "fusing layers by torch.compile: the first batches take a minute longer")
    return True
