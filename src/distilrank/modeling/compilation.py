"""Compilation of a model's layers by torch.compile, if the work is long enough to pay for it.

Only the layers are compiled: they share one program, so 30 of them cost no more than one. Compilation takes about a
minute on two cores and saves a quarter of a training. The amount of work alone decides, so a task that is killed and
restarted computes the same bits.
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
"""Number of operations from which compilation pays: about ten minutes of two AVX512-BF16 cores, or of a large GPU."""


def weights(model: nn.Module) -> int:
    """Number of weights that every token is multiplied with: without embeddings, head and adapters."""
    classifier = packing.plain(model)
    counted = {
        id(parameter): parameter.numel()
        for name, parameter in classifier.base_model.named_parameters()
        if "embed" not in name and "lora_" not in name
    }
    return sum(counted.values())


def compile_layers(stage: str, model: nn.Module, compute: Compute, runtime: Runtime, operations: float) -> bool:
    """Compile the layers of `model` if the configuration and `operations` say so; return whether it did.

    Args:
        stage: name that the progress line begins with.
        model: only models that take packed batches are compiled.
        compute: its setting `compile` decides.
        runtime: device.
        operations: floating-point operations of the task: per weight and token 2 to score, 4 to train adapters, 6 to
            train all weights.

    Raises:
        InputError: `compile: on`, but it is not possible.
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
