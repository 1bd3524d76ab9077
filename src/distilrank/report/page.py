"""The report stage: everything a run found, as one self-contained page that needs no network.

It reads fully without its only script, which sorts tables and mends links in a frame; the page's security policy names
that script by its hash.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from distilrank.config import Report
from distilrank.core import artifacts, schemas
from distilrank.core.run_folders import RunFolders
from distilrank.evaluation.metrics import grades
from distilrank.evaluation.significance import TIE
from distilrank.promotion.checks import failed as failed_checks
from distilrank.rendering import figures, inline_script, templating
from distilrank.rendering.formatting import (
    format_bound,
    format_delta,
    format_duration,
    format_metric,
    format_percent,
    format_value,
    join_words,
    readable_name,
)
from distilrank.rendering.labels import BASELINES, METRICS, SYSTEMS, metric_label
from distilrank.teacher import label_manifest

COMPARED = ("ndcg_at_10", "pair_accuracy", "roc_auc")
"""Metrics whose differences are plotted."""

OUTCOMES = {
    "promoted": ("good", "Promoted"),
    "cold_start": ("good", "Promoted as the first champion"),
    "overridden": ("warn", "Promoted by override"),
    "refused": ("bad", "Refused"),
    "unchanged": ("good", "Unchanged"),
}

CHECKS = {
    "enough_queries": ("Enough test queries", "too few test queries carry the decision"),
    "enough_judgements": ("Enough judgements", "too few judgements carry the decision"),
    "lift_over_bm25": ("Better than BM25", "it is not clearly better than BM25"),
    "lift_over_random": ("Better than random order", "it is not clearly better than random order"),
    "teacher_margin": ("Close to its teacher", "it may fall too far behind its teacher"),
    "calibration": ("Calibrated", "its probabilities are off"),
    "score_collapse": ("Tells products apart", "its scores hardly tell products apart"),
    "onnx_parity": ("Its ONNX files rank as it does", "its ONNX files do not rank as it does"),
    "latency": ("Fast enough", "it is too slow"),
    "drift": ("Learned from traffic like today's", "the newest traffic is unlike what it learned from"),
    "embedding_drift": (
        "Learned from texts like today's",
        "the texts of the newest traffic are unlike those that it learned from",
    ),
    "freshness": ("Learned from recent traffic", "the traffic behind it is out of date"),
    "not_inferior_to_champion": ("Not worse than the champion", "it may be worse than the champion"),
    "superior_to_champion": ("Better than the champion", "it is not clearly better than the champion"),
    "not_inferior_to_anchor": ("Not worse than the anchor", "it may be worse than the anchor"),
    "slices": ("No kind of query got worse", "some kinds of queries got worse"),
    "protocol": ("Measured as the policy asks", "it was measured in another way than the policy allows"),
    "near_duplicates": (
        "Tested on other queries than it learned from",
        "too many test queries have a near duplicate among those that it learned from",
    ),
    "above_chance": ("Asked for more than chance", "the policy asks for no more than random order reaches"),
    "test_set": ("Test set still fresh", "its test set has been looked at too often"),
    "new": ("Differs from the champion", "there is nothing new to promote"),
}
"""By name, what a check that passed says, and the reason that a failed one is."""

BEYOND = ("above_chance", "lift_over_bm25", "lift_over_random", "superior_to_champion")
"""Checks whose value has to exceed the bound, where for others it suffices to reach it."""

MINIMUM = "minimum_"
"""Before the key of a measure, the name of the check that it is high enough."""

REASONS = 2
"""Failed checks that the banner's sentence names; a list below it has them all."""

SLICES = {
    "stratum": "How often searched",
    "query_words": "Words in the query",
    "query_characters": "Characters in the query",
}
GROUPS = {
    "query": "Queries",
    "product": "Products",
    "clicks": "Clicks",
    "score": "Scores",
    "embedding": "Texts, as the student's encoder reads them",
}
"""Groups of drift's columns, in the page's order."""

PROFILED = ("rows", "queries", "impressions", "windows", "candidates", "lengths")
"""The sections of profile.json that the page shows, in this order; profile.html shows them all."""

UNUSED = {"hidden": "judged, used as unlabeled", "over_cap": "left out by a cap"}
"""What profile.json calls judged pairs that are on no side."""

STRATA = ("head", "torso", "tail")
CALIBRATIONS = {"platt": "a sigmoid (Platt)", "isotonic": "a monotone curve (isotonic)"}
AGREEING = ("random", "bm25", "teacher")
CHANCE = 0.5
"""ROC-AUC of a classifier that cannot tell two windows apart."""


