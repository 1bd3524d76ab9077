"""Sections at the top of the report: the decision with its reasons, all checks, and the versions in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distilrank.promotion.checks import failed as failed_checks
from distilrank.rendering.formatting import (
    format_bound,
    format_delta,
    format_interval,
    format_metric,
    format_milliseconds,
    format_percent,
    join_words,
    readable_name,
)
from distilrank.rendering.labels import BASELINES, SYSTEMS, metric_label
from distilrank.report.comparisons import find_comparison
from distilrank.report.provenance import format_setting, setting_rows

OUTCOMES = {
    "promoted": ("good", "Promoted"),
    "cold_start": ("good", "Promoted as the first champion"),
    "overridden": ("warn", "Promoted by override"),
    "refused": ("bad", "Refused"),
    "unchanged": ("good", "Unchanged"),
}
"""Tone and heading of the banner, by outcome."""

CHECKS = {
    "enough_queries": ("Enough test queries", "too few test queries support the decision"),
    "enough_judgements": ("Enough judgements", "too few judgements support the decision"),
    "lift_over_bm25": ("Better than BM25", "it is not clearly better than BM25"),
    "lift_over_random": ("Better than random order", "it is not clearly better than random order"),
    "teacher_margin": ("Close to its teacher", "it may be too far behind its teacher"),
    "calibration": ("Calibrated probabilities", "its probabilities are poorly calibrated"),
    "score_collapse": ("Scores distinguish products", "its scores barely distinguish products"),
    "onnx_parity": ("ONNX files rank like the model", "its ONNX files rank differently from the model"),
    "latency": ("Fast enough", "it is too slow"),
    "drift": ("Trained on traffic like today's", "the newest traffic differs too much from its training data"),
    "embedding_drift": (
        "Trained on texts like today's",
        "the texts of the newest traffic differ too much from its training data",
    ),
    "freshness": ("Trained on recent traffic", "its traffic data is out of date"),
    "not_inferior_to_champion": ("Not worse than the champion", "it may be worse than the champion"),
    "superior_to_champion": ("Better than the champion", "it is not clearly better than the champion"),
    "not_inferior_to_anchor": ("Not worse than the anchor", "it may be worse than the anchor"),
    "slices": ("No slice of queries got worse", "some slices of queries got worse"),
    "protocol": ("Evaluated as the policy requires", "it was not evaluated as the policy requires"),
    "near_duplicates": (
        "Test queries differ from training queries",
        "too many test queries are near duplicates of training queries",
    ),
    "above_chance": ("Policy asks for more than chance", "the policy asks for no more than random order reaches"),
    "test_set": ("Test set not overused", "its test set has been used too often"),
    "new": ("Differs from the champion", "there is nothing new to promote"),
}
"""Label of each check, and the reason shown if it fails, by check name."""

STRICT_CHECKS = ("above_chance", "lift_over_bm25", "lift_over_random", "superior_to_champion")
"""Checks whose value must be above the bound; for the others it may equal the bound."""

MINIMUM = "minimum_"
"""Prefix of the names of checks for a minimum; the key of the metric follows."""

MAX_REASONS = 2
"""Largest number of failed checks that the banner's sentence names; the list below it has all."""


def verdict_section(verdict: Mapping[str, Any], metrics: Mapping[str, Any], run_name: str) -> dict[str, Any]:
    """Build the banner, the table of checks and the policy.

    Args:
        verdict: content of verdict.json.
        metrics: content of metrics.json of the evaluate stage.
        run_name: name of the run that the report is about.
    """
    tone, heading = OUTCOMES[verdict["outcome"]]
    failed_rows = failed_checks(verdict)
    checks = [{**check, **check_row(check), "failed": check in failed_rows} for check in verdict["checks"]]
    failed = [check for check in checks if check["failed"]]
    is_unchanged = verdict["outcome"] == "unchanged"
    return {
        "tone": "warn" if is_unchanged and failed else tone,
        "label": heading,
        "sentence": _banner_text(verdict, metrics, failed, run_name),
        "unchanged": is_unchanged,
        "checks": [*failed, *(check for check in checks if not check["failed"])],
        "failed": failed,
        "override": verdict.get("override"),
        "policy": setting_rows(verdict.get("policy", {})),
        "looser": [
            {"key": entry["key"], "value": format_setting(entry["value"]), "default": format_setting(entry["default"])}
            for entry in verdict.get("looser") or []
        ],
    }


