"""Training and scoring of the student, compared with sentence-transformers in the same process on the same rows.

`python -m benchmarks.student [--quick] [--rounds N]`; see README.md. The baseline is sentence-transformers as
documented: CrossEncoderTrainer with MarginMSELoss, eight products of a query per row, eight rows per batch, bf16 if
available; and CrossEncoder.predict with its defaults. Both learn the same margins at the same learning rate, with
as many tokens per step. The two alternate, so that load on the machine slows both.
"""

from __future__ import annotations

import argparse
import itertools
import logging
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
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import MarginMSELoss

from benchmarks import machine
from benchmarks.result import bar, report, say
from distilrank.config import Compute, Config, DemoShop, HomeDepot, StudentOptimizer, Text
from distilrank.config import Student as Settings
from distilrank.core import schemas
from distilrank.data import prepare
from distilrank.data.window import LogWindow
from distilrank.evaluation import metrics
from distilrank.modeling import encoding, packing, references, torch_backend
from distilrank.modeling.cache import Cache
from distilrank.modeling.onnx_backend import FILES
from distilrank.modeling.runtime import Runtime, setup_runtime
from distilrank.modeling.scorer import Scorer, calibrate, describe, load_encoder
from distilrank.student import export
from distilrank.student.dataset import Chunk, ListwiseDataset
from distilrank.training import loop, losses
from distilrank.training.checkpoints import Checkpoints

ROOT = Path(__file__).resolve().parents[1]
PRODUCTS, ROWS, RATE, SEED = 8, 8, 1e-4, 17  # products of a row, rows of a peer's batch
TEXT = Text(fields=("title", "product_type", "brand", "color", "gender"))
LIST = 50  # products of a query whose latency is taken


@dataclass(frozen=True)
class Scale:
    """Queries of data (0: all), rows and pairs of one turn, lists whose latency is taken, dev pairs, and turns."""

    queries: int = 0
    rows: int = 192
    scored: int = 1500
    lists: int = 60
    dev: int = 4000
    rounds: int = 3


QUICK = Scale(queries=300, rows=16, scored=64, lists=3, dev=200, rounds=1)


