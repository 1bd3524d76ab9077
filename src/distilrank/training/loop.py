"""The training loop of teacher and student: steps, learning-rate schedule, dev evaluations, checkpoints, best weights.

It runs in one process or in several (torchrun, or a TrainJob). The batches of a step are divided among the processes,
and the step is the same.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

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
    """Learning curve and best dev score of a training."""

    curve: list[dict[str, float]] = field(default_factory=list)
    """One row per evaluation on dev: step, epoch, loss (mean since the previous evaluation), dev_ndcg_at_10."""
    best_score: float = -math.inf
    best_step: int = 0


class Logits(nn.Module):
    """A one-logit classifier as a function of (tokens, rows): the module that is trained and synchronized."""

    def __init__(self, model: nn.Module, device: torch.device, extra: nn.Module | None = None) -> None:
        """
        Args:
            model: one-logit classifier.
            device: the device that it is on.
            extra: trainable parameters of the loss, if it has any.
        """
        super().__init__()
        self.model, self.device, self.extra = model, device, extra

    def forward(self, tokens: Tokens, rows: np.ndarray) -> Tensor:
        """Raw logits of the pairs `rows`, shape (rows,)."""
        return forward(self.model, tokens, rows, self.device)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch. Call it before the model and its new head are created."""
    set_seed(seed)


SETTINGS_AFTER_TRAINING = {"calibration", "lift_over_bm25", "max_ece", "min_deviation", "disagreements", "export"}
"""Settings that apply only once a training has ended: changing one of them does not invalidate its checkpoints."""


def open_checkpoints(
    stage: str, compute: Compute, runtime: Runtime, inputs: dict[str, str], config: BaseModel
) -> Checkpoints:
    """The checkpoints of a training, in a folder of `compute.checkpoint_dir` named by all that decides its course."""
    if not compute.checkpoint_dir:
        return Checkpoints(None)
    key = {
        "inputs": inputs,
        "config": config.model_dump(mode="json", exclude=SETTINGS_AFTER_TRAINING),
        "compute": compute.model_dump(include={"compile", "deterministic"}),
        "runtime": [runtime.device.type, str(runtime.dtype)],  # as resolved: `auto` may differ on another node
        "processes": os.environ.get("WORLD_SIZE", "1"),
        "versions": [artifacts.code_digest(), torch.__version__, transformers.__version__, peft.__version__],
    }
    return Checkpoints(Path(compute.checkpoint_dir) / f"{stage}-{artifacts.digest_json(key)[:16]}")


def batches_per_step(accumulate: int, processes: int) -> int:
    """`accumulate`, rounded up so that every process gets the same number of batches."""
    return math.ceil(accumulate / processes) * processes


def split_into_steps(
    epochs: Sequence[Sequence[np.ndarray]], accumulate: int, processes: int
) -> list[tuple[int, list[np.ndarray]]]:
    """The batches of each step, with the number of its epoch from 1; the last step of an epoch may have fewer."""
    size = batches_per_step(accumulate, processes)
    return [
        (epoch, list(batches[start : start + size]))
        for epoch, batches in enumerate(epochs, start=1)
        for start in range(0, len(batches), size)
    ]


@dataclass(frozen=True)
class FitOptions:
    """Settings of one training."""

    stage: str
    """Name that progress lines begin with."""
    optimizer: Optimizer
    """Learning rate, schedule and number of evaluations."""
    runtime: Runtime
    """Device and precision."""
    checkpoint_seconds: float = 60.0
    """Seconds between two checkpoints; 0: one after every step."""
    autocast: bool = True
    """Compute fp32 weights in bf16 where `runtime` is bf16."""


def _do_nothing() -> None:
    pass


@dataclass(frozen=True)
class FitHooks:
    """What a stage contributes to its training."""

    loss: Callable[[nn.Module, np.ndarray], Tensor]
    """Scalar loss of one batch, given `logits` (wrapped if there are several processes) and the batch."""
    evaluate: Callable[[nn.Module], float]
    """nDCG@10 of the current model on dev."""
    name_rows: Callable[[np.ndarray], str]
    """Readable names of a batch's rows, for error messages."""
    after_step: Callable[[], None] = _do_nothing
    """Called whenever the weights have changed."""


