"""Comparison of several students on one judged split, with random order and BM25 as baselines.

Students that differ only by their seed show the variation between trainings: a difference between two other students
that is smaller than that is chance, however many queries it rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from distilrank import registry as registries
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
    """Score the same judged rows with several students, and compare each with the baselines and with every other.

    Args:
        models: folders of students, or versions or aliases of the registry; these are also the names of the systems.
        judgements: a `judgements` folder of a run, or the Parquet file of one of its splits.
        output: folder for `metrics.json` and `per_query.parquet`; None: nothing is written.
        registry: URI of the registry.
        compute: device, precision, threads.
        config: resamples, confidence, slices and so on, as in a run.
        backend: as in `Scorer.load`.
        counter: creates the progress counter for a number of pairs.

    Returns:
        The content of `metrics.json`: that of a run, without latency and agreement, with `examples` of the first
        student against the second (or BM25) and with `stability` (see `summarize_spread`).

    Raises:
        InputError: a model, the judgements or a slice cannot be used; then nothing is written.
        RunStopped: a model gives scores that are not numbers.
    """
    _require_usable_names(models)
    slices.require_columns(config.slices)
    judged = Judged.read(judgements)
    folders = {name: registries.locate(name, registry) for name in models}
    scorers = {name: Scorer.load(folder, compute, backend=backend) for name, folder in folders.items()}
    pair_counter = counter(len(models) * len(judged.query))
    systems = score_baselines(judged, config)
    for name in models:
        systems[name] = score_judged(scorers.pop(name), judged, pair_counter)
    pairs = list(combinations(models, 2))
    results, by_query = compare_systems(
        judged,
        systems,
        config,
        comparisons=[*((name, baseline) for name in models for baseline in BASELINES), *pairs],
        sliced=[*((name, "bm25") for name in models), *pairs],
    )
    other = models[1] if len(models) > 1 else BASELINES[0]
    results["examples"] = examples.extremes(judged, systems, by_query, models[0], other)
    results["stability"] = summarize_spread({name: results["systems"][name] for name in models})
    if output is not None:
        outputs.write_per_query(output / "per_query.parquet", judged, by_query)
        artifacts.write_json(output / "metrics.json", results)
    return results


def summarize_spread(figures: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any] | None:
    """Summarize how much each metric differs between students; None for a single student.

    Args:
        figures: metrics by student; a metric that a student lacks is left out.

    Returns:
        models: the names; metrics: by metric its mean, standard_deviation (of a sample: n - 1), lowest, highest, range.
    """
    if len(figures) < 2:
        return None
    summary: dict[str, Any] = {}
    for metric in next(iter(figures.values())):
        values = [student[metric] for student in figures.values()]
        if None in values:
            continue
        sample = np.array(values, np.float64)
        summary[metric] = {
            "mean": float(sample.mean()),
            "standard_deviation": float(sample.std(ddof=1)),
            "lowest": float(sample.min()),
            "highest": float(sample.max()),
            "range": float(np.ptp(sample)),
        }
    return {"models": list(figures), "metrics": summary}


def _require_usable_names(models: Sequence[str]) -> None:
    """Check that there are models, each named once and none like a baseline."""
    if not models:
        raise InputError("--model: is missing, expected at least one student")
    for index, name in enumerate(models):
        if name in models[:index]:
            raise InputError(f"--model: {name!r} is named twice, expected each student once")
    for name in models:
        if name in BASELINES:
            raise InputError(f"--model {name}: is the name of a baseline, expected a folder or a version")