def _timed(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


# Rows -------------------------------------------------------------------------------------------------------------


def rows(folder: Path, queries: int) -> tuple[pa.Table, pa.Table]:
    """Judged pairs of train, eight products of each query that has as many, in random order of queries; and of dev."""
    path = ROOT.parent / "shared/data/home-depot/train.csv.gz"
    if path.exists():
        data: Any = HomeDepot(source="home_depot", path=str(path), queries=queries)
    else:
        say(f"{path} is not there: rows of the demo shop")
        data = DemoShop(source="demo_shop")
    config = Config(data=data)
    folders = {name: folder / name for name in ("judgements", "candidates", "traffic", "profile")}
    settings = config.prepare.model_copy(update={"log_queries": 20, "shards": 1})
    prepare.prepare(settings, config.data, LogWindow(), **folders)
    train, dev = (schemas.read(folders["judgements"] / f"{name}.parquet", schemas.JUDGED) for name in ("train", "dev"))
    places: dict[str, list[int]] = {}
    for row, query in enumerate(train.column("query_id").to_pylist()):
        places.setdefault(query, []).append(row)
    lists = [seconds_of_turn[:PRODUCTS] for seconds_of_turn in places.values() if len(seconds_of_turn) >= PRODUCTS]
    order = np.random.default_rng(SEED).permutation(len(lists))
    return train.take(list(itertools.chain.from_iterable(lists[seconds_of_turn] for seconds_of_turn in order))), dev


def _ndcg(dev: pa.Table, scores: np.ndarray) -> float:
    return metrics.mean_ndcg(*(dev.column(name).to_pylist() for name in ("query_id", "product_id", "gain")), scores)


# Training ---------------------------------------------------------------------------------------------------------


class Peer:
    """sentence-transformers, as its documentation has it."""

    def __init__(self, base: Path, folder: Path, bf16: bool, rendered: Callable[[pa.Table], list[str]]) -> None:
        torch.manual_seed(SEED)
        self.model = CrossEncoder(
            str(base), num_labels=1, max_length=TEXT.max_tokens, device="cpu", trust_remote_code=False
        )
        self.folder, self.bf16, self.rendered = folder, bf16, rendered

    def train(self, table: pa.Table) -> None:
        products, queries = self.rendered(table), table.column("query").to_pylist()
        labels = table.column("target").to_numpy().reshape(-1, PRODUCTS)
        names = ["query", "positive", *(f"negative_{number}" for number in range(1, PRODUCTS))]
        columns = dict(
            zip(
                names, [queries[::PRODUCTS], *(products[offsets::PRODUCTS] for offsets in range(PRODUCTS))], strict=True
            )
        )
        arguments = CrossEncoderTrainingArguments(
            output_dir=str(self.folder),
            num_train_epochs=1,
            per_device_train_batch_size=ROWS,
            learning_rate=RATE,
            warmup_steps=StudentOptimizer().warmup,
            weight_decay=StudentOptimizer().weight_decay,
            bf16=self.bf16,
            use_cpu=True,
            seed=SEED,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        data = Dataset.from_dict(columns | {"label": (labels[:, :1] - labels[:, 1:]).tolist()})
        loss = MarginMSELoss(self.model)
        CrossEncoderTrainer(model=self.model, args=arguments, train_dataset=data, loss=loss).train()

    def score(self, table: pa.Table) -> np.ndarray:
        return self.model.predict(
            list(zip(table.column("query").to_pylist(), self.rendered(table), strict=True)), show_progress_bar=False
        )


class Ours:
    """What the student stage does, with the margin loss alone."""

    def __init__(self, base: Path, folder: Path, runtime: Runtime) -> None:
        torch.manual_seed(SEED)
        self.model = torch_backend.load_model(base, runtime, torch.float32)
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = Settings().dropout
        self.encoder, self.folder, self.runtime = load_encoder(base, TEXT, "encoder"), folder, runtime

    def train(self, table: pa.Table, seconds: float = 0.0, per_step: float = 0.0) -> int:
        """Train on the lists of `table`, once, or for so many `seconds` of `per_step` each; return the steps."""
        tokens = encoding.encode_table(self.encoder, table, TEXT)
        target = table.column("target").to_numpy()
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            ones = np.ones(len(target), np.float32)
            lists = ListwiseDataset([Chunk.from_table(table, tokens, target, ones, judged=False)], Path(scratch))
            labels, query = torch.from_numpy(lists.targets), torch.from_numpy(lists.tokens.queries)
            budget = round(float(tokens.lengths.mean()) * ROWS * PRODUCTS)  # as many tokens as a batch of the peer
            rng, packed = np.random.default_rng(SEED), packing.is_packed(self.model)
            epoch = lists.batches(budget, 0.0, packed, rng)
            epochs, steps = [epoch], len(epoch)
            if seconds:
                steps = max(int(0.9 * seconds / per_step), 1)  # with time to spare: a busy machine must not help us
                while sum(map(len, epochs)) < steps:
                    epochs.append(lists.batches(budget, 0.0, packed, rng))
                epochs[-1] = epochs[-1][: len(epochs[-1]) - (sum(map(len, epochs)) - steps)]

            def loss(current: torch.nn.Module, batch: np.ndarray) -> torch.Tensor:
                offsets = lists.rows(np.sort(batch))
                return losses.margin_loss(current(lists.tokens, offsets), labels[offsets], query[offsets])

            loop.fit(
                loop.Logits(self.model, self.runtime.device),
                epochs,
                options=loop.FitOptions(
                    "student",
                    StudentOptimizer(epochs=len(epochs), evaluations=1, learning_rate=RATE, seed=SEED),
                    self.runtime,
                ),
                hooks=loop.FitHooks(loss=loss, evaluate=lambda current: 0.0, name_rows=str),
                checkpoints=Checkpoints(None),
            )
        return steps

    def score(self, table: pa.Table) -> np.ndarray:
        tokens = encoding.encode_table(self.encoder, table, TEXT)
        return torch_backend.score_encoded(self.model, tokens, self.runtime.device, Settings().score_tokens)

    def save(self, folder: Path, dev: pa.Table) -> None:
        """Write the student as its stage does, with all its files for onnxruntime."""
        self.model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
        self.model.save_pretrained(folder)
        torch_backend.save_tokenizer(self.encoder, folder)
        budget = Settings().score_tokens
        describe(folder, role="student", encoder=self.encoder, text=TEXT, tokens=budget, base=Settings().model)
        calibrate(folder, dev, "platt", Compute())
        export.export(folder, dev, max_ndcg_loss=1.0)  # what it loses is measured here


def measure_training(
    scale: Scale, base: Path, folder: Path, train: pa.Table, dev: pa.Table
) -> tuple[dict[str, Any], Ours]:
    """Pairs a second of both on the same rows; then nDCG@10 on dev when both have had the same time."""
    runtime = setup_runtime(Compute(device="cpu"))
    encoder = load_encoder(base, TEXT, "encoder")

    def rendered(table: pa.Table) -> list[str]:
        return encoder.render(encoding.columns(table, TEXT))

    size = scale.rows * PRODUCTS
    turns = [
        train.slice((number * size) % max(train.num_rows - size, 1) // PRODUCTS * PRODUCTS, size)
        for number in range(scale.rounds)
    ]
    peer, ours = Peer(base, folder, runtime.bf16, rendered), Ours(base, folder, runtime)
    for seconds_of_turn in (peer, ours):
        seconds_of_turn.train(train.slice(0, ROWS * PRODUCTS))
    seconds: dict[str, list[float]] = {"peer": [], "ours": []}
    steps = 0
    for number, turn in enumerate(turns, start=1):
        seconds["peer"].append(_timed(lambda turn=turn: peer.train(turn)))
        began = time.perf_counter()
        steps += ours.train(turn)
        seconds["ours"].append(time.perf_counter() - began)
        speeds = ", ".join(f"{name} {turn.num_rows / durations[-1]:.1f} pairs/s" for name, durations in seconds.items())
        say(f"training {number}/{len(turns)}: {speeds}")
    pairs = sum(turn.num_rows for turn in turns)
    margins = {"peer": pairs // PRODUCTS * (PRODUCTS - 1), "ours": pairs // PRODUCTS * PRODUCTS * (PRODUCTS - 1) // 2}
    figures: dict[str, Any] = {
        "runtime": runtime.describe(),
        "pairs": pairs,
        "tokens_per_pair": round(float(encoding.encode_table(encoder, turns[0], TEXT).lengths.mean()), 1),
        **{
            name: {
                "pairs_per_second": round(pairs / sum(durations), 2),
                "margins_per_second": round(margins[name] / sum(durations), 2),
                "by_turn": [
                    round(turn.num_rows / seconds_of_turn, 2)
                    for turn, seconds_of_turn in zip(turns, durations, strict=True)
                ],
            }
            for name, durations in seconds.items()
        },
    }
    figures["times_peer"] = round(sum(seconds["peer"]) / sum(seconds["ours"]), 2)
    per_step = sum(seconds["ours"]) / steps

    say("both from the start, for the same time")
    whole = train.slice(0, size * scale.rounds)
    peer, ours = Peer(base, folder, runtime.bf16, rendered), Ours(base, folder, runtime)
    taken_by_peer = _timed(lambda: peer.train(whole))
    taken_by_ours = _timed(lambda: ours.train(whole, taken_by_peer, per_step))
    reached = {"peer": _ndcg(dev, peer.score(dev)), "ours": _ndcg(dev, ours.score(dev))}
    figures["same_time"] = {
        "seconds": {"peer": round(taken_by_peer, 1), "ours": round(taken_by_ours, 1)},
        "dev_ndcg_at_10": reached,
        "bm25": _ndcg(dev, dev.column("bm25").to_numpy()),
        "dev_pairs": dev.num_rows,
    }
    say(f"after {taken_by_peer:.0f} s: dev nDCG@10 {reached['ours']:.4f}, peer {reached['peer']:.4f}")
    return figures, ours


# Scoring ----------------------------------------------------------------------------------------------------------


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{share}": round(1000 * float(np.percentile(seconds, share)), 2) for share in (50, 95, 99)}


def measure_scoring(scale: Scale, student: Path, train: pa.Table, dev: pa.Table) -> dict[str, Any]:
    """Pairs a second and nDCG@10 of each backend beside the peer's, and the latency of one query's products."""
    peer = CrossEncoder(str(student), device="cpu", trust_remote_code=False)
    backends = [name for name, file in FILES.items() if (student / file).exists()]
    scorers = {name: Scorer.load(student, Compute(device="cpu"), backend=name) for name in ("torch", *backends)}
    any_scorer = scorers["torch"]

    def pairs(table: pa.Table) -> list[tuple[str, str]]:
        return list(zip(table.column("query").to_pylist(), any_scorer.render(table), strict=True))

    def by_peer(table: pa.Table) -> np.ndarray:
        return peer.predict(pairs(table), show_progress_bar=False)

    contenders: dict[str, Callable[[pa.Table], np.ndarray]] = {
        "peer": by_peer,
        **{name: seconds_of_turn.score for name, seconds_of_turn in scorers.items()},
    }
    turns = [train.slice(number * scale.scored % train.num_rows, scale.scored) for number in range(scale.rounds)]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for score in contenders.values():
        score(turns[0].slice(0, 64))
    for number, turn in enumerate(turns, start=1):
        for name, score in contenders.items():
            seconds[name].append(_timed(lambda score=score, turn=turn: score(turn)))
        speeds = ", ".join(f"{name} {turn.num_rows / durations[-1]:.0f} pairs/s" for name, durations in seconds.items())
        say(f"scoring {number}/{len(turns)}: {speeds}")
    count = sum(turn.num_rows for turn in turns)
    scores_by_name = {name: score(dev) for name, score in contenders.items()}
    figures: dict[str, Any] = {
        name: {
            "pairs_per_second": round(count / sum(durations), 1),
            "times_peer": round(sum(seconds["peer"]) / sum(durations), 2),
            "dev_ndcg_at_10": _ndcg(dev, scores_by_name[name]),
            "largest_difference": float(np.abs(scores_by_name[name] - scores_by_name["peer"]).max()),
        }
        for name, durations in seconds.items()
    }
    best = max(scorers, key=lambda name: figures[name]["times_peer"])
    figures["best"] = best
    figures["latency_ms"] = _latency(scale, scorers[best], by_peer, train)
    return figures


def _latency(
    scale: Scale, scorer: Scorer, by_peer: Callable[[pa.Table], np.ndarray], train: pa.Table
) -> dict[str, dict[str, float]]:
    """Milliseconds from a query and fifty products to their scores; cold: no product was seen before."""
    rng = np.random.default_rng(SEED)
    seconds: dict[str, list[float]] = {"peer": [], "ours, cold": [], "ours, warm": []}
    names = [name for name in schemas.PRODUCT_FIELDS if name in TEXT.fields]
    for _ in range(scale.lists + 1):
        sample = train.take(rng.choice(train.num_rows, min(LIST, train.num_rows), replace=False))
        query = sample.column("query")[0].as_py()
        asked = sample.set_column(sample.column_names.index("query"), "query", pa.array([query] * sample.num_rows))
        products = [sample.select(names).to_pylist()]
        scorer.products = Cache(scorer.products.size)
        seconds["peer"].append(_timed(lambda asked=asked: by_peer(asked)))
        for name in ("ours, cold", "ours, warm"):
            durations = _timed(lambda query=query, products=products: scorer.score_lists([query], products))
            seconds[name].append(durations)
    return {name: _percentiles(durations[1:]) for name, durations in seconds.items()}  # the first one warms up


def run(scale: Scale, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All figures and bars."""
    base = references.resolve(Settings().model)
    train, dev = rows(folder, scale.queries)
    dev = dev.slice(0, scale.dev)
    say(f"{train.num_rows} pairs to train on, {dev.num_rows} of dev")
    trained, ours = measure_training(scale, base, folder, train, dev)
    ours.save(folder / "student", dev)
    scored = measure_scoring(scale, folder / "student", train, dev)
    reached, durations_by_name = (trained["same_time"][name] for name in ("dev_ndcg_at_10", "seconds"))
    best = scored[scored["best"]]
    lost = abs(best["dev_ndcg_at_10"] - scored["peer"]["dev_ndcg_at_10"])
    bars = [
        bar("training_times_peer", trained["times_peer"], 1.8, trained["times_peer"] >= 1.8),
        bar(
            "dev_ndcg_over_peer_in_same_time",
            reached["ours"] - reached["peer"],
            0.0,
            reached["ours"] > reached["peer"] and durations_by_name["ours"] <= 1.05 * durations_by_name["peer"],
        ),
        bar("scoring_times_peer", best["times_peer"], 3.0, best["times_peer"] >= 3.0),
        bar("scoring_ndcg_difference", lost, 0.002, lost <= 0.002),
    ]
    return {"training": trained, "scoring": scored}, bars


def main() -> int:
    """Print progress on standard error and one JSON line on standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.student", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: figures without meaning")
    parser.add_argument("--rounds", type=int, help=f"turns of each contender (default {Scale().rounds})")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale(rounds=options.rounds or Scale().rounds)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    described = machine.describe(("torch", "transformers", "sentence-transformers", "onnxruntime"))
    with tempfile.TemporaryDirectory(prefix="benchmark-student-") as folder, machine.output_to_stderr():
        figures, bars = run(scale, Path(folder))
    figures |= {"quick": options.quick}
    report("student", described, figures, bars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