def fit(
    logits: Logits,
    epochs: Sequence[Sequence[np.ndarray]],
    *,
    options: FitOptions,
    hooks: FitHooks,
    checkpoints: Checkpoints,
) -> Outcome:
    """Train `logits` in place and leave in it the weights that scored best on dev.

    Args:
        logits: its parameters that require gradients are trained, in fp32.
        epochs: the batches of each epoch, each an array of unit indices that `hooks.loss` understands.
        options: optimizer, precision, checkpoint interval.
        hooks: the stage's loss and evaluation.
        checkpoints: state of an earlier attempt to resume from, and where to save that of this one.

    Raises:
        RunStopped: the loss or its gradient is not finite, or the device has too little memory.
    """
    training = _Training(logits, epochs, options, hooks, checkpoints)
    training.resume()
    training.run()
    training.restore_best_weights()
    return training.outcome


class _Training:
    """The state of one call of `fit`."""

    def __init__(
        self,
        logits: Logits,
        epochs: Sequence[Sequence[np.ndarray]],
        options: FitOptions,
        hooks: FitHooks,
        checkpoints: Checkpoints,
    ) -> None:
        self.logits, self.options, self.hooks, self.checkpoints = logits, options, hooks, checkpoints
        self.stage, settings, runtime = options.stage, options.optimizer, options.runtime
        AcceleratorState._reset_state()  # otherwise a second training in this process keeps the first one's precision
        self.accelerator = Accelerator(
            mixed_precision="bf16" if runtime.bf16 and options.autocast else "no",
            cpu=runtime.device.type == "cpu",
            # folded weights follow from the adapters: there is nothing to send at every pass
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.steps = split_into_steps(epochs, settings.accumulate, self.world)
        if self.world > 1:
            size = batches_per_step(settings.accumulate, self.world)
            progress.log_event(self.stage, "note", f"{self.world} processes, {size} batches a step")
        self.trained = {name: parameter for name, parameter in logits.named_parameters() if parameter.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        steps = len(self.steps)
        warmup_steps = max(round(steps * settings.warmup), 1)
        decay_steps = max(steps - warmup_steps, 1)
        self.schedule = LambdaLR(
            self.optimizer, lambda step: min((step + 1) / warmup_steps, (steps - step) / decay_steps)
        )
        evaluations = range(1, settings.evaluations + 1)
        self.evaluation_steps = {round(steps * number / settings.evaluations) for number in evaluations} - {0}
        self.counter = progress.Counter(self.stage, sum(len(batches) for _, batches in self.steps), "batches")
        self.finished_steps = 0
        self.outcome = Outcome()
        self.best_weights: dict[str, Tensor] = {}
        self.recent_losses: list[float] = []
        """Loss of each step since the last evaluation."""

    def resume(self) -> None:
        """Continue from the newest checkpoint of an earlier attempt, if there is one."""
        state = self.checkpoints.load(self.stage)
        if not state:
            return
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.outcome = Outcome(**state["outcome"])
        self.best_weights, self.recent_losses = state["best_weights"], state["recent_losses"]
        _set_random_state(state["random"])
        self.finished_steps = state["step"]
        self.counter.skip(sum(len(batches) for _, batches in self.steps[: self.finished_steps]))
        progress.log_event(self.stage, "note", f"resumes after step {self.finished_steps} of {len(self.steps)}")

    def run(self) -> None:
        """Take the remaining steps, with their evaluations and checkpoints."""
        self.hooks.after_step()
        wrapped = self.accelerator.prepare_model(self.logits)
        saved_at = time.monotonic()
        wrapped.train()
        for step, (epoch, batches) in enumerate(self.steps[self.finished_steps :], start=self.finished_steps + 1):
            if self._is_out_of_patience(step):
                break
            self._take_step(wrapped, step, batches)
            if step in self.evaluation_steps:
                self._evaluate(step, epoch)
            is_due = time.monotonic() - saved_at >= self.options.checkpoint_seconds or step == len(self.steps)
            if self.rank == 0 and is_due:
                self._save(step)
                saved_at = time.monotonic()
        # the autocast wrapper must not outlive the training
        self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)

    def restore_best_weights(self) -> None:
        """Put the weights of the best evaluation into the model."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                if name in self.best_weights:
                    parameter.copy_(self.best_weights[name])
        self.hooks.after_step()

    def _is_out_of_patience(self, step: int) -> bool:
        patience = self.options.optimizer.patience
        stale = sum(row["step"] > self.outcome.best_step for row in self.outcome.curve)
        if not patience or stale < patience:
            return False
        message = f"no better for {stale} evaluations on dev: stopped after step {step - 1}"
        progress.log_event(self.stage, "note", message)
        return True

    def _take_step(self, wrapped: nn.Module, step: int, batches: list[np.ndarray]) -> None:
        """One step of the optimizer, on the gradients of `batches` in all processes."""
        mine = batches[self.rank :: self.world]
        # DistributedDataParallel averages over processes. A process without a batch takes part with weight 0, since
        # the others wait for its gradients.
        share = self.world / len(batches) if mine else 0.0
        mean_loss = 0.0
        for number, batch in enumerate(mine or batches[:1], start=1):
            is_last = number >= len(mine)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(wrapped):
                loss = self._backward(wrapped, batch, share, step)
            mean_loss += loss * share / self.world
            if self.world == 1:
                self.counter.add(1, f"loss {loss:.4f}")
        if self.world > 1:
            total = torch.tensor(mean_loss, device=self.options.runtime.device)
            mean_loss = float(self.accelerator.reduce(total, "sum"))
            self.counter.add(len(batches), f"loss {mean_loss:.4f}")
        self.recent_losses.append(mean_loss)
        norm = float(self.accelerator.clip_grad_norm_(list(self.trained.values()), self.options.optimizer.clip))
        if not math.isfinite(norm):
            raise RunStopped(f"{self.stage}: the gradient became {norm} {self._describe(batches[0], step)}")
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.hooks.after_step()

    def _backward(self, wrapped: nn.Module, batch: np.ndarray, share: float, step: int) -> float:
        """Add the gradients of a batch, times `share`, and return its loss."""
        try:
            loss = self.hooks.loss(wrapped, batch)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise RunStopped(f"{self.stage}: the loss became {value} {self._describe(batch, step)}")
            self.accelerator.backward(loss * share)
        except torch.OutOfMemoryError as error:
            used = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
            more = ", teacher.lora.rank, or set teacher.lora.fold to false" if self.stage == "teacher" else ""
            raise RunStopped(
                f"{self.stage}: out of memory on {self.accelerator.device} ({used:.1f} GiB used) in a batch of "
                f"{len(batch)}; lower {self.stage}.optimizer.batch_tokens and raise {self.stage}.optimizer.accumulate "
                f"by the same factor, which leaves the step unchanged; then lower {self.stage}.text.max_tokens{more}"
            ) from error
        return value

    def _describe(self, batch: np.ndarray, step: int) -> str:
        return (
            f"at step {step}, in a batch of {len(batch)} ({self.hooks.name_rows(batch)}); lower "
            f"{self.stage}.optimizer.learning_rate (now {self.options.optimizer.learning_rate:g}) or inspect these rows"
        )

    def _evaluate(self, step: int, epoch: int) -> None:
        """Add a row to the curve, and keep the weights if they are the best so far."""
        with self.accelerator.autocast():
            score = self.hooks.evaluate(self.logits.model)
        loss = float(np.mean(self.recent_losses))
        self.outcome.curve.append({"step": step, "epoch": epoch, "loss": loss, "dev_ndcg_at_10": score})
        message = f"step {step}/{len(self.steps)}: loss {loss:.4f}, dev nDCG@10 {score:.4f}"
        progress.log_event(self.stage, "note", message)
        self.recent_losses = []
        if score > self.outcome.best_score:
            self.outcome.best_score, self.outcome.best_step = score, step
            self.best_weights = {name: weight.detach().to("cpu", copy=True) for name, weight in self.trained.items()}

    def _save(self, step: int) -> None:
        state = {
            "step": step,
            "weights": {name: weight.detach() for name, weight in self.trained.items()},
            "best_weights": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": _random_state(),
            "outcome": asdict(self.outcome),
            "recent_losses": self.recent_losses,
        }
        self.checkpoints.save(step, state)


def score_across_processes(model: nn.Module, tokens: Tokens, device: torch.device, budget: int) -> np.ndarray:
    """`score_encoded`, divided by query among the processes that train together; each of them gets all logits."""
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
    """State of torch's generators: the CPU's, then each GPU's. Only dropout draws numbers while a model trains."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if torch.cuda.is_available() and len(states) == 1 + torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states[1:])
