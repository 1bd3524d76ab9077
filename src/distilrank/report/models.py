"""Sections on the models of a run: training, calibration, quality and labels of the teacher, latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup

from distilrank.core import artifacts, schemas
from distilrank.evaluation.metrics import grades
from distilrank.rendering import figures
from distilrank.rendering.formatting import (
    format_count,
    format_duration,
    format_metric,
    format_percent,
    format_value,
    join_words,
)
from distilrank.rendering.labels import SYSTEMS

STRATA = ("head", "torso", "tail")
CALIBRATIONS = {"platt": "a sigmoid (Platt)", "isotonic": "a monotone curve (isotonic)"}
JUDGED_SYSTEMS = ("random", "bm25", "teacher")
"""Systems that quality.json compares with the judgements of people."""


def training_section(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Build the section on training: the chosen checkpoints and the learning curves.

    Args:
        models: metrics.json of the teacher and of the student, by key.
    """
    recorded = {name: metrics for name, metrics in models.items() if metrics["curve"]}
    sentences = [_checkpoint_text(name, metrics["curve"]) for name, metrics in recorded.items()]
    plot = Markup(figures.plot_learning_curves(recorded)) if recorded else ""
    return {"sentence": " ".join(sentences), "figure": plot}


def _checkpoint_text(name: str, curve: Sequence[Mapping[str, Any]]) -> str:
    best, last = max(curve, key=lambda row: row["dev_ndcg_at_10"]), curve[-1]
    dev = format_metric(best["dev_ndcg_at_10"])
    text = f"The {name}'s best checkpoint is that of step {best['step']} of {last['step']} (dev nDCG@10 {dev})"
    return f"{text}, the last one, so more epochs may help." if best is last and len(curve) > 1 else f"{text}."


def calibration_section(metrics: Mapping[str, Any], evaluation: Path) -> dict[str, Any]:
    """Build the section on calibration, and on how well scores separate relevant pairs from the others.

    Args:
        metrics: content of metrics.json of the evaluate stage.
        evaluation: its folder, with pair_scores.parquet.
    """
    systems = [name for name in ("teacher", "champion", "student") if name in metrics["systems"]]
    diagrams = {name: metrics["reliability"][name] for name in systems if metrics.get("reliability", {}).get(name)}
    errors = [
        f"{SYSTEMS[name].lower()} {format_metric(metrics['systems'][name]['ece'])}"
        for name in diagrams
        if metrics["systems"][name].get("ece") is not None
    ]
    column = "probability" if "student" in diagrams else "score"
    scale = "predicted probability" if column == "probability" else "raw score"
    relevant_from = metrics.get("protocol", {}).get("relevant_from")
    scores = {} if relevant_from is None else _scores_by_relevance(evaluation, systems, column, relevant_from)
    return {
        "errors": join_words(errors) if errors else "",
        "reliability": Markup(figures.plot_reliability(diagrams)) if diagrams else "",
        "scores": Markup(figures.plot_score_histograms(scores, scale)) if scores else "",
        "scale": scale,
        "distribution": [
            {"label": SYSTEMS[name], **distribution}
            for name, distribution in metrics.get("distribution", {}).items()
            if name in SYSTEMS
        ],
    }