def render(config: Report, folders: RunFolders, *, name: str, output: Path) -> None:
    """Write `report.html`, which links to a `drift.html` beside it, and `inputs.json`: the folders that it rests on.

    Args:
        folders: all but `resolved`, `candidates`, `traffic` and `report`.
        name: the run's name, the heading unless `config.title` gives another.

    Measures, a champion or a calibration that a run does not have are shown as missing; a teacher without
    `quality.json` is told of by its labels alone.

    Raises:
        InputError: a folder lacks a file that its stage always writes.
    """
    sealed = folders.select("judgements", "teacher", "student", "evaluation", "drift")
    labels = list(folders.labels)
    inputs: artifacts.Inputs = {"profile": folders.profile, **sealed, "labels": labels, "verdict": folders.verdict}
    figures_of_teacher = [name for name in ("metrics.json", "quality.json") if (folders.teacher / name).exists()]
    read = {"teacher": figures_of_teacher, "student": ["metrics.json"], "labels": [artifacts.MANIFEST]}
    with artifacts.stage("report", output, config=config, inputs=inputs, only=read) as record:
        labeled = label_manifest.combine(labels)
        record.inputs |= {key: artifacts.verify(folder, read.get(key)) for key, folder in sealed.items()}
        record.inputs["labels"] = label_manifest.identity(labels)
        record.inputs["verdict"] = artifacts.digest_file(folders.verdict / "verdict.json")
        decided = artifacts.read_json(folders.verdict / "verdict.json")
        metrics = _without_twins(artifacts.read_json(folders.evaluation / "metrics.json"), decided)
        drifted = artifacts.read_json(folders.drift / "drift.json")
        trained = {key: artifacts.read_json(sealed[key] / "metrics.json") for key in ("teacher", "student")}
        judged = _judged(folders.judgements)
        protocol = artifacts.read_json(folders.judgements / "protocol.json")
        stages = [
            *(folders.profile, folders.teacher, *labels, folders.student),
            *(folders.evaluation, folders.drift, folders.verdict),
        ]
        page = {
            "title": config.title or name,
            "name": name,
            "script": inline_script.load(templating.environment(), "sort.js.j2", "frame.js.j2"),
            "verdict": _verdict(decided, metrics, name),
            "rivals": _rivals(decided, metrics),
            "tiles": _tiles(metrics, drifted),
            "relevance": _relevance(metrics),
            "slices": _slices(metrics),
            "queries": _queries(folders.evaluation, metrics),
            "training": _training(trained),
            "calibration": _calibration(metrics, folders.evaluation),
            "teacher": _teacher(folders.teacher, labeled, metrics),
            "latency": _latency(metrics),
            "drift": _drift(drifted, summary=(folders.drift / "summary.html").exists()),
            "data": _data(artifacts.read_json(folders.profile / "profile.json"), judged, protocol, labeled),
            "test_set": _test_set(metrics, decided),
            "stages": _stages(stages),
            "lineage": _lineage(decided, record.inputs),
            "protocol": list(_settings(metrics.get("protocol", {}))),
        }
        template = templating.environment().get_template("report.html.j2")
        artifacts.write_text(output / "report.html", template.render(page))
        paths = {key: [given] if isinstance(given, Path) else given for key, given in inputs.items()}
        artifacts.write_json(output / "inputs.json", {key: list(map(str, paths[key])) for key in paths})
        artifacts.seal(output)


# The parts of the page --------------------------------------------------------------------------------------------


def _without_twins(metrics: dict[str, Any], decided: Mapping[str, Any]) -> dict[str, Any]:
    """The measures without those that would be told twice: an anchor that is the champion, a champion that is the
    student."""
    champion, anchor = ((decided.get(key) or {}).get("id") for key in ("champion", "anchor"))
    twins = {"anchor"} if anchor is not None and anchor == champion else set()
    if decided.get("outcome") == "unchanged":
        twins.add("champion")
    kept = {
        key: {name: value for name, value in metrics[key].items() if name not in twins}
        for key in ("systems", "latency", "reliability", "distribution")
        if isinstance(metrics.get(key), dict)
    }
    comparisons = [entry for entry in metrics.get("comparisons", []) if entry["baseline"] not in twins]
    return {**metrics, **kept, "comparisons": comparisons}


