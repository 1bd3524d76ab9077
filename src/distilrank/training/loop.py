"""The loop that teacher and student share: steps, schedule, looks at dev, checkpoints, and the best weights kept.

It runs in one process or in several (torchrun, or a TrainJob): the batches of a step are shared out over them, and
the step is the same.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from pydantic import BaseModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import set_seed

from distilrank.config import Compute, Optimizer
from distilrank.core import artifacts, progress
from distilrank.core.errors import RunStopped
from distilrank.modeling.encoding import Tokens
from distilrank.modeling.runtime import Runtime
from distilrank.modeling.torch_backend import forward, score_encoded
from distilrank.training.checkpoints import Checkpoints


@dataclass
class Outcome:
    """How a training went."""

    curve: list[dict[str, float]] = field(default_factory=list)
    """A row a look at dev: step, epoch, loss (mean since the last look) and dev_ndcg_at_10."""
    best: float = -math.inf
    best_step: int = 0


class Logits(nn.Module):
    """A classifier as a function of (tokens, rows): what is trained, and what several processes keep in step."""

    def __init__(self, model: nn.Module, device: torch.device, extra: nn.Module | None = None) -> None:
        """
        Args:
            model: one-logit classifier.
            device: where it is.
            extra: parameters of the loss that train along, if it has any.
        """
        super().__init__()
        self.model, self.device, self.extra = model, device, extra

    def forward(self, tokens: Tokens, rows: np.ndarray) -> Tensor:
        """Raw logits of the pairs `rows`, shape (rows,)."""
        return forward(self.model, tokens, rows, self.device)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, before the model and its new head are made."""
    set_seed(seed)


AFTERWARDS = {"calibration", "lift_over_bm25", "max_ece", "min_deviation", "disagreements", "export"}
"""Knobs that have a say only once a training is over: one that they refuse need not be repeated when they change."""


def checkpoints_of(
    stage: str, compute: Compute, runtime: Runtime, inputs: dict[str, str], config: BaseModel
) -> Checkpoints:
    """The checkpoints of a training: below `compute.checkpoint_dir`, named by all that decides its course."""
    if not compute.checkpoint_dir:
        return Checkpoints(None)
    decides = {
        "inputs": inputs,
        "config": config.model_dump(mode="json", exclude=AFTERWARDS),
        "compute": compute.model_dump(include={"compile", "deterministic"}),
        "runtime": [runtime.device.type, str(runtime.dtype)],  # as resolved: another node may resolve `auto` to another
        "processes": os.environ.get("WORLD_SIZE", "1"),
        "versions": [artifacts.code_digest(), torch.__version__, transformers.__version__, peft.__version__],
    }
    return Checkpoints(Path(compute.checkpoint_dir) / f"{stage}-{artifacts.digest_json(decides)[:16]}")


def steps_of(
    epochs: Sequence[Sequence[np.ndarray]], accumulate: int, processes: int
) -> list[tuple[int, list[np.ndarray]]]:
    """The batches of each step, with the number of its epoch from 1.

    A step has `accumulate` batches, or as many more as give every process the same number.
    """
    size = math.ceil(accumulate / processes) * processes
    return [
        (epoch, list(batches[start : start + size]))
        for epoch, batches in enumerate(epochs, start=1)
        for start in range(0, len(batches), size)
    ]