def _banner_text(
    verdict: Mapping[str, Any], metrics: Mapping[str, Any], failed: Sequence[Mapping[str, Any]], run_name: str
) -> str:
    candidate, champion = ((verdict.get(key) or {}).get("id", "") for key in ("candidate", "champion"))
    student, reasons = f"The student {candidate}", _reasons_text(failed)
    all_passed = f"All {len(verdict['checks'])} checks passed."
    remaining = f"{champion} remains the champion." if champion else "There is still no champion."
    match verdict["outcome"]:
        case "promoted":
            return f"{all_passed} {student} replaces {champion} as the champion{_gain_text(metrics, 'champion')}."
        case "cold_start":
            return f"{all_passed} {student} becomes the first champion{_gain_text(metrics, 'bm25')}."
        case "overridden":
            return f"{student} was promoted by override, although {reasons}."
        case "unchanged":
            doubt = f", although today's policy would not promote it: {reasons}" if failed else ""
            return (
                f"{student} is byte for byte identical to the champion{_origin_text(verdict, run_name)}. "
                f"There is nothing to promote, and it remains the champion{doubt}."
            )
        case _:
            return f"{student} was not promoted because {reasons}. {remaining}"


def _origin_text(verdict: Mapping[str, Any], run_name: str) -> str:
    """Name the run that promoted the champion, as the end of a clause; a repeated run may have promoted it itself."""
    run = (verdict.get("champion") or {}).get("run")
    if not run:
        return ""
    return f", which was promoted by {'a run of the same name' if run == run_name else f'the run {run}'}"


def _gain_text(metrics: Mapping[str, Any], baseline: str) -> str:
    """Say how much better or worse the student is than the baseline, as the end of a sentence."""
    entry = find_comparison(metrics, baseline, "ndcg_at_10")
    if not entry:
        return ""
    size = format_metric(abs(entry["delta"]))
    relation = f"is {size} {'higher' if entry['delta'] > 0 else 'lower'} than" if float(size) else "equals"
    interval = format_interval(entry["ci_low"], entry["ci_high"], 3)
    return f": its nDCG@10 {relation} {BASELINES[baseline]}'s ({_confidence_text(metrics)} CI {interval})"


def _confidence_text(metrics: Mapping[str, Any]) -> str:
    return format_percent(metrics.get("protocol", {}).get("confidence", 0.95))


def check_row(check: Mapping[str, Any]) -> dict[str, str]:
    """Format a check for the table.

    Returns:
        `label`: requirement of the check; `shown_value` and `shown_bound`; `reason`: why it failed, if it did, to
        follow "because".
    """
    name, value, bound = check["name"], check["value"], check["bound"]
    if name.startswith(MINIMUM):
        metric = metric_label(name.removeprefix(MINIMUM))
        label, reason = f"High enough {metric}", f"its {metric} is too low"
    else:
        words = readable_name(name)
        label, reason = CHECKS.get(name, (words.capitalize(), f"the check “{words}” failed"))
    shown_value, shown_bound = _format_pair(value, bound)
    if value is None:
        reason = f"“{label}” could not be checked"
    elif isinstance(value, int | float) and isinstance(bound, int | float):
        relation = "above" if name in STRICT_CHECKS else "at most" if value > bound else "at least"
        reason += f" ({shown_value}, must be {relation} {shown_bound})"
    return {"label": label, "reason": reason, "shown_value": shown_value, "shown_bound": shown_bound}