def _verdict(decided: Mapping[str, Any], metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    tone, label = OUTCOMES[decided["outcome"]]
    unchanged = decided["outcome"] == "unchanged"
    checks = [{**check, **_check_row(check), "failed": check in failed_checks(decided)} for check in decided["checks"]]
    failed = [check for check in checks if check["failed"]]
    if unchanged and failed:
        tone = "warn"
    looser = decided.get("looser") or []
    candidate, champion = ((decided.get(key) or {}).get("id", "") for key in ("candidate", "champion"))
    passing = f"All {len(checks)} checks passed"
    stays = f"{champion} stays the champion" if champion else "there still is no champion"
    reasons = _reasons(failed)
    sentence = {
        "promoted": f"{passing}. This student, {candidate}, replaces {champion} as the champion"
        f"{_gain(metrics, 'champion')}.",
        "cold_start": f"{passing}. There was no champion yet, so this student, {candidate}, becomes the first"
        f"{_gain(metrics, 'bm25')}.",
        "overridden": f"This student, {candidate}, was promoted by a person's decision although {reasons}.",
        "refused": f"This student, {candidate}, is not promoted, because {reasons}. So {stays}.",
        "unchanged": f"This student, {candidate}, is the champion itself, byte for byte{_origin(decided, name)}. "
        "So there is nothing to promote, and it stays the champion"
        + (f", though today's policy would not promote it: {reasons}." if failed else "."),
    }[decided["outcome"]]
    return {
        "tone": tone,
        "label": label,
        "sentence": sentence,
        "unchanged": unchanged,
        "checks": [*failed, *(check for check in checks if not check["failed"])],
        "failed": failed,
        "override": decided.get("override"),
        "policy": list(_settings(decided.get("policy", {}))),
        "looser": [{**entry, "shown": [_setting(entry[key]) for key in ("value", "default")]} for entry in looser],
    }


def _setting(value: Any) -> str:
    return "none" if value == [] else format_value(value)


def _origin(decided: Mapping[str, Any], name: str) -> str:
    """Which run promoted the champion, as a part of a sentence; a repeated run may meet its own promotion."""
    run = (decided.get("champion") or {}).get("run")
    return ", and was promoted by a run of this name" if run == name else f", promoted by the run {run}" if run else ""


def _check_row(check: Mapping[str, Any]) -> dict[str, str]:
    """A check's label, value and bound, and the reason that it is if it failed: what is wrong, and by how much."""
    name, value, bound = check["name"], check["value"], check["bound"]
    if name.startswith(MINIMUM):
        metric = metric_label(name.removeprefix(MINIMUM))
        label, reason = f"High enough in {metric}", f"its {metric} is too low"
    else:
        words = readable_name(name)
        label, reason = CHECKS.get(name, (words.capitalize(), f"the check “{words}” failed"))
    seen, limit = _format_pair(value, bound)
    if value is None:
        reason = f"not measured: {label}"
    elif isinstance(value, int | float) and isinstance(bound, int | float):
        if name == "test_set":
            needed = f"fewer than {limit} are allowed"
        elif name in BEYOND:
            needed = f"more than {limit} is needed"
        else:
            needed = f"at most {limit} is allowed" if value > bound else f"at least {limit} is needed"
        reason += f" ({seen}, where {needed})"
    return {"label": label, "reason": reason, "seen": seen, "limit": limit}


def _format_pair(value: Any, bound: Any) -> tuple[str, str]:
    """Both as texts, of as many digits as it takes to tell them apart."""
    texts = ((format_bound(value, digits), format_bound(bound, digits)) for digits in range(4, 17))
    return next(
        (pair for pair in texts if value == bound or pair[0] != pair[1]), (format_bound(value), format_bound(bound))
    )


def _reasons(failed: Sequence[Mapping[str, Any]]) -> str:
    reasons = [check["reason"] for check in failed[:REASONS]]
    if len(failed) > REASONS:
        more = len(failed) - REASONS
        reasons.append(f"{more} more {'check' if more == 1 else 'checks'} failed")
    return join_words(reasons) if reasons else "no check failed"


def _gain(metrics: Mapping[str, Any], baseline: str) -> str:
    """What the student is better or worse by, as the end of a sentence."""
    entry = _comparison(metrics, baseline, "ndcg_at_10")
    if not entry:
        return ""
    interval = f"{format_delta(entry['ci_low'], 3)} to {format_delta(entry['ci_high'], 3)}"
    return f": its nDCG@10 differs from that of {BASELINES[baseline]} by {format_delta(entry['delta'], 3)} ({interval})"


def _rivals(decided: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The student beside the champion and beside the anchor: a row for each that there is."""
    champion, anchor = ((decided.get(key) or {}).get("id", "") for key in ("champion", "anchor"))
    rival = "" if decided.get("outcome") == "unchanged" else champion
    timed = metrics.get("latency", {})
    return [
        {
            "label": SYSTEMS[name],
            "version": version,
            "ndcg_at_10": metrics["systems"].get(name, {}).get("ndcg_at_10"),
            "ece": metrics["systems"].get(name, {}).get("ece"),
            "p95_ms": timed.get(name, {}).get("p95_ms"),
            "entry": _comparison(metrics, name, "ndcg_at_10"),
            "anchor_too": anchor == champion,
        }
        for name, version in (("champion", rival), ("anchor", "" if anchor == champion else anchor))
        if version
    ]


def _comparison(metrics: Mapping[str, Any], baseline: str, metric: str) -> dict[str, Any] | None:
    for entry in metrics.get("comparisons", []):
        if (entry["system"], entry["baseline"], entry["metric"]) == ("student", baseline, metric):
            return entry
    return None


def _tiles(metrics: Mapping[str, Any], drifted: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few figures that most readers came for."""
    systems = metrics["systems"]
    others = [f"{SYSTEMS[name]} {format_metric(systems[name]['ndcg_at_10'])}" for name in BASELINES if name in systems]
    tiles = [
        {"label": "nDCG@10", "value": format_metric(systems["student"]["ndcg_at_10"]), "note": " · ".join(others)},
    ]
    for baseline in ("champion" if "champion" in systems else "teacher", "bm25"):
        entry = _comparison(metrics, baseline, "ndcg_at_10")
        if entry:
            note = f"nDCG@10, {format_delta(entry['ci_low'])} to {format_delta(entry['ci_high'])}"
            label = f"Against {BASELINES[baseline]}"
            tiles.append({"label": label, "value": format_delta(entry["delta"]), "note": note})
    timed = metrics.get("latency", {})
    if "student" in timed:
        note = f"{timed['student']['p50_ms']:.3g} ms at the median"
        if "champion" in timed:
            note += f"; champion {timed['champion']['p95_ms']:.3g} ms"
        tiles.append(
            {"label": "95 % of requests within", "value": f"{timed['student']['p95_ms']:.3g} ms", "note": note}
        )
    candidate = drifted["candidate"]
    moved = [readable_name(column["name"]) for column in candidate["columns"] if column["drifted"]]
    counted = sum(column["value"] is not None for column in candidate["columns"])
    tiles.append(
        {"label": "Columns drifted", "value": f"{len(moved)} of {counted}", "note": ", ".join(moved) or "none moved"}
    )
    return tiles


def _rank_row(entry: Mapping[str, Any]) -> str:
    return "better than" if entry["ci_low"] > 0 else "worse than" if entry["ci_high"] < 0 else "level with"


def _relevance(metrics: Mapping[str, Any]) -> dict[str, Any]:
    systems = {name: metrics["systems"][name] for name in SYSTEMS if name in metrics["systems"]}
    columns = []
    for key, metric in METRICS.items():
        known = [values[key] for values in systems.values() if values.get(key) is not None]
        best = (max(known) if metric.higher_is_better else min(known)) if known else None
        columns.append({"key": key, "metric": metric, "best": best})
    standings: dict[str, list[str]] = {}
    for baseline, label in BASELINES.items():
        entry = _comparison(metrics, baseline, "ndcg_at_10")
        if entry:
            standings.setdefault(_rank_row(entry), []).append(label)
    words = [f"{standing} {join_words(names)}" for standing, names in standings.items()]
    compared = [entry for entry in metrics.get("comparisons", []) if entry["system"] == "student"]
    near = [entry for entry in compared if entry["baseline"] != "random"]  # so far off that it hides the others
    shown = [key for key in COMPARED if any(entry["metric"] == key for entry in near)]
    return {
        "systems": [{"name": name, "label": SYSTEMS[name], "values": values} for name, values in systems.items()],
        "columns": columns,
        "within": sum(metric.is_within_queries for metric in METRICS.values()),
        "standing": f"By nDCG@10 the student is {', '.join(words)}." if words else "",
        "deltas": Markup(figures.plot_deltas(near, shown)) if shown else "",
        "comparisons": [
            {**entry, "baseline_label": SYSTEMS.get(entry["baseline"], entry["baseline"]), "metric_label": metric.label}
            for key, metric in METRICS.items()
            for entry in compared
            if entry["metric"] == key
        ],
        "confidence": metrics.get("protocol", {}).get("confidence", 0.95),
    }


def _slices(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the student does by kind of query, against each baseline; None where it was not measured."""
    slices = metrics.get("slices", {})
    if not slices.get("rows"):
        return None
    level = 1 - metrics.get("protocol", {}).get("confidence", 0.95)
    keys = list(
        dict.fromkeys((entry["baseline"], entry["metric"]) for row in slices["rows"] for entry in row["comparisons"])
    )
    order = {"champion": 0, "bm25": 1, "anchor": 2}
    keys.sort(key=lambda key: (order.get(key[0], len(order)), key[1] != "ndcg_at_10"))
    forests = []
    for baseline, metric in keys:
        if baseline in metrics["systems"]:
            rows = _forest(slices["rows"], baseline, metric, level)
            forests.append(
                {
                    "baseline": SYSTEMS[baseline],
                    "against": BASELINES[baseline],
                    "metric": metric_label(metric),
                    "rows": rows,
                    "sentence": _slices_told(rows, BASELINES[baseline], metric_label(metric)),
                    **_axis(rows),
                }
            )
    left_out = [
        f"{_slice_label(each['column'])} {each['value']} ({format_value(each['queries'])})"
        for each in slices.get("left_out", [])
    ]
    return {"forests": forests, "min_queries": slices["min_queries"], "left_out": left_out}


def _slice_label(column: str) -> str:
    return SLICES.get(column, readable_name(column).capitalize())


def _forest(rows: Sequence[Mapping[str, Any]], baseline: str, metric: str, level: float) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        for entry in row["comparisons"]:
            if (entry["baseline"], entry["metric"]) == (baseline, metric):
                sure = entry["p_holm"] is not None and entry["p_holm"] < level
                found.append(
                    {
                        **entry,
                        "column": _slice_label(row["column"]),
                        "value": row["value"],
                        "queries": row["queries"],
                        "pairs": row["pairs"],
                        "student": row["systems"].get("student", {}).get(metric),
                        "theirs": row["systems"].get(baseline, {}).get(metric),
                        "tone": "level" if not sure else "better" if entry["delta"] > 0 else "worse",
                    }
                )
    return found


def _axis(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Puts each row's interval on a common scale, in percent of its width, and says where zero and the ends are."""
    reach = 1.08 * max((abs(row[key]) for row in rows for key in ("ci_low", "ci_high")), default=0) or 0.01
    for row in rows:
        for key in ("ci_low", "delta", "ci_high"):
            row[f"{key}_at"] = round(50 + 50 * row[key] / reach, 2)
    return {"reach": reach}


def _slices_told(rows: Sequence[Mapping[str, Any]], baseline: str, metric: str) -> str:
    parts = []
    for tone in ("worse", "better"):
        named = [
            f"{row['column'].lower()} {row['value']} ({format_delta(row['delta'], 3)})"
            for row in rows
            if row["tone"] == tone
        ]
        if named:
            shown = [*named[:4], *([f"{len(named) - 4} more"] if len(named) > 4 else [])]
            parts.append(f"{tone} than {baseline} for {join_words(shown)}")
    if parts:
        return f"By {metric} the student is {', and '.join(parts)}."
    return f"By {metric} the student and {baseline} are level in all {len(rows)} slices, which are judged together."


def _judged(judgements: Path) -> dict[str, pa.Table]:
    return {split: schemas.read(judgements / f"{split}.parquet", schemas.JUDGED) for split in ("train", "dev", "test")}


def _queries(evaluation: Path, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where the student wins and loses, query by query; None where a system was not measured."""
    examples = metrics.get("examples") or {}
    if examples.get("baseline", "bm25") not in metrics["systems"]:  # the champion, which is the student
        examples = {}
    baseline = examples.get("baseline") or ("champion" if "champion" in metrics["systems"] else "bm25")
    table = schemas.read(evaluation / "per_query.parquet", schemas.PER_QUERY)
    student, other = (table.filter(pc.field("system") == name).sort_by("query_id") for name in ("student", baseline))
    if not student.num_rows or student["query_id"] != other["query_id"]:
        return None
    values = student["ndcg_at_10"].to_numpy() - other["ndcg_at_10"].to_numpy()
    return {
        "baseline": BASELINES[baseline],
        "wins": int((values > TIE).sum()),
        "ties": int((np.abs(values) <= TIE).sum()),
        "losses": int((values < -TIE).sum()),
        "total": len(values),
        "figure": Markup(figures.plot_query_deltas(values, BASELINES[baseline])),
        **{side: [_example(each, baseline) for each in examples.get(side, [])] for side in ("best", "worst")},
    }


def _example(example: Mapping[str, Any], baseline: str) -> dict[str, Any]:
    """One query as both systems rank it."""
    sides = (("student", "student"), ("baseline", baseline))
    lists = [{"label": SYSTEMS[system], "products": example[key]} for key, system in sides]
    return {"query": example["query"], "delta": example["delta"], "lists": lists}


def _training(trained: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    sentences = []
    for name, metrics in trained.items():
        curve = metrics["curve"]
        if not curve:
            continue
        best = max(curve, key=lambda row: row["dev_ndcg_at_10"])
        text = f"The {name} kept is that of step {best['step']} of {curve[-1]['step']} (dev nDCG@10 "
        text += f"{format_metric(best['dev_ndcg_at_10'])})"
        text += ", the last one: more epochs may help." if best is curve[-1] and len(curve) > 1 else "."
        sentences.append(text)
    drawn = {name: metrics for name, metrics in trained.items() if metrics["curve"]}
    return {"sentence": " ".join(sentences), "figure": Markup(figures.plot_learning_curves(drawn)) if drawn else ""}


def _calibration(metrics: Mapping[str, Any], evaluation: Path) -> dict[str, Any]:
    wanted = [name for name in ("teacher", "champion", "student") if name in metrics["systems"]]
    diagrams = {name: metrics["reliability"][name] for name in wanted if metrics.get("reliability", {}).get(name)}
    errors = [
        f"{SYSTEMS[name].lower()} {format_metric(metrics['systems'][name]['ece'])}"
        for name in diagrams
        if metrics["systems"][name].get("ece") is not None
    ]
    relevant_from = metrics.get("protocol", {}).get("relevant_from")
    table = schemas.read(evaluation / "pair_scores.parquet", schemas.PAIR_SCORES)
    parts = {}
    column = "probability" if "student" in diagrams else "score"
    for name in wanted:
        rows = table.filter(pc.field("system") == name)
        values = rows[column].drop_null().to_numpy()
        if relevant_from is not None and len(values) == rows.num_rows > 0:
            relevant = grades(rows["target"].to_numpy()) >= grades([relevant_from])[0]
            parts[name] = (values[relevant], values[~relevant])
    label = "probability given" if column == "probability" else "raw score"
    return {
        "errors": join_words(errors) if errors else "",
        "reliability": Markup(figures.plot_reliability(diagrams)) if diagrams else "",
        "scores": Markup(figures.plot_score_histograms(parts, label)) if parts else "",
        "scale": label,
        "distribution": [
            {"label": SYSTEMS[name], **spread}
            for name, spread in metrics.get("distribution", {}).items()
            if name in SYSTEMS
        ],
    }


def _teacher(folder: Path, labeled: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What held-out judgements say of the teacher, and what its labels are and took."""
    path = folder / "quality.json"
    quality = artifacts.read_json(path) if path.exists() else None
    histograms = {"judged, dev": quality["logits"]["histogram"]} if quality else {}
    shards = [shard.get("logits", {}).get("histogram") for shard in labeled["shards"]]
    if all(shards):
        histograms["labeled"] = _histogram_panel(shards)
    colors = {"judged, dev": "teacher", "labeled": "student"}
    return {
        "tiles": _label_tiles(labeled),
        "logits": Markup(figures.plot_logits(histograms, colors)) if histograms else "",
        "both": len(histograms) == 2,
        "dev": _dev(quality) if quality else None,
        "followed": _agreement_section(metrics.get("agreement")),
    }


def _agreement_section(agreement: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How closely the student follows its teacher on the test pairs."""
    if agreement is None:
        return None
    tiles = [
        {"label": label, "value": value, "note": note}
        for label, value, note in (
            ("Same order", format_metric(agreement["kendall"]), "Kendall's τ-b within queries, 1 is the same"),
            ("Same first product", format_percent(agreement["top_1"]), "of the queries"),
            ("Rank correlation", format_metric(agreement["spearman"]), "Spearman, over all pairs"),
            ("Correlation", format_metric(agreement["pearson"]), "Pearson, over all pairs"),
            ("Mean difference", format_metric(agreement["mean_difference"]), "between their probabilities"),
        )
    ]
    return {"pairs": agreement["pairs"], "tiles": tiles}


def _dev(quality: Mapping[str, Any]) -> dict[str, Any]:
    calibrated = quality["calibration"]
    diagram = {"teacher": calibrated["reliability"]}
    return {
        **quality,
        "systems": [SYSTEMS[name] for name in AGREEING],
        "agreement": _agreement(quality),
        "chosen": _calibration_text(calibrated),
        "reliability": Markup(figures.plot_reliability(diagram, {"teacher": "The teacher on dev"}, "teacher-dev")),
        "disagreements": quality["disagreements"]["top"],
        "disagreeing": quality["disagreements"]["count"],
    }


def _histogram_panel(histograms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of histograms on one grid, each cut to its own range."""
    width = histograms[0]["width"]
    starts = [round(one["low"] / width) for one in histograms]
    ends = [start + len(one["counts"]) for start, one in zip(starts, histograms, strict=True)]
    counts = np.zeros(max(ends) - min(starts), np.int64)
    for start, end, one in zip(starts, ends, histograms, strict=True):
        counts[start - min(starts) : end - min(starts)] += one["counts"]
    return {"width": width, "low": min(starts) * width, "counts": counts.tolist()}


def _label_tiles(labeled: Mapping[str, Any]) -> list[dict[str, str]]:
    shards = len(labeled["shards"])
    note = f"pairs of {format_value(labeled['queries'])} queries, in {shards} {'shard' if shards == 1 else 'shards'}"
    tiles = [{"label": "Labels", "value": format_value(labeled["rows"]), "note": note}]
    work = labeled.get("work")
    if not work:
        return tiles
    tokens = f"{format_value(work['tokens'])} tokens"
    if work["pairs"] and work["truncated"]:
        tokens += f"; {format_percent(work['truncated'] / work['pairs'])} of the pairs shortened to fit"
    if work["rows_per_second"]:
        pace = format_value(float(f"{work['rows_per_second']:.3g}"))
        tiles.append({"label": "Pairs a second", "value": pace, "note": tokens})
    tiles.append(
        {
            "label": "Device time",
            "value": format_duration(work["device_hours"] * 3600),
            "note": f"on {work['device']}" if work.get("device") else "all devices together",
        }
    )
    if work["price"] is not None:
        tiles.append(
            {"label": "Price", "value": f"{work['price']:,.2f}", "note": "at the price of an hour that was set"}
        )
    return tiles


def _agreement(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    slices = quality["agreement"]
    order = [name for name in STRATA if name in slices] + sorted(set(slices) - {*STRATA, "all"})
    rows = []
    for name in (*order, "all"):
        part = slices[name]
        cells = {}
        for metric in ("ndcg_at_10", "pair_accuracy"):
            values = [part[metric][system] for system in AGREEING]
            best = max((value for value in values if value is not None), default=None)
            cells[metric] = [{"value": value, "best": value is not None and value == best} for value in values]
        rows.append({**part, "name": name, "cells": cells, "thin": part["ranked_queries"] < quality["min_support"]})
    return rows


def _calibration_text(calibrated: Mapping[str, Any]) -> str:
    """What turns the teacher's logits into probabilities, and why that."""
    method, chosen = calibrated["method"], calibrated.get("chosen_by")
    if method == "none":
        return "It was not calibrated: the probabilities are the sigmoid of its logits."
    by = f"Its logits become probabilities by {CALIBRATIONS[method]}"
    if chosen is None:
        return f"{by}, as configured."
    if "log_loss" not in chosen:
        return f"{by}: {chosen['rows']} pairs of {chosen['queries']} queries are too few to fit more than a line."
    other = "isotonic" if method == "platt" else "platt"
    reached, others = (format_metric(chosen["log_loss"][name], 4) for name in (method, other))
    gain, error = (format_metric(chosen[key], 4) for key in ("gain", "standard_error"))
    against = f"on queries left out of the fit its log loss is {reached}, that of {CALIBRATIONS[other]} {others}"
    if method == "isotonic":
        return f"{by}: {against}, a gain of {gain} with a standard error of {error}."
    if chosen["gain"] > 0:
        return f"{by}: {against}, a gain of {gain} that is within its standard error of {error}."
    return f"{by}: {against}."


def _latency(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    timed = {name: metrics.get("latency", {}).get(name) for name in ("student", "champion", "anchor")}
    timed = {name: values for name, values in timed.items() if values}
    if not timed:
        return None
    return {
        "figure": Markup(figures.plot_latency(timed)),
        "rows": [{"label": SYSTEMS[name], "p99_ms": None, **values} for name, values in timed.items()],
    }


def _drift(drifted: Mapping[str, Any], *, summary: bool) -> dict[str, Any]:
    parts = [("The candidate", drifted["candidate"])]
    if drifted.get("champion"):
        parts.append(("The champion", drifted["champion"]))
    return {
        "summary": summary,
        "parts": [
            {
                "comparable": True, "embedding": None, **part, "label": label, "groups": _drift_groups(part),
                "moved": [readable_name(column["name"]) for column in part["columns"] if column["drifted"]],
                "fresh": part.get("examples", {}).get("queries")
                or [{"query": query, "rows": None} for query in part["new_queries"]],
                "counted": sum(column["value"] is not None for column in part["columns"]),
            }
            for label, part in parts
        ],
    }  # fmt: skip


def _drift_groups(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The columns by group, those nearest to their limits first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for column in part["columns"]:
        groups.setdefault(column.get("group", ""), []).append(_drift_column(column))
    known = [name for name in GROUPS if name in groups]
    ordered = [*known, *(name for name in groups if name not in GROUPS)]
    return [
        {"label": GROUPS.get(name, name), "columns": sorted(groups[name], key=lambda row: row["reach"], reverse=True)}
        for name in ordered
    ]


def _drift_column(column: Mapping[str, Any]) -> dict[str, Any]:
    value, bound = column["value"], column["threshold"]
    # The bar's middle is the limit; what two samples of one distribution would give is its left end.
    least = CHANCE if column.get("group") == "embedding" else 0.0
    reach = -1.0
    if value is not None:
        reach = round(100 * min(max((value - least) / (bound - least) / 2, 0), 1), 1) if bound > least else 100.0
    return {
        **column,
        "label": readable_name(column["name"]),
        "reach": reach,
        "moved": column.get("moved", []),
        "means": [column.get("reference_mean"), column.get("current_mean")],
        "shift": column.get("shift", ""),
        "note": column.get("note", ""),
    }


def _data(
    profile: Mapping[str, Any],
    judged: Mapping[str, pa.Table],
    protocol: Mapping[str, Any],
    labeled: Mapping[str, Any],
) -> dict[str, Any]:
    splits = [
        {
            "name": name,
            "pairs": table.num_rows,
            "queries": len(table["query_id"].unique()),
            "target": float(np.mean(table["target"].to_numpy())) if table.num_rows else None,
        }
        for name, table in judged.items()
    ]
    for key, label in UNUSED.items():
        counts = profile.get("splits", {}).get(key)
        if counts and counts["pairs"]:
            splits.append({"name": label, **counts, "target": None})
    targets = np.concatenate([table["target"].to_numpy() for table in judged.values()])
    return {
        "splits": splits,
        "pairs": sum(table.num_rows for table in judged.values()),
        "queries": sum(len(table["query_id"].unique()) for table in judged.values()),
        "labeled": {**labeled, "shards": len(labeled["shards"])},
        "source": protocol.get("source", ""),
        "targets": Markup(figures.plot_targets(targets, protocol.get("relevant_from"))),
        "tables": [_table(key, profile[key]) for key in PROFILED if profile.get(key)],
        "left_out": [(f"{each['where']}: {each['what']}", each["rows"]) for each in profile.get("dropped", [])],
    }


def _table(key: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A section of the profile as a table; where its values are mappings of one form, their keys are the columns."""
    nested = [part for part in value.values() if isinstance(part, dict)]
    columns = list(nested[0]) if len(nested) > 1 and all(list(part) == list(nested[0]) for part in nested) else []
    rows, notes = [], []
    for name, part in value.items():
        if columns and isinstance(part, dict):
            rows.append((readable_name(name), [format_value(part[column]) for column in columns]))
        elif columns:
            notes.append(f"{readable_name(name)}: {format_value(part)}")
        else:
            rows.append((readable_name(name), [_flat(part)]))
    return {
        "name": readable_name(key),
        "columns": [readable_name(column) for column in columns],
        "rows": rows,
        "note": "; ".join(notes),
    }


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{readable_name(name)} {format_value(part)}" for name, part in value.items())
    return format_value(value)


def _stages(folders: Sequence[Path]) -> dict[str, Any]:
    rows = []
    for folder in folders:
        record = artifacts.read_record(folder)
        rows.append(
            {
                **record,
                "runtime": record.get("facts", {}).get("runtime", ""),
                "digest": record["sealed"],
                "config": json.dumps(record.get("config", {}), indent=2, ensure_ascii=False),
            }
        )
    longest = max(row["seconds"] for row in rows)
    for row in rows:
        row["share"] = round(100 * row["seconds"] / longest, 1) if longest else 0
    return {
        "rows": rows,
        "total": sum(row["seconds"] for row in rows),
        "peak": max(row["peak_memory_mib"] for row in rows),
        "started": max(row["started"] for row in rows),
    }


def _test_set(metrics: Mapping[str, Any], decided: Mapping[str, Any]) -> dict[str, Any] | None:
    """The judged test rows, and how many candidates have been held against them."""
    evaluated = decided.get("test_set") or {}
    known = {**metrics.get("test_set", {}), **evaluated}
    if not known:
        return None
    count, limit = known.get("test_evaluations"), known.get("warn_after")
    return {
        **dict.fromkeys(("digest", "queries", "pairs", "judgements", "draw", "test_evaluations", "warn_after")),
        **known,
        "worn": bool(count and limit and count > limit),
    }


def _lineage(decided: Mapping[str, Any], inputs: Mapping[str, str]) -> list[tuple[str, str]]:
    """Ids of the versions, and digests of all that the page was made from."""
    named = [(key, (decided.get(key) or {}).get("id", "")) for key in ("candidate", "champion", "anchor")]
    return [(key, value) for key, value in (*named, *inputs.items()) if value]


def _settings(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Settings as rows of a name and a value, however deeply they are nested."""
    for key, value in values.items():
        name = f"{path}, {readable_name(key)}" if path else readable_name(key)
        if isinstance(value, Mapping) and value:
            yield from _settings(value, name)
        elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
            for number, each in enumerate(value, 1):
                yield from (
                    _settings(each, f"{name} {number}")
                    if isinstance(each, Mapping)
                    else [(f"{name} {number}", format_value(each))]
                )
        else:
            yield name, "none" if value == {} else _setting(value)