def fit(
    stage: str,
    logits: Logits,
    *,
    epochs: Sequence[Sequence[np.ndarray]],
    loss: Callable[[nn.Module, np.ndarray], Tensor],
    evaluate: Callable[[nn.Module], float],
    name_rows: Callable[[np.ndarray], str],
    optimizer: Optimizer,
    runtime: Runtime,
    checkpoints: Checkpoints,
    checkpoint_seconds: float,
    autocast: bool = True,
    after_step: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train in place and leave in `logits` the weights that did best on dev.

    Args:
        stage: names the progress lines.
        logits: its parameters that require gradients are trained, in fp32.
        epochs: for each epoch its batches, each an array of unit indices that `loss` understands.
        loss: the scalar loss of one batch, given `logits` as it is wrapped.
        evaluate: dev nDCG@10 of the model as it is.
        name_rows: what people call the rows of a batch, for messages.
        optimizer: rate, schedule and the number of looks at dev.
        runtime: device and precision.
        checkpoints: where an earlier attempt left its state, and where this one does.
        checkpoint_seconds: how often.
        autocast: compute in bf16 what is fp32, if `runtime` does.
        after_step: called when the weights have changed.

    Raises:
        RunStopped: the loss or its gradient is not finite, or the device's memory is too small.
    """
    AcceleratorState._reset_state()  # or a second training in this process would have to have the first one's precision
    accelerator = Accelerator(
        mixed_precision="bf16" if runtime.bf16 and autocast else "no",
        cpu=runtime.device.type == "cpu",
        # folded weights follow from the adapters: nothing to send at every pass
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    world, rank = accelerator.num_processes, accelerator.process_index
    trained = {name: parameter for name, parameter in logits.named_parameters() if parameter.requires_grad}
    adamw = torch.optim.AdamW(
        trained.values(), lr=optimizer.learning_rate, weight_decay=optimizer.weight_decay, fused=True
    )
    steps = steps_of(epochs, optimizer.accumulate, world)
    if world > 1:
        size = math.ceil(optimizer.accumulate / world) * world
        progress.log_event(stage, "note", f"{world} processes, {size} batches a step")
    rising = max(round(len(steps) * optimizer.warmup), 1)
    falling = max(len(steps) - rising, 1)
    schedule = LambdaLR(adamw, lambda done: min((done + 1) / rising, (len(steps) - done) / falling))
    looks = {round(len(steps) * look / optimizer.evaluations) for look in range(1, optimizer.evaluations + 1)} - {0}
    counter = progress.Counter(stage, sum(len(batches) for _, batches in steps), "batches")
    outcome, best_weights, losses = Outcome(), {}, []
    state = checkpoints.load(stage)
    if state:
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(state["weights"][name])
        adamw.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        outcome, best_weights, losses = Outcome(**state["outcome"]), state["best_weights"], state["losses"]
        _set_random_state(state["random"])
        counter.skip(sum(len(batches) for _, batches in steps[: state["step"]]))
        progress.log_event(stage, "note", f"goes on after step {state['step']} of {len(steps)}")
    done = state["step"] if state else 0

    def describe(batch: np.ndarray, step: int) -> str:
        return (
            f"at step {step}, in a batch of {len(batch)} ({name_rows(batch)}); "
            f"lower {stage}.optimizer.learning_rate (now {optimizer.learning_rate:g}) or look at these rows"
        )

    after_step()
    wrapped = accelerator.prepare_model(logits)
    saved = time.monotonic()
    wrapped.train()
    for step, (epoch, batches) in enumerate(steps[done:], start=done + 1):
        stale = sum(row["step"] > outcome.best_step for row in outcome.curve)
        if optimizer.patience and stale >= optimizer.patience:
            progress.log_event(stage, "note", f"no better for {stale} looks at dev: stopped after step {step - 1}")
            break
        mine = batches[rank::world]
        # DistributedDataParallel takes the mean over processes. One without a batch goes along at no weight, since
        # the others wait for its gradients.
        share = world / len(batches) if mine else 0.0
        mean = 0.0
        for number, batch in enumerate(mine or batches[:1], start=1):
            exchange = number >= len(mine)
            with contextlib.nullcontext() if exchange else accelerator.no_sync(wrapped):
                value = _backward(accelerator, wrapped, loss, batch, share, partial(describe, batch, step))
            mean += value * share / world
            if world == 1:
                counter.add(1, f"loss {value:.4f}")
        if world > 1:
            mean = float(accelerator.reduce(torch.tensor(mean, device=runtime.device), "sum"))
            counter.add(len(batches), f"loss {mean:.4f}")
        losses.append(mean)
        norm = float(accelerator.clip_grad_norm_(list(trained.values()), optimizer.clip))
        if not math.isfinite(norm):
            raise RunStopped(f"{stage}: the gradient became {norm} {describe(batches[0], step)}")
        adamw.step()
        schedule.step()
        adamw.zero_grad()
        after_step()
        if step in looks:
            with accelerator.autocast():
                score = evaluate(logits.model)
            row: dict[str, Any] = {
                "step": step,
                "epoch": epoch,
                "loss": float(np.mean(losses)),
                "dev_ndcg_at_10": score,
            }
            outcome.curve.append(row)
            progress.log_event(
                stage, "note", f"step {step}/{len(steps)}: loss {row['loss']:.4f}, dev nDCG@10 {score:.4f}"
            )
            losses = []
            if score > outcome.best:
                outcome.best, outcome.best_step = score, step
                best_weights = {name: weight.detach().to("cpu", copy=True) for name, weight in trained.items()}
        if rank == 0 and (time.monotonic() - saved >= checkpoint_seconds or step == len(steps)):
            state = {
                "step": step,
                "weights": {name: weight.detach() for name, weight in trained.items()},
                "best_weights": best_weights,
                "optimizer": adamw.state_dict(),
                "schedule": schedule.state_dict(),
                "random": _random_state(),
                "outcome": asdict(outcome),
                "losses": losses,
            }
            checkpoints.save(step, state)
            saved = time.monotonic()
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # the autocast wrapper must not outlive the training
    with torch.no_grad():
        for name, parameter in trained.items():
            if name in best_weights:
                parameter.copy_(best_weights[name])
    after_step()
    return outcome


def _backward(
    accelerator: Accelerator,
    logits: nn.Module,
    loss: Callable[[nn.Module, np.ndarray], Tensor],
    batch: np.ndarray,
    share: float,
    describe: Callable[[], str],
) -> float:
    """Add the gradients of a batch, times `share`, and return its loss."""
    try:
        value = loss(logits, batch)
        current = float(value.detach())
        if not math.isfinite(current):
            raise RunStopped(f"the loss became {current} {describe()}")
        accelerator.backward(value * share)
    except torch.OutOfMemoryError as error:
        used = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        raise RunStopped(
            f"out of memory on {accelerator.device} ({used:.1f} GiB used) in a batch of {len(batch)}: lower "
            "optimizer.batch_tokens and raise optimizer.accumulate by the same factor, which leaves the step as it is; "
            "then text.max_tokens, lora.rank, or lora.fold: false"
        ) from error
    return current


def score_together(model: nn.Module, tokens: Tokens, device: torch.device, budget: int) -> np.ndarray:
    """`score_encoded`, shared out by query over the processes that train together; all get all logits."""
    if not torch.distributed.is_initialized():
        return score_encoded(model, tokens, device, budget)
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    mine = np.flatnonzero(tokens.queries % world == rank)
    logits = torch.zeros(len(tokens), device=device)
    if len(mine):
        logits[torch.from_numpy(mine).to(device)] = torch.from_numpy(
            score_encoded(model, tokens.take(mine), device, budget)
        ).to(device)
    torch.distributed.all_reduce(logits)
    return logits.cpu().numpy()


def _random_state() -> list[Tensor]:
    """State of torch's generators: the CPU's, then each GPU's. Dropout is all that draws while a model trains."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if torch.cuda.is_available() and len(states) == 1 + torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states[1:])
