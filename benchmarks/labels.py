"""Labeling: the machinery's speed and memory, what it adds to a real teacher, and whether it survives kills.

`python -m benchmarks.labels [--quick] [--only machinery|overhead|kills] [--work DIR]`; see README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import kills, machine
from benchmarks.machine import Failed, measure
from benchmarks.result import bar, say, tell
from distilrank.config import Compute, DemoShop, HomeDepot, Label, Lora, Optimizer, Student, Teacher
from distilrank.core import artifacts, progress, schemas
from distilrank.core.problems import Problems
from distilrank.data import sources
from distilrank.teacher import label_parts

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "pyarrow", "torch", "transformers")
SEED = 31
PER_QUERY = 10
SHARD = "shard-00000"
CHUNK = 50_000
# torch and transformers, before the clock starts
IMPORTS = ("distilrank.teacher.labeling", "distilrank.modeling.references", "distilrank.teacher.train")
KILLED_ROWS, KILLED_PART = 400, 8
KILLED_STEPS_TOKENS = 400  # of a batch, so that a training of the killed kind has some hundred steps
TOKENS_PER_PAIR = 45.0  # tells whether compiling pays; here it never does
MIB = 2**20


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    candidates: int = 1_000_000
    pairs: int = 320
    part_rows: int = 32
    """Rows of a part where the teacher is real: as many parts as a longer run has, within minutes."""
    kills: int = 200


QUICK = Scale(20_000, 24, 8, 10)


# Candidates -------------------------------------------------------------------------------------------------------


def _source(shared: Path) -> sources.Source:
    path = shared / "data/home-depot/train.csv.gz"
    if path.exists():
        return sources.open(HomeDepot(source="home_depot", path=str(path)))
    say(f"{path} is not there: texts of the demo shop")
    return sources.open(DemoShop(source="demo_shop"))


def write_shard(folder: str, rows: int, shared: str) -> None:
    """Write a sealed folder with one shard: real queries with real products, drawn at random, PER_QUERY a query.

    A source without descriptions gets three titles for one.
    """
    source, problems = _source(Path(shared)), Problems()
    products = pa.Table.from_batches(source.products(problems))
    queries = source.judgements(problems).column("query").unique()
    draw = np.random.default_rng(SEED)
    bare = products.column("description").null_count == len(products)
    titles = products.column("title")
    with schemas.Writer(Path(folder) / f"{SHARD}.parquet", schemas.CANDIDATES) as writer:
        for start in range(0, rows, CHUNK):
            size = min(CHUNK, rows - start)
            query = np.arange(start, start + size) // PER_QUERY
            table = products.take(draw.integers(0, len(products), size))
            if bare:
                more = [titles.take(draw.integers(0, len(titles), size)) for _ in range(3)]
                joined = pc.binary_join_element_wise(*more, " ")
                table = table.set_column(table.column_names.index("description"), "description", joined)
            constant = {"provenance": "bm25", "impressions": 0, "clicks": 0, "stratum": "tail"}
            columns = {
                **{name: table.column(name) for name in schemas.PRODUCT_FIELDS},
                **{name: pa.repeat(value, size) for name, value in constant.items()},
                "query_id": [artifacts.digest_bytes(b"%d" % number)[:32] for number in query],
                "query": queries.take(query % len(queries)),
                # No product is twice in a query, and each has an id that is its own.
                "product_id": [f"p{number:09d}" for number in range(start, start + size)],
            }
            writer.write(pa.table(columns))
    artifacts.seal(Path(folder))


# Machinery --------------------------------------------------------------------------------------------------------


class Trivial:
    """Logits that cost next to nothing and are all different."""

    def encode(self, rows: pa.Table) -> pa.Table:
        return rows

    def score(self, encoded: pa.Table, counter: progress.Counter) -> label_parts.Scored:
        ids = zip(*(encoded.column(name).to_pylist() for name in label_parts.IDS), strict=True)
        values = (zlib.crc32(f"{query} {product}".encode()) / 2**32 for query, product in ids)
        counter.add(encoded.num_rows)
        return label_parts.Scored(np.fromiter(values, np.float32, encoded.num_rows))


def label_trivially(candidates: str, output: str) -> dict[str, int]:
    """Label a shard through the machinery, with parts of the default size."""
    labeled = label_parts.label_rows(
        Label(),
        name="label-00000",
        shard=Path(candidates) / f"{SHARD}.parquet",
        fields=schemas.PRODUCT_FIELDS,
        parts=label_parts.LabelCheckpoints(Path(output) / "parts", {"benchmark": SEED}),
        load=Trivial,
        device=label_parts.Device("cpu"),
        output=Path(output) / "labels.parquet",
    )
    return {"rows": labeled.rows, "resumed": labeled.resumed}


def label_unsafely(candidates: str, output: str) -> dict[str, int]:
    """The same scorer on the same columns and windows; one Parquet file at the end, and nothing before."""
    columns = [*label_parts.IDS, "query", *schemas.PRODUCT_FIELDS]
    tables = []
    with pq.ParquetFile(Path(candidates) / f"{SHARD}.parquet") as file:
        counter = progress.Counter("baseline", file.metadata.num_rows, "pairs")
        for batch in file.iter_batches(Label().part_rows, columns=columns):
            rows = pa.Table.from_batches([batch])
            logits = Trivial().score(rows, counter).logits
            tables.append(rows.select(label_parts.IDS).append_column("logit", pa.array(logits)))
    Path(output).mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables), Path(output) / "labels.parquet", compression="zstd")
    return {"rows": sum(table.num_rows for table in tables)}


def measure_machinery(scale: Scale, work: Path, shared: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Rows a second through the machinery, once whole and once with every part there, and its memory."""
    candidates, output = work / "candidates", work / "trivial"
    shard = candidates / f"{SHARD}.parquet"
    if not shard.exists():
        measure(write_shard, str(candidates), scale.candidates, str(shared), scratch=work)
    say(f"machinery: {scale.candidates} candidates, {shard.stat().st_size / MIB:.0f} MiB")
    runs = {
        name: measure(function, str(candidates), str(output if ours else work / name), scratch=work, warm=[shard])
        for name, function, ours in (
            ("whole", label_trivially, True),
            ("resumed", label_trivially, True),
            ("baseline", label_unsafely, False),
        )
    }
    whole, resumed, baseline = runs["whole"], runs["resumed"], runs["baseline"]
    if (whole.result["resumed"], resumed.result["resumed"]) != (0, scale.candidates):
        raise Failed(f"expected nothing and then everything resumed, got {whole.result} and {resumed.result}")
    written, plain = (pq.read_table(folder / "labels.parquet") for folder in (output, work / "baseline"))
    if not written.equals(plain.cast(schemas.LABELS)):
        raise Failed("the labels differ from the baseline's")
    speed = {name: scale.candidates / run.seconds for name, run in runs.items()}
    figures = {
        "candidates": scale.candidates,
        "part_rows": Label().part_rows,
        "rows_per_second": {name: round(value) for name, value in speed.items()},
        "times_the_baseline": round(whole.seconds / baseline.seconds, 2),
        "peak_mib": {name: round(run.peak_bytes / MIB) for name, run in runs.items()},
    }
    peak = max(whole.peak_bytes, resumed.peak_bytes) / 2**30
    return figures, [
        bar("machinery_rows_per_second", speed["whole"], 50_000, speed["whole"] >= 50_000),
        bar("machinery_memory_gib", peak, 1, peak <= 1),
    ]