def _scores_by_relevance(
    evaluation: Path, systems: Sequence[str], column: str, relevant_from: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split the scores of each system into those of relevant pairs and of the others.

    Systems that lack a score are left out. Relevance follows from the target, since gains may have another scale
    (1, 0.1, 0.01 and 0 in ESCI).
    """
    table = schemas.read(evaluation / "pair_scores.parquet", schemas.PAIR_SCORES)
    scores = {}
    for system in systems:
        rows = table.filter(pc.field("system") == system)
        values = rows[column].drop_null().to_numpy()
        if len(values) == rows.num_rows > 0:
            is_relevant = grades(rows["target"].to_numpy()) >= grades([relevant_from])[0]
            scores[system] = (values[is_relevant], values[~is_relevant])
    return scores


# The teacher and its labels ---------------------------------------------------------------------------------------


def teacher_section(folder: Path, labels: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Build the section on the teacher: its quality on held-out judgements, its labels, and the student's agreement.

    Args:
        folder: folder of the teacher; without quality.json in it, only the labels are described.
        labels: the combined manifest of all shards.
        metrics: content of metrics.json of the evaluate stage.
    """
    path = folder / "quality.json"
    quality = artifacts.read_json(path) if path.exists() else None
    histograms = {"judged, dev": quality["logits"]["histogram"]} if quality else {}
    shards = [shard.get("logits", {}).get("histogram") for shard in labels["shards"]]
    if all(shards):
        histograms["labeled"] = sum_histograms(shards)
    colors = {"judged, dev": "teacher", "labeled": "student"}
    return {
        "tiles": _label_tiles(labels),
        "logits": Markup(figures.plot_logits(histograms, colors)) if histograms else "",
        "compares_logits": len(histograms) == 2,
        "dev": _quality_section(quality) if quality else None,
        "agreement": _agreement_section(metrics.get("agreement")),
    }


def _quality_section(quality: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the teacher with the judgements of people on the dev queries."""
    calibration = quality["calibration"]
    diagram = Markup(
        figures.plot_reliability({"teacher": calibration["reliability"]}, {"teacher": "Teacher on dev"}, "teacher-dev")
    )
    return {
        **quality,
        "systems": [SYSTEMS[name] for name in JUDGED_SYSTEMS],
        "strata": _stratum_rows(quality),
        "calibration_text": calibration_text(calibration),
        "reliability": diagram,
        "disagreements": quality["disagreements"]["top"],
        "disagreement_count": quality["disagreements"]["count"],
    }


def _stratum_rows(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the agreement with the judgements by stratum; the last row is that of all queries."""
    strata = quality["agreement"]
    order = [name for name in STRATA if name in strata] + sorted(set(strata) - {*STRATA, "all"})
    rows = []
    for name in (*order, "all"):
        stratum = strata[name]
        cells = {}
        for metric in ("ndcg_at_10", "pair_accuracy"):
            values = [stratum[metric][system] for system in JUDGED_SYSTEMS]
            best = max((value for value in values if value is not None), default=None)
            cells[metric] = [{"value": value, "best": value is not None and value == best} for value in values]
        is_small = stratum["ranked_queries"] < quality["min_support"]
        rows.append({**stratum, "name": name, "cells": cells, "too_small": is_small})
    return rows


def calibration_text(calibration: Mapping[str, Any]) -> str:
    """Describe how the teacher's logits are mapped to probabilities, and why that method was chosen."""
    method, choice = calibration["method"], calibration.get("chosen_by")
    if method == "none":
        return "The teacher is not calibrated: its probabilities are the sigmoid of its logits."
    text = f"Logits are mapped to probabilities by {CALIBRATIONS[method]}"
    if choice is None:
        return f"{text}, as configured."
    if "log_loss" not in choice:
        return f"{text}: {choice['rows']} pairs of {choice['queries']} queries are too few to fit more than that."
    other = "isotonic" if method == "platt" else "platt"
    loss, other_loss = (format_metric(choice["log_loss"][name], 4) for name in (method, other))
    gain, error = (format_metric(choice[key], 4) for key in ("gain", "standard_error"))
    text += f". On queries left out of the fit, its log loss is {loss}; that of {CALIBRATIONS[other]} is {other_loss}"
    if method == "isotonic":
        return f"{text}. The gain of {gain} exceeds its standard error of {error}."
    if choice["gain"] > 0:
        return f"{text}. The gain of {gain} is within its standard error of {error}."
    return f"{text}."


def sum_histograms(histograms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add histograms whose bins lie on one grid and whose ranges may differ.

    Args:
        histograms: each with `counts` of bins of `width` from `low` upwards; all have the same width.
    """
    width = histograms[0]["width"]
    starts = [round(histogram["low"] / width) for histogram in histograms]
    ends = [start + len(histogram["counts"]) for start, histogram in zip(starts, histograms, strict=True)]
    counts = np.zeros(max(ends) - min(starts), np.int64)
    for start, end, histogram in zip(starts, ends, histograms, strict=True):
        counts[start - min(starts) : end - min(starts)] += histogram["counts"]
    return {"width": width, "low": min(starts) * width, "counts": counts.tolist()}


def _label_tiles(labels: Mapping[str, Any]) -> list[dict[str, str]]:
    """Show the number of labels and the cost of computing them, as tiles."""
    shards = format_count(len(labels["shards"]), "shard")
    note = f"pairs of {format_value(labels['queries'])} queries, in {shards}"
    tiles = [{"label": "Labels", "value": format_value(labels["rows"]), "note": note}]
    work = labels.get("work")
    if not work:
        return tiles
    if work["rows_per_second"]:
        note = f"{format_value(work['tokens'])} tokens"
        if work["pairs"] and work["truncated"]:
            note += f"; {format_percent(work['truncated'] / work['pairs'])} of the pairs truncated to fit"
        rate = format_value(float(f"{work['rows_per_second']:.3g}"))
        tiles.append({"label": "Pairs per second", "value": rate, "note": note})
    note = f"on {work['device']}" if work.get("device") else "of all devices together"
    tiles.append({"label": "Device time", "value": format_duration(work["device_hours"] * 3600), "note": note})
    if work["price"] is not None:
        price = f"{work['price']:,.2f}"
        tiles.append({"label": "Price", "value": price, "note": "at the configured price per hour"})
    return tiles


def _agreement_section(agreement: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Show the agreement of the student with its teacher on the test pairs, as tiles."""
    if agreement is None:
        return None
    tiles = [
        ("Kendall's τ-b", format_metric(agreement["kendall"]), "mean over queries; 1 is the same order"),
        ("Same top product", format_percent(agreement["top_1"]), "of the queries"),
        ("Spearman", format_metric(agreement["spearman"]), "rank correlation over all pairs"),
        ("Pearson", format_metric(agreement["pearson"]), "correlation over all pairs"),
        ("Mean difference", format_metric(agreement["mean_difference"]), "of their probabilities"),
    ]
    return {
        "pairs": agreement["pairs"],
        "tiles": [{"label": label, "value": value, "note": note} for label, value, note in tiles],
    }


# Latency ----------------------------------------------------------------------------------------------------------


def latency_section(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Build the section on latency; None if it was not measured."""
    timings = {name: metrics.get("latency", {}).get(name) for name in ("student", "champion", "anchor")}
    timings = {name: values for name, values in timings.items() if values}
    if not timings:
        return None
    return {
        "figure": Markup(figures.plot_latency(timings)),
        "rows": [{"label": SYSTEMS[name], "p99_ms": None, **values} for name, values in timings.items()],
    }
