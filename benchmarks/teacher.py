"""Training and scoring of the teacher, compared with a straightforward loop in the same process on the same rows.

`python -m benchmarks.teacher [--quick] [--rounds N]`; see README.md. The baseline is transformers and peft as
documented: LoRA of rank 16 on all linear layers, adapters unmerged, batches of 32 in input order, padded to the
longest, under bf16 autocast. The two alternate, so that load on the machine slows both.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForSequenceClassification

from benchmarks import machine
from benchmarks.result import bar, report, say
from distilrank.config import Compute, Config, DemoShop, HomeDepot, Optimizer, Teacher, TeacherText
from distilrank.core import schemas
from distilrank.data import prepare
from distilrank.data.window import LogWindow
from distilrank.modeling import (
    adapters,
    batching,
    compilation,
    encoding,
    packing,
    references,
    scorer,
    torch_backend,
)
from distilrank.modeling.runtime import Runtime, setup_runtime
from distilrank.training import loop, losses
from distilrank.training.checkpoints import Checkpoints

ROOT = Path(__file__).resolve().parents[1]
BATCH, RATE, SEED = 32, 5e-4, 17
TEXT = TeacherText(fields=("title",))
EXACT_PAIRS = 48
PEAK_SIZE = 2048  # of the square matrices whose product is taken for the machine's peak


@dataclass(frozen=True)
class Scale:
    """Pairs of one turn, and turns."""

    trained: int = 192
    scored: int = 384
    rounds: int = 3


QUICK = Scale(32, 48, 1)


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the best of some large matrix products."""
    size = PEAK_SIZE if device.type == "cpu" else 4 * PEAK_SIZE
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(8):
        seconds = _timed(lambda: left @ right, device)
        best = max(best, 2 * size**3 / seconds)
    return best