# A real teacher ---------------------------------------------------------------------------------------------------


def write_teacher(folder: str, tiny: bool) -> None:
    """Write a sealed teacher's folder: the default teacher as it was pretrained, or a tiny encoder of random weights.

    The head is new: its logits mean nothing, and take as long as if they did.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from distilrank.modeling import references, scorer, torch_backend
    from distilrank.modeling.runtime import setup_runtime

    config, output = Teacher(), Path(folder)
    base = references.resolve(Student().model if tiny else config.model)
    encoder = scorer.load_encoder(base, config.text)
    torch.manual_seed(SEED)
    if tiny:
        shape: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        # With small weights it would say nearly the same of all pairs, and count as collapsed.
        shape |= {"vocab_size": encoder.tokenizer.get_vocab_size(), "num_labels": 1, "initializer_range": 0.5}
        model = BertForSequenceClassification(BertConfig(**shape))
    else:
        model = torch_backend.load_model(base, setup_runtime(Compute()))
    model.config.pad_token_id = encoder.pad_token_id
    model.save_pretrained(output)
    torch_backend.save_tokenizer(encoder, output)
    scorer.describe(
        output, role="teacher", encoder=encoder, text=config.text, tokens=config.score_tokens, base=config.model
    )
    artifacts.write_json(output / scorer.METRICS, {"tokens_per_pair": TOKENS_PER_PAIR})
    artifacts.seal(output)


def label_really(candidates: str, teacher: str, output: str, part_rows: int) -> dict[str, float]:
    """Label a shard by the stage itself; returns seconds of loading the model and of scoring, of those that it took."""
    from distilrank.teacher import labeling

    loading, load = [], labeling.Scorer.load

    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        scorer = load(*arguments, **named)
        loading.append(time.perf_counter() - began)
        return scorer

    shared = {"candidates": Path(candidates), "teacher": Path(teacher)}
    with patch.object(labeling.Scorer, "load", timed):
        labeling.label(Label(part_rows=part_rows), Compute(), shard=SHARD, output=Path(output), **shared)
    work = artifacts.read_json(Path(output) / "manifest.json")["work"]
    return {"loading": sum(loading), "scoring": work["seconds"], "pairs": work["pairs"], "tokens": work["tokens"]}


def measure_overhead(scale: Scale, work: Path, shared: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the stage takes beyond scoring and loading the model: reading, digests, parts, manifest."""
    candidates, teacher = work / "pairs", work / "teacher"
    if not (candidates / artifacts.SEAL).exists():
        measure(write_shard, str(candidates), scale.pairs, str(shared), scratch=work)
    if not (teacher / artifacts.SEAL).exists():
        measure(write_teacher, str(teacher), False, scratch=work, imports=IMPORTS)
    say(f"overhead: {scale.pairs} pairs, parts of {scale.part_rows}")
    warm = [path for path in teacher.iterdir() if path.is_file()]
    with tempfile.TemporaryDirectory(dir=work) as output:
        run = measure(
            label_really,
            *(str(candidates), str(teacher), output, scale.part_rows),
            scratch=work,
            imports=IMPORTS,
            warm=warm,
        )
    took = run.result
    overhead = (run.seconds - took["loading"] - took["scoring"]) / took["scoring"]
    figures = {
        "pairs": took["pairs"],
        "parts": -(-took["pairs"] // scale.part_rows),
        "tokens": took["tokens"],
        "pairs_per_second": round(took["pairs"] / took["scoring"], 1),
        "seconds": round(run.seconds, 2),
        "scoring_seconds": round(took["scoring"], 2),
        "loading_seconds": round(took["loading"], 2),
    }
    return figures, [bar("overhead", overhead, 0.02, overhead < 0.02)]


# Kills ------------------------------------------------------------------------------------------------------------


def _labeling(candidates: Path, teacher: Path, part_rows: int, parts: int) -> kills.Victim:
    from distilrank.teacher import label_manifest, labeling

    def make(folder: Path) -> None:
        compute = Compute(device="cpu", precision="fp32", threads=1, checkpoint_dir=str(folder / "resume"))
        shared = {"candidates": candidates, "teacher": teacher, "output": folder / "output"}
        labeling.label(Label(part_rows=part_rows), compute, shard=SHARD, **shared)

    def digest(folder: Path) -> str:
        output = folder / "output"
        return artifacts.digest_json(
            [label_manifest.identity([output]), artifacts.digest_file(output / labeling.LABELS)]
        )

    def rows(folder: Path) -> Iterable[Hashable]:
        table = schemas.read(folder / "output" / labeling.LABELS, schemas.LABELS)
        return zip(*(table.column(name).to_pylist() for name in label_parts.IDS), strict=True)

    def progress(folder: Path) -> str:
        if (folder / "output" / "manifest.json").exists():
            return "after the manifest"
        done = len(list(folder.glob("resume/*/part-*.parquet")))
        return "before the first part" if not done else "between parts" if done < parts else "after the last part"

    return kills.Victim("label", make, digest, rows, progress)


def _training(candidates: Path, base: Path, judgements: Path) -> kills.Victim:
    """A tiny encoder that learns made-up judgements of the candidates; a checkpoint after every step."""
    from distilrank.teacher import train as teacher

    pairs = schemas.read(candidates / f"{SHARD}.parquet", schemas.CANDIDATES)
    draw = np.random.default_rng(SEED)
    judged = {
        **{name: draw.integers(0, 3, len(pairs)) / 2 for name in ("target", "gain")},
        "raters": np.ones(len(pairs), int),
        "locale": np.full(len(pairs), None),
        "bm25": np.zeros(len(pairs)),
    }
    for name, values in judged.items():
        pairs = pairs.append_column(name, pa.array(values))
    for split, part in (("train", pairs.slice(100)), ("dev", pairs.slice(0, 100)), ("test", pairs.slice(0, 0))):
        schemas.write(part, judgements / f"{split}.parquet", schemas.JUDGED)
    artifacts.write_json(judgements / "protocol.json", {"relevant_from": 0.75})
    artifacts.seal(judgements)
    config = Teacher(
        model=str(base),
        lora=Lora(rank=0),
        optimizer=Optimizer(epochs=1, batch_tokens=KILLED_STEPS_TOKENS, evaluations=3),
        lift_over_bm25=-1,
        max_ece=1,
    )

    def make(folder: Path) -> None:
        resume = str(folder / "resume")
        compute = Compute(device="cpu", precision="fp32", threads=1, checkpoint_dir=resume, checkpoint_seconds=0)
        teacher.train(config, compute, judgements=judgements, model_digest="", output=folder / "output")

    def digest(folder: Path) -> str:
        return artifacts.verify(folder / "output")

    def progress(folder: Path) -> str:
        if (folder / "output" / artifacts.SEAL).exists():
            return "after the seal"
        steps = sorted(folder.glob("resume/*/step-*.pt"))
        return "between steps" if steps else "before the first step"

    return kills.Victim("teacher", make, digest, progress=progress)


def kill_victims(candidates: str, teacher: str, part_rows: int, count: int, scratch: str) -> dict[str, Any]:
    """Kill each victim in turn; see `kills.kill`."""
    rows = pq.read_metadata(Path(candidates) / f"{SHARD}.parquet").num_rows
    victims = [
        _labeling(Path(candidates), Path(teacher), part_rows, -(-rows // part_rows)),
        _training(Path(candidates), Path(teacher), Path(scratch) / "judgements"),
    ]
    return kills.kill(victims, count, Path(scratch), SEED)


def measure_kills(scale: Scale, work: Path, shared: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Kill runs at random moments, start them again until they end, and compare with unbroken ones."""
    candidates, teacher = work / "few", work / "tiny"
    if not (candidates / artifacts.SEAL).exists():
        measure(write_shard, str(candidates), KILLED_ROWS, str(shared), scratch=work)
    if not (teacher / artifacts.SEAL).exists():
        measure(write_teacher, str(teacher), True, scratch=work, imports=IMPORTS)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        # One process that has imported everything, of which each run is a fork.
        arguments = str(candidates), str(teacher), KILLED_PART, scale.kills, scratch
        figures = measure(kill_victims, *arguments, scratch=work, imports=IMPORTS).result
    total = {name: sum(one[name] for one in figures.values()) for name in ("kills", "lost", "doubled", "different")}
    return figures, [
        bar("kills", total["kills"], scale.kills, total["kills"] >= scale.kills),
        *(bar(f"kills_{name}", total[name], 0, total[name] == 0) for name in ("lost", "doubled", "different")),
    ]


# Command ----------------------------------------------------------------------------------------------------------

PARTS = {"machinery": measure_machinery, "overhead": measure_overhead, "kills": measure_kills}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labels", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: a minute, and figures without meaning")
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep generated data here, and use what is there")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale()
    described = machine.describe(PACKAGES)
    figures: dict[str, Any] = {"quick": options.quick}
    bars: list[dict[str, Any]] = []
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-labels-", dir=options.work) as temporary:
        for name in [options.only] if options.only else PARTS:
            try:
                figures[name], held = PARTS[name](scale, options.work or Path(temporary), ROOT.parent / "shared")
            except Failed as error:
                say(f"{name}: {error}")
                return 1
            say(f"{name}: {json.dumps(figures[name])}")
            bars += held
    tell("labels", described, figures, bars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
