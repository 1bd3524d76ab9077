"""Labeling: throughput and memory of the machinery, its overhead over a real teacher, and survival of kills and damage.

`python -m benchmarks.labels [--quick] [--only machinery|overhead|kills|boundaries|damage] [--work DIR]`; see README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import damage, kills, machine
from benchmarks.machine import Failed, measure
from benchmarks.result import bar, report, say
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
KILLED_STEPS_TOKENS = 400  # tokens per batch of a killed training, which then has a few hundred steps
TOKENS_PER_PAIR = 45.0  # decides whether compilation pays; here it never does
MIB = 2**20


@dataclass(frozen=True)
class Scale:
    """Sizes and counts of each part."""

    candidates: int = 1_000_000
    pairs: int = 320
    part_rows: int = 32
    """Rows of a checkpoint with the real teacher: as many checkpoints as in a longer run, within minutes."""
    kills: int = 200
    boundaries: int = 200
    """Maximum number of kills before changes, per victim."""
    changed_bytes: int = 50
    """Changed bytes in checkpoints per victim; a fifth of it per sealed file."""


QUICK = Scale(candidates=20_000, pairs=24, part_rows=8, kills=10, boundaries=2, changed_bytes=1)


# Candidates -------------------------------------------------------------------------------------------------------


def _source(shared: Path) -> sources.Source:
    path = shared / "data/home-depot/train.csv.gz"
    if path.exists():
        return sources.open(HomeDepot(source="home_depot", path=str(path)))
    say(f"{path} not found: using texts of the demo shop")
    return sources.open(DemoShop(source="demo_shop"))


def write_shard(folder: str, rows: int, shared: str) -> None:
    """Write a sealed folder with one shard: real queries with random real products, PER_QUERY per query.

    If the source has no descriptions, three joined titles stand in for one.
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
                # Every row has a distinct product id.
                "product_id": [f"p{number:09d}" for number in range(start, start + size)],
            }
            writer.write(pa.table(columns))
    artifacts.seal(Path(folder))


# Machinery --------------------------------------------------------------------------------------------------------


class Trivial:
    """A teacher whose logits cost almost nothing and all differ."""

    def encode(self, rows: pa.Table) -> pa.Table:
        return rows

    def score(self, encoded: pa.Table, counter: progress.Counter) -> label_parts.Scored:
        ids = zip(*(encoded.column(name).to_pylist() for name in label_parts.IDS), strict=True)
        values = (zlib.crc32(f"{query} {product}".encode()) / 2**32 for query, product in ids)
        counter.add(encoded.num_rows)
        return label_parts.Scored(np.fromiter(values, np.float32, encoded.num_rows))


