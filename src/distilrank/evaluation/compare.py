"""Any number of students on one judged split, beside random order and BM25, and how much they differ between seeds.

Students that differ by their seed alone tell what a difference between two others may be worth: one that is smaller
than what another seed makes is luck, however many queries it rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from distilrank import score_files
from distilrank.config import Compute, Evaluate
from distilrank.core import artifacts, progress
from distilrank.core.errors import InputError
from distilrank.evaluation import examples, outputs, slices
from distilrank.evaluation.judged import Judged
from distilrank.evaluation.systems import compare_systems, score_baselines, score_judged
from distilrank.modeling.scorer import Scorer

BASELINES = ("bm25", "random")


def compare_models(
    models: Sequence[str],
    judgements: Path,
    output: Path | None,
    registry: str,
    compute: Compute,
    config: Evaluate,
    *,
    backend: str = "auto",
    counter: Callable[[int], progress.Counter] = lambda rows: progress.Counter("evaluate", rows, "pairs"),
) -> dict[str, Any]:
    """Measure students on the same judged rows and compare each with random order, BM25 and every other.

    Args:
        models: folders of students, versions or aliases of the registry; a system is called what it is called here.
        judgements: a `judgements` folder of a run, or the Parquet file of one of its splits.
        output: folder for `metrics.json` and `per_query.parquet`; None: nothing is written.
        registry: URI of the registry.
        compute: device, precision, threads.
        config: resamples, confidence, slices and so on, as in a run.
        backend: as for `Scorer.load`.
        counter: makes what is told of every batch, of the number of pairs.

    Returns:
        What `metrics.json` holds: that of a run, without latency and agreement, with `examples` of the first student
        against the second (or BM25), and `stability` (`spread` of the students).

    Raises:
        InputError: a model, the judgements or a slice is not usable; nothing is written then.
        RunStopped: a model gives scores that are not numbers.
    """
    twice = [name for at, name in enumerate(models) if name in models[:at]]
    if twice or not models:
        raise InputError(f"--model: {twice[0]!r} is named twice" if twice else "--model: expected at least one student")
    taken = [name for name in models if name in BASELINES]
    if taken:
        raise InputError(f"--model {taken[0]}: this name is that of a baseline, expected a folder or a version")
    slices.require(config.slices)
    judged = Judged.read(judgements)
    folders = {name: score_files.locate(name, registry) for name in models}
    scorers = {name: Scorer.load(folder, compute, backend=backend) for name, folder in folders.items()}
    told = counter(len(models) * len(judged.query))
    systems = score_baselines(judged, config)
    for name in models:
        systems[name] = score_judged(scorers.pop(name), judged, told)
    pairs = list(combinations(models, 2))
    metrics, by_query = compare_systems(
        judged,
        systems,
        config,
        comparisons=[*((name, baseline) for name in models for baseline in BASELINES), *pairs],
        sliced=[*((name, "bm25") for name in models), *pairs],
    )
    other = models[1] if len(models) > 1 else BASELINES[0]
    metrics["examples"] = examples.extremes(judged, systems, by_query, models[0], other)
    metrics["stability"] = spread({name: metrics["systems"][name] for name in models})
    if output is not None:
        outputs.write_per_query(output / "per_query.parquet", judged, by_query)
        artifacts.write_json(output / "metrics.json", metrics)
    return metrics


def spread(figures: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any] | None:
    """How much each measure differs between students; None for a single one.

    Args:
        figures: measures by student; one that a student lacks is left out.

    Returns:
        models; and by measure its mean, standard_deviation (of a sample: n - 1), lowest, highest and range.
    """
    if len(figures) < 2:
        return None
    measures: dict[str, Any] = {}
    for metric in next(iter(figures.values())):
        values = [each[metric] for each in figures.values()]
        if None in values:
            continue
        known = np.array(values, np.float64)
        measures[metric] = {
            "mean": float(known.mean()),
            "standard_deviation": float(known.std(ddof=1)),
            "lowest": float(known.min()),
            "highest": float(known.max()),
            "range": float(np.ptp(known)),
        }
    return {"models": list(figures), "measures": measures}