def _format_pair(value: Any, bound: Any) -> tuple[str, str]:
    """Format value and bound with enough digits to distinguish them."""
    pairs = ((format_bound(value, digits), format_bound(bound, digits)) for digits in range(4, 17))
    return next(
        (pair for pair in pairs if value == bound or pair[0] != pair[1]), (format_bound(value), format_bound(bound))
    )


def _reasons_text(failed: Sequence[Mapping[str, Any]]) -> str:
    """Join the reasons of failed checks, to follow "because"."""
    reasons = [check["reason"] for check in failed[:MAX_REASONS]]
    if len(failed) > MAX_REASONS:
        more = len(failed) - MAX_REASONS
        reasons.append(f"{more} more {'check' if more == 1 else 'checks'} failed")
    return join_words(reasons) if reasons else "no check failed"


def incumbent_rows(verdict: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List champion and anchor for comparison with the student, if they exist and are not the student."""
    champion, anchor = ((verdict.get(key) or {}).get("id", "") for key in ("champion", "anchor"))
    versions = {
        "champion": "" if verdict.get("outcome") == "unchanged" else champion,
        "anchor": "" if anchor == champion else anchor,
    }
    return [
        {
            "label": SYSTEMS[name],
            "version": version,
            "ndcg_at_10": metrics["systems"].get(name, {}).get("ndcg_at_10"),
            "ece": metrics["systems"].get(name, {}).get("ece"),
            "p95_ms": metrics.get("latency", {}).get(name, {}).get("p95_ms"),
            "comparison": find_comparison(metrics, name, "ndcg_at_10"),
            "is_anchor_too": anchor == champion,
        }
        for name, version in versions.items()
        if version
    ]


def headline_tiles(metrics: Mapping[str, Any], drift: Mapping[str, Any]) -> list[dict[str, str]]:
    """Build the tiles with the key results, each with a label, a value and a note."""
    systems, timings = metrics["systems"], metrics.get("latency", {})
    others = [
        f"{SYSTEMS[name]}\N{NO-BREAK SPACE}{format_metric(systems[name]['ndcg_at_10'])}"
        for name in BASELINES
        if name in systems
    ]
    tiles = [
        {"label": "nDCG@10", "value": format_metric(systems["student"]["ndcg_at_10"]), "note": ", ".join(others)},
    ]
    for baseline in ("champion" if "champion" in systems else "teacher", "bm25"):
        entry = find_comparison(metrics, baseline, "ndcg_at_10")
        if entry:
            interval = format_interval(entry["ci_low"], entry["ci_high"], 3)
            tiles.append(
                {
                    "label": f"Against {BASELINES[baseline]}",
                    "value": format_delta(entry["delta"], 3),
                    "note": f"nDCG@10, {_confidence_text(metrics)} CI {interval}",
                }
            )
    if "student" in timings:
        note = f"median {format_milliseconds(timings['student']['p50_ms'])}"
        if "champion" in timings:
            note += f"; p95 of the champion {format_milliseconds(timings['champion']['p95_ms'])}"
        value = format_milliseconds(timings["student"]["p95_ms"])
        tiles.append({"label": "p95 of a request", "value": value, "note": note})
    columns = drift["candidate"]["columns"]
    drifted = [readable_name(column["name"]) for column in columns if column["drifted"]]
    compared = sum(column["value"] is not None for column in columns)
    tiles.append(
        {"label": "Drifted columns", "value": f"{len(drifted)} of {compared}", "note": ", ".join(drifted) or "none"}
    )
    return tiles


def test_set_section(metrics: Mapping[str, Any], verdict: Mapping[str, Any]) -> dict[str, Any] | None:
    """Describe the test set and the number of candidates evaluated on it; None if neither is known."""
    facts = {**metrics.get("test_set", {}), **(verdict.get("test_set") or {})}
    if not facts:
        return None
    evaluations, limit = facts.get("test_evaluations"), facts.get("warn_after")
    keys = ("digest", "queries", "pairs", "judgements", "draw", "test_evaluations", "warn_after")
    return {**dict.fromkeys(keys), **facts, "is_overused": bool(evaluations and limit and evaluations > limit)}