def label_trivially(candidates: str, output: str) -> dict[str, int]:
    """Label a shard through the machinery, with checkpoints of the default size."""
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
    """Baseline: the same scorer on the same columns and windows, one Parquet file at the end and no checkpoints."""
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
    """Measure rows per second and memory of the machinery, from scratch and with all checkpoints present."""
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
        raise Failed(
            f"expected no resumed rows in the first run and all in the second, got {whole.result} and {resumed.result}"
        )
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

    The head is untrained: its logits are meaningless, but take as long to compute.
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
        # With small weights all logits would be nearly equal, and the teacher would be refused as collapsed.
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
    """Label a shard by the stage itself, and return the seconds of loading the model and of scoring."""
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
    """Measure what the stage adds to scoring and loading the model: reading, digests, checkpoints, manifest."""
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
    timings = run.result
    overhead = (run.seconds - timings["loading"] - timings["scoring"]) / timings["scoring"]
    figures = {
        "pairs": timings["pairs"],
        "parts": -(-timings["pairs"] // scale.part_rows),
        "tokens": timings["tokens"],
        "pairs_per_second": round(timings["pairs"] / timings["scoring"], 1),
        "seconds": round(run.seconds, 2),
        "scoring_seconds": round(timings["scoring"], 2),
        "loading_seconds": round(timings["loading"], 2),
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
        return (
            "before the first checkpoint"
            if not done
            else "between checkpoints"
            if done < parts
            else "after the last checkpoint"
        )

    return kills.Victim("label", make, digest, rows, progress)


def _training(candidates: Path, base: Path, judgements: Path) -> kills.Victim:
    """A tiny encoder that learns random judgements of the candidates, with a checkpoint after every step."""
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


def victims_of(candidates: Path, teacher: Path, part_rows: int, scratch: Path) -> list[kills.Victim]:
    """Return the work that is killed: labeling a shard, and training a teacher."""
    rows = pq.read_metadata(candidates / f"{SHARD}.parquet").num_rows
    return [
        _labeling(candidates, teacher, part_rows, -(-rows // part_rows)),
        _training(candidates, teacher, scratch / "judgements"),
    ]


def kill_victims(candidates: str, teacher: str, part_rows: int, count: int, scratch: str) -> dict[str, Any]:
    """Kill each victim in turn at random times; see `kills.kill`."""
    victims = victims_of(Path(candidates), Path(teacher), part_rows, Path(scratch))
    return kills.kill(victims, count, Path(scratch), SEED)


def kill_victims_at_boundaries(
    candidates: str, teacher: str, part_rows: int, limit: int, scratch: str
) -> dict[str, Any]:
    """Kill each victim before its changes; see `kills.kill_at_boundaries`."""
    victims = victims_of(Path(candidates), Path(teacher), part_rows, Path(scratch))
    return {victim.name: kills.kill_at_boundaries(victim, limit, Path(scratch) / victim.name) for victim in victims}


def damage_victims(candidates: str, teacher: str, part_rows: int, limit: int, scratch: str) -> dict[str, Any]:
    """Change bytes of the victims' inputs, results and checkpoints; see `damage`."""
    root = Path(scratch)
    labeling, training = victims_of(Path(candidates), Path(teacher), part_rows, root)
    results = {
        "label_checkpoints": damage.damage_checkpoints(
            labeling, lambda folder: folder.glob("resume/*/part-*.parquet"), limit, root / "label", SEED
        ),
        "teacher_checkpoints": damage.damage_checkpoints(
            training, lambda folder: folder.glob("resume/*/step-*.pt"), limit, root / "teacher", SEED
        ),
    }
    folders = {
        "candidates": Path(candidates),
        "judgements": root / "judgements",
        "teacher": Path(teacher),
        "labels": root / "label" / "unbroken" / "output",
        "trained_teacher": root / "teacher" / "unbroken" / "output",
    }
    return {"sealed": damage.damage_sealed(folders, root, max(limit // 5, 1), SEED), **results}


def _in_small_process(function: Callable[..., dict[str, Any]], count: int, work: Path, shared: Path) -> dict[str, Any]:
    """Run one of the functions above on a small shard and a tiny teacher, in a process that has everything imported."""
    candidates, teacher = work / "few", work / "tiny"
    if not (candidates / artifacts.SEAL).exists():
        measure(write_shard, str(candidates), KILLED_ROWS, str(shared), scratch=work)
    if not (teacher / artifacts.SEAL).exists():
        measure(write_teacher, str(teacher), True, scratch=work, imports=IMPORTS)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        arguments = str(candidates), str(teacher), KILLED_PART, count, scratch
        return measure(function, *arguments, scratch=work, imports=IMPORTS).result


def measure_kills(scale: Scale, work: Path, shared: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Kill runs at random times, run them again until they complete, and compare with unbroken ones."""
    figures = _in_small_process(kill_victims, scale.kills, work, shared)
    total = _total(figures, "kills", "lost", "doubled", "different")
    return figures, [
        bar("kills", total["kills"], scale.kills, total["kills"] >= scale.kills),
        *(bar(f"kills_{name}", total[name], 0, total[name] == 0) for name in ("lost", "doubled", "different")),
    ]


def measure_boundaries(scale: Scale, work: Path, shared: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Kill runs before their changes of files and folders, run them again, and compare with unbroken ones."""
    figures = _in_small_process(kill_victims_at_boundaries, scale.boundaries, work, shared)
    total = _total(figures, "kills", "lost", "doubled", "different")
    expected = sum(min(victim["changes"], scale.boundaries) for victim in figures.values())
    return figures, [
        bar("boundary_kills", total["kills"], expected, total["kills"] == expected),
        *(bar(f"boundary_kills_{name}", total[name], 0, total[name] == 0) for name in ("lost", "doubled", "different")),
    ]


def measure_damage(scale: Scale, work: Path, shared: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Change bytes of every sealed file and of checkpoints: the former are refused, the latter never used."""
    figures = _in_small_process(damage_victims, scale.changed_bytes, work, shared)
    sealed = figures["sealed"]
    different = figures["label_checkpoints"]["different"] + figures["teacher_checkpoints"]["different"]
    return figures, [
        bar("changed_bytes_of_sealed_files_caught", sealed["caught"], sealed["changed_bytes"], not sealed["missed"]),
        bar("changed_bytes_of_checkpoints_used", different, 0, different == 0),
    ]


def _total(figures: dict[str, Any], *names: str) -> dict[str, int]:
    return {name: sum(victim[name] for victim in figures.values()) for name in names}


# Command ----------------------------------------------------------------------------------------------------------

PARTS = {
    "machinery": measure_machinery,
    "overhead": measure_overhead,
    "kills": measure_kills,
    "boundaries": measure_boundaries,
    "damage": measure_damage,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labels", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: about a minute; the figures have no meaning")
    parser.add_argument("--only", choices=PARTS, help="only this part")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep generated data in this folder, and reuse it")
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
                figures[name], part_bars = PARTS[name](scale, options.work or Path(temporary), ROOT.parent / "shared")
            except Failed as error:
                say(f"{name}: {error}")
                return 1
            say(f"{name}: {json.dumps(figures[name])}")
            bars += part_bars
    report("labels", described, figures, bars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
