"""Low-rank adapters that are folded into the weights once per step, so that they hardly slow a training step.

peft makes, saves and loads the adapters; only the arithmetic of its layers is replaced. A plain LoRA layer computes
x W^T + s (x A^T) B^T: three matrix products and two additions, of which the small ones use the hardware poorly. Here
W' = W + s B A is computed once after each optimizer step, and a layer is one product with W'. In the backward pass,
the gradients of A and B come from four thin products, never from a dense gradient of W. The forward pass is bitwise
that of the merged model, so the trained model is the one that scores. Head and pooler are trained and saved
completely, in fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from distilrank.config import Lora
from distilrank.core import artifacts
from distilrank.core.errors import InputError, one_line
from distilrank.modeling.pretrained import POOLER, is_head

ADAPTER = "default"  # peft's name for the only adapter


class _FoldedProduct(torch.autograd.Function):
    """x W'^T + bias with W' = W + s B A: gradients for x, A and B (shapes (rows, in), (rank, in), (out, rank))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, folded: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, folded, a, b)
        ctx.scale = scale
        return linear(x, folded, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, folded, a, b = ctx.saved_tensors
        back = gradient @ folded if ctx.needs_input_grad[0] else None
        for_b = gradient.t() @ (x @ a.to(x.dtype).t())
        for_a = (gradient @ b.to(x.dtype)).t() @ x
        return back, None, None, for_a.to(a.dtype) * ctx.scale, for_b.to(b.dtype) * ctx.scale, None


class _FoldedLinear(nn.Module):
    """Replaces one of peft's layers, and owns its parts."""

    folded: Tensor

    def __init__(self, layer: LoraLinear) -> None:
        super().__init__()
        self.layer = layer
        self.scale = float(layer.scaling[ADAPTER])
        self.register_buffer("folded", layer.base_layer.weight.detach().clone(), persistent=False)

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        return self.layer.lora_A[ADAPTER].weight, self.layer.lora_B[ADAPTER].weight

    def fold(self) -> None:
        a, b = (factor.detach().to(self.folded.dtype) for factor in self.factors)
        torch.addmm(self.layer.base_layer.weight, b, a, alpha=self.scale, out=self.folded)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.factors
        # as a matrix: with more dimensions, `linear` returns a view, which DeBERTa must not change in place
        rows = _FoldedProduct.apply(x.flatten(0, -2), self.folded, self.layer.base_layer.bias, a, b, self.scale)
        return rows.unflatten(0, x.shape[:-1])


def _head(model: PreTrainedModel) -> list[str]:
    """The modules of head and pooler, which are trained completely: a base without them gets random ones."""
    names = [name for name, _ in model.named_parameters() if is_head(model, name)]
    paths = [name[: match.end() - 1] if (match := POOLER.search(name)) else name.partition(".")[0] for name in names]
    return list(dict.fromkeys(paths))


class Adapted:
    """A model in which only adapters and head are trained or, at rank 0, all weights.

    `model` is the module to train. Call `fold` after each step of the optimizer, and `merged` at the end.
    """

    def __init__(self, model: PreTrainedModel, lora: Lora) -> None:
        """
        Args:
            model: model in the precision of its frozen weights; adapters and head are fp32.
            lora: rank, scale, targets, variant.
        """
        self.lora = lora
        self._folded: dict[str, _FoldedLinear] = {}
        if not lora.rank:
            self.model: nn.Module = model.float()
            return
        heads = _head(model)
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
            use_rslora=lora.variant == "rslora",
            use_dora=lora.variant == "dora",
            modules_to_save=heads,
            exclude_modules=rf"({'|'.join(heads)})(\..*)?" if lora.targets == "all-linear" else None,
        )
        try:
            self.model = get_peft_model(model, config)
        except ValueError as error:
            reason = one_line(error)
            raise InputError(f"teacher.lora.targets {lora.targets!r}: peft cannot adapt them ({reason})") from error
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # bf16 would lose small optimizer steps
        layers = {name: layer for name, layer in self.model.named_modules() if isinstance(layer, BaseTunerLayer)}
        # embeddings have other adapters, and GPT-2's Conv1D has transposed weights
        linear = all(
            type(layer) is LoraLinear and isinstance(layer.get_base_layer(), nn.Linear) for layer in layers.values()
        )
        if lora.fold and not lora.dropout and lora.variant != "dora" and linear:
            for name, layer in layers.items():
                self._replace(name, folded := _FoldedLinear(layer))
                self._folded[name] = folded

    @property
    def folds(self) -> bool:
        """Whether adapters are folded; the forward pass then needs no autocast."""
        return bool(self._folded)

    def _replace(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, module)

    @torch.no_grad()
    def fold(self) -> None:
        """Update the folded weights from the adapters."""
        for layer in self._folded.values():
            layer.fold()

    def trained(self) -> dict[str, Tensor]:
        """The trained weights by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def merged(self, adapter: Path | None) -> PreTrainedModel:
        """Return the plain model with merged adapters, which are first saved to `adapter` in peft's format.

        Folded weights are used unchanged, so the merged model is bitwise the trained one. Do not use the object
        afterwards.
        """
        if not isinstance(self.model, PeftModel):
            return self.model
        for name, folded in self._folded.items():
            self._replace(name, folded.layer)
        if adapter is not None:
            self.model.save_pretrained(adapter, safe_serialization=True)
            config = artifacts.read_json(adapter / "adapter_config.json")  # peft stores the names as a set
            if isinstance(config["target_modules"], list):  # a regular expression is one string
                config["target_modules"] = sorted(config["target_modules"])
            artifacts.write_json(adapter / "adapter_config.json", config)
        if not self._folded:
            return self.model.merge_and_unload()  # adapters are fp32: sums are rounded once to the weights' precision
        with torch.no_grad():
            for folded in self._folded.values():
                folded.layer.base_layer.weight.copy_(folded.folded)
        return self.model.unload()
