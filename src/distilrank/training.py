"""The loop that teacher and student share: steps, schedule, looks at dev, and the best weights kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import get_linear_schedule_with_warmup, set_seed

from distilrank import compute, progress
from distilrank.config import Optimiser
from distilrank.errors import RunStopped


@dataclass
class Outcome:
    """How a training went."""

    curve: list[dict[str, float]] = field(default_factory=list)
    """A row a look at dev: step, epoch, loss (mean since the last look) and dev_ndcg_at_10."""
    best: float = -math.inf
    best_step: int = 0


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, before the model and its new head are made."""
    set_seed(seed)


def fit(
    stage: str,
    model: torch.nn.Module,
    *,
    epochs: Sequence[Sequence[np.ndarray]],
    loss: Callable[[torch.nn.Module, np.ndarray], torch.Tensor],
    evaluate: Callable[[torch.nn.Module], float],
    optimiser: Optimiser,
    runtime: compute.Runtime,
) -> Outcome:
    """Train `model` in place and leave in it the weights that did best on dev.

    Args:
        stage: names the progress lines.
        model: its parameters that require gradients are trained, in fp32; the forward pass runs under autocast in bf16.
        epochs: for each epoch its batches, each an array of unit indices that `loss` understands.
        loss: the scalar loss of one batch.
        evaluate: dev nDCG@10 of the model as it is.
        optimiser: rate, schedule and the number of looks at dev.
        runtime: device and precision.
    """
    accelerator = Accelerator(
        mixed_precision="bf16" if runtime.bf16 else "no",
        cpu=runtime.device.type == "cpu",
        gradient_accumulation_steps=optimiser.accumulate,
    )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(trainable, lr=optimiser.learning_rate, weight_decay=optimiser.weight_decay, fused=True)
    passes = sum(len(batches) for batches in epochs)
    steps = sum(math.ceil(len(batches) / optimiser.accumulate) for batches in epochs)
    schedule = get_linear_schedule_with_warmup(adamw, max(int(steps * optimiser.warmup), 1), steps)
    wrapped, adamw = accelerator.prepare(model, adamw)
    looks = {round(steps * look / optimiser.evaluations) for look in range(1, optimiser.evaluations + 1)} - {0}
    outcome, best_weights, step, losses = Outcome(), {}, 0, []
    counter = progress.Counter(stage, passes, "batches")
    wrapped.train()
    for epoch, batches in enumerate(epochs, start=1):
        for at, batch in enumerate(batches, start=1):
            value = loss(wrapped, batch)
            # accelerate divides by `accumulate`, which is too much for a last group that is shorter
            short = optimiser.accumulate / min(
                optimiser.accumulate, len(batches) - (at - 1) // optimiser.accumulate * optimiser.accumulate
            )
            accelerator.backward(value * short)
            current = float(value.detach())
            losses.append(current)
            if not math.isfinite(current):
                raise RunStopped(f"{stage}: the loss became {current} at step {step + 1}; lower the learning rate")
            if at % optimiser.accumulate == 0 or at == len(batches):
                accelerator.clip_grad_norm_(trainable, optimiser.clip)
                adamw.step()
                schedule.step()
                adamw.zero_grad()
                step += 1
                if step in looks:
                    score = evaluate(wrapped)
                    row: dict[str, Any] = {
                        "step": step,
                        "epoch": epoch,
                        "loss": float(np.mean(losses)),
                        "dev_ndcg_at_10": score,
                    }
                    outcome.curve.append(row)
                    progress.announce(
                        stage, "note", f"step {step}/{steps}: loss {row['loss']:.4f}, dev nDCG@10 {score:.4f}"
                    )
                    losses = []
                    if score > outcome.best:
                        outcome.best, outcome.best_step = score, step
                        best_weights = {
                            name: parameter.detach().to("cpu", copy=True)
                            for name, parameter in model.named_parameters()
                            if parameter.requires_grad
                        }
            counter.add(1, f"loss {current:.4f}")
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # the autocast wrapper must not outlive the training
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in best_weights:
                parameter.copy_(best_weights[name])
    return outcome