def _timed(function: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


# Rows -------------------------------------------------------------------------------------------------------------


def rows(folder: Path) -> tuple[pa.Table, pa.Table]:
    """Judged pairs to train on, in random order, and candidates to score as a shard has them: whole queries."""
    path = ROOT.parent / "shared/data/home-depot/train.csv.gz"
    if path.exists():
        data: Any = HomeDepot(source="home_depot", path=str(path))
    else:
        say(f"{path} is not there: rows of the demo shop")
        data = DemoShop(source="demo_shop")
    config = Config(data=data)
    folders = {name: folder / name for name in ("judgements", "candidates", "traffic", "profile")}
    settings = config.prepare.model_copy(update={"judged_pairs": 3000, "log_queries": 400, "shards": 1})
    prepare.prepare(settings, config.data, LogWindow(), **folders)
    judged = schemas.read(folders["judgements"] / "train.parquet", schemas.JUDGED)
    judged = judged.take(np.random.default_rng(SEED).permutation(judged.num_rows))
    return judged, schemas.read(folders["candidates"] / "shard-00000.parquet", schemas.CANDIDATES)


# The straightforward loop -----------------------------------------------------------------------------------------


class Plain:
    """transformers and peft, as their documentation has them."""

    def __init__(self, folder: Path, pad: int, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(SEED)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=dtype, trust_remote_code=False
        )
        model.config.pad_token_id, model.config.use_cache = pad, False
        config = LoraConfig(task_type=TaskType.SEQ_CLS, r=16, lora_alpha=32, target_modules="all-linear")
        self.model = get_peft_model(model, config).to(device)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE)
        self.pad, self.device, self.mixed = pad, device, dtype == torch.bfloat16

    def logits(self, tokens: encoding.Tokens, rows_at: np.ndarray) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            return self.model(**torch_backend.collate(tokens, rows_at, self.pad, self.device)).logits[:, 0].float()

    def train(self, tokens: encoding.Tokens, target: torch.Tensor, rows_at: np.ndarray) -> None:
        self.model.train()
        for start in range(0, len(rows_at), BATCH):
            batch = rows_at[start : start + BATCH]
            binary_cross_entropy_with_logits(self.logits(tokens, batch), target[batch]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def score(self, tokens: encoding.Tokens, rows_at: np.ndarray) -> np.ndarray:
        self.model.eval()
        with torch.inference_mode():
            parts = [self.logits(tokens, rows_at[start : start + BATCH]) for start in range(0, len(rows_at), BATCH)]
        return torch.cat(parts).cpu().numpy()


# Ours -------------------------------------------------------------------------------------------------------------


class Ours:
    """What the teacher stage and the label stage do."""

    def __init__(self, folder: Path, pad: int, runtime: Runtime, whole_queries: bool) -> None:
        torch.manual_seed(SEED)
        base = torch_backend.load_model(folder, runtime)
        base.config.pad_token_id = pad
        self.adapted = adapters.Adapted(base, Teacher().lora)
        self.runtime, self.whole_queries = runtime, whole_queries
        self.model: torch.nn.Module = self.adapted.model

    def train(self, tokens: encoding.Tokens, target: torch.Tensor, rows_at: np.ndarray) -> None:
        selected = tokens.take(rows_at)
        groups = selected.queries if self.whole_queries else None
        optimizer = Optimizer(evaluations=1, learning_rate=RATE)
        batches = batching.random_batches(selected.lengths, optimizer.batch_tokens, np.random.default_rng(SEED), groups)
        goal = target[rows_at]
        loop.fit(
            loop.Logits(self.adapted.model, self.runtime.device),
            [batches],
            options=loop.FitOptions("teacher", optimizer, self.runtime, autocast=not self.adapted.folds),
            hooks=loop.FitHooks(
                loss=lambda current, rows: losses.soft_cross_entropy(current(selected, rows), goal[rows]),
                evaluate=lambda current: 0.0,
                name_rows=str,
                after_step=self.adapted.fold,
            ),
            checkpoints=Checkpoints(None),
        )

    def take_over(self, plain: Plain) -> None:
        """The adapters and the head of the other one, merged: the two shall give the same probabilities."""
        theirs = {name: weight for name, weight in plain.model.named_parameters() if weight.requires_grad}
        with torch.no_grad():
            for name, weight in self.adapted.trained().items():
                weight.copy_(theirs[name.replace(".layer.", ".")])
        self.adapted.fold()
        self.model = self.adapted.merged(None)

    def score(self, tokens: encoding.Tokens, rows_at: np.ndarray) -> np.ndarray:
        selected = tokens.take(rows_at)
        return torch_backend.score_encoded(self.model, selected, self.runtime.device, Teacher().score_tokens)


# Measuring --------------------------------------------------------------------------------------------------------


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def _distinct(tokens: encoding.Tokens, rows_at: np.ndarray) -> int:
    """Tokens that our forward pass computes."""
    selected = tokens.take(rows_at)
    order = np.argsort(selected.queries, kind="stable")
    batches = batching.sequential_batches(order, selected.lengths, Teacher().score_tokens)
    return sum(packing.pack_decoder_batch(selected, batch).ids.numel() for batch in batches)


def _alternate(
    contenders: dict[str, Callable[[np.ndarray], Any]], turns: list[np.ndarray], device: torch.device, name: str
) -> dict[str, list[float]]:
    """Seconds of each contender for each turn's rows."""
    seconds: dict[str, list[float]] = {contender: [] for contender in contenders}
    for number, rows_at in enumerate(turns, start=1):
        for contender, function in contenders.items():
            seconds[contender].append(_timed(lambda function=function, rows=rows_at: function(rows), device))
        speeds = ", ".join(
            f"{contender} {len(rows_at) / durations[-1]:.1f} pairs/s" for contender, durations in seconds.items()
        )
        say(f"{name} {number}/{len(turns)}: {speeds}")
    return seconds


def run(scale: Scale, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All figures and bars."""
    runtime = setup_runtime(Compute())
    device, base = runtime.device, references.resolve(Teacher().model)
    judged, candidates = rows(folder)
    encoder = scorer.load_encoder(base, TEXT)
    pad = encoder.pad_token_id
    to_train, to_score = (encoding.encode_table(encoder, table, TEXT) for table in (judged, candidates))
    target = torch.from_numpy(judged.column("target").to_numpy().copy()).to(device)
    peak = max(matmul_peak(runtime.dtype, device) for _ in range(3))
    say(f"{runtime.describe()}; matrix products {peak / 1e12:.3f} TFLOP/s")

    plain = Plain(base, pad, device, runtime.dtype)
    pairs, queries, fused = (Ours(base, pad, runtime, whole) for whole in (False, True, True))
    size = compilation.weights(pairs.adapted.model)
    turns = [np.arange(scale.trained) + number * scale.trained for number in range(scale.rounds + 1)]
    held_out = np.arange(len(to_train) - 128, len(to_train))

    def error(item: Plain | Ours) -> float:
        logits = torch.from_numpy(item.score(to_train, held_out)).to(device)
        return float(losses.soft_cross_entropy(logits, target[held_out]))

    before = {"plain": error(plain), "ours": error(pairs)}
    say("compiling, and warming up")
    compiled = Compute(compile="on")
    seconds = {"compile_training": -time.perf_counter()}
    compilation.compile_layers("benchmark", fused.adapted.model, compiled, runtime, 0.0)
    fused.train(to_train, target, turns[-1])
    seconds["compile_training"] += time.perf_counter()
    for item in (plain, pairs, queries):
        item.train(to_train, target, turns[-1][:BATCH])
    trained = _alternate(
        {
            "plain": lambda rows_at: plain.train(to_train, target, rows_at),
            "ours": lambda rows_at: pairs.train(to_train, target, rows_at),
            "ours, whole queries": lambda rows_at: queries.train(to_train, target, rows_at),
            "ours, whole queries, compiled": lambda rows_at: fused.train(to_train, target, rows_at),
        },
        turns[:-1],
        device,
        "training",
    )
    after = {"plain": error(plain), "ours": error(pairs), "ours, whole queries": error(queries)}
    tokens = sum(int(to_train.lengths[rows_at].sum()) for rows_at in turns[:-1])
    count = scale.trained * scale.rounds
    figures: dict[str, Any] = {
        "runtime": runtime.describe(),
        "weights": size,
        "peak_tflops": round(peak / 1e12, 3),
        "training": {
            name: {
                "pairs_per_second": round(count / sum(durations), 2),
                "times_plain": round(sum(trained["plain"]) / sum(durations), 2),
                "by_turn": [round(theirs / ours, 2) for theirs, ours in zip(trained["plain"], durations, strict=True)],
                "utilization": round(4 * size * tokens / sum(durations) / peak, 3),
            }
            for name, durations in trained.items()
        },
        "held_out_loss": {"before": before, "after": after},
    }

    ours, ours_fused = (Ours(base, pad, runtime, False) for _ in range(2))
    for item in (ours, ours_fused):
        item.take_over(plain)
    turns = [np.arange(scale.scored) + number * scale.scored for number in range(scale.rounds + 1)]
    seconds["compile_scoring"] = -time.perf_counter()
    compilation.compile_layers("benchmark", ours_fused.model, compiled, runtime, 0.0)
    ours_fused.score(to_score, turns[-1])
    seconds["compile_scoring"] += time.perf_counter()
    logits_by_name: dict[str, list[np.ndarray]] = {}

    def scoring(name: str, item: Plain | Ours) -> Callable[[np.ndarray], None]:
        return lambda rows_at: logits_by_name.setdefault(name, []).append(item.score(to_score, rows_at))

    for item in (plain, ours):
        item.score(to_score, turns[-1][:BATCH])
    contenders = {"plain": plain, "ours": ours, "ours, compiled": ours_fused}
    scored = _alternate({name: scoring(name, item) for name, item in contenders.items()}, turns[:-1], device, "scoring")
    tokens = sum(int(to_score.lengths[rows_at].sum()) for rows_at in turns[:-1])
    distinct = sum(_distinct(to_score, rows_at) for rows_at in turns[:-1])
    probabilities = {name: _sigmoid(np.concatenate(logits)) for name, logits in logits_by_name.items()}
    differences = {name: np.abs(values - probabilities["plain"]) for name, values in probabilities.items()}
    count = scale.scored * scale.rounds
    figures["scoring"] = {
        name: {
            "pairs_per_second": round(count / sum(durations), 2),
            "times_plain": round(sum(scored["plain"]) / sum(durations), 2),
            "by_turn": [
                round(theirs / selected, 2) for theirs, selected in zip(scored["plain"], durations, strict=True)
            ],
            "utilization": round(2 * size * tokens / sum(durations) / peak, 3),
            "largest_difference": float(differences[name].max()),
            "mean_difference": float(differences[name].mean()),
        }
        for name, durations in scored.items()
    }
    figures["tokens_per_pair"] = {"all": round(tokens / count, 1), "computed": round(distinct / count, 1)}
    figures["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    exact, figures["fp32_difference"] = _in_fp32(base, pad, plain, to_score, device)
    figures["bf16_from_fp32"] = {
        name: float(np.abs(values[: len(exact)] - exact).mean()) for name, values in probabilities.items()
    }
    say(f"fp32: largest difference {figures['fp32_difference']:.1e}; of bf16 from it: {figures['bf16_from_fp32']}")
    return figures, _bars(figures)


def _in_fp32(
    base: Path, pad: int, trained: Plain, tokens: encoding.Tokens, device: torch.device
) -> tuple[np.ndarray, float]:
    """Probabilities of the first pairs in fp32, with the adapters of `trained`, and by how much ours differ at most."""
    runtime = Runtime(device, torch.float32, "fp32")
    plain, ours = Plain(base, pad, device, torch.float32), Ours(base, pad, runtime, False)
    plain.model.load_state_dict({name: value.float() for name, value in trained.model.state_dict().items()})
    ours.take_over(plain)
    exact, logits_by_name = (_sigmoid(item.score(tokens, np.arange(EXACT_PAIRS))) for item in (plain, ours))
    return exact, float(np.abs(exact - logits_by_name).max())


def _bars(figures: dict[str, Any]) -> list[dict[str, Any]]:
    train, score = figures["training"], figures["scoring"]
    best = max(train.values(), key=lambda item: item["times_plain"])
    loss = figures["held_out_loss"]["before"]
    apart = abs(loss["plain"] - loss["ours"])
    values = [
        ("training_times_plain", best["times_plain"], 2.5, True),
        ("training_without_compilation_times_plain", train["ours, whole queries"]["times_plain"], 2.5, True),
        ("scoring_times_plain", score["ours"]["times_plain"], 3.0, True),
        ("scoring_compiled_times_plain", score["ours, compiled"]["times_plain"], 3.5, True),
        ("training_utilization", best["utilization"], 0.30, True),
        ("scoring_utilization", max(item["utilization"] for item in score.values()), 0.45, True),
        ("loss_difference", apart, 1e-2, False),
        ("probability_difference_bf16", score["ours"]["largest_difference"], 1e-2, False),
        ("probability_difference_fp32", figures["fp32_difference"], 1e-4, False),
    ]
    return [
        bar(name, value, bound, value >= bound if least else value <= bound) for name, value, bound, least in values
    ]


def main() -> int:
    """Print progress on standard error and one JSON line on standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.teacher", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: figures without meaning")
    parser.add_argument("--rounds", type=int, help=f"turns of each contender (default {Scale().rounds})")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale(rounds=options.rounds or Scale().rounds)
    described = machine.describe(("torch", "transformers", "peft", "accelerate"))
    with tempfile.TemporaryDirectory(prefix="benchmark-teacher-") as folder, machine.output_to_stderr():
        figures, bars = run(scale, Path(folder))
    figures |= {"quick": options.quick}
    report("teacher", described, figures, bars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
