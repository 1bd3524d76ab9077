"""The `monitor` stage: between runs, has traffic moved away from the champion? It needs no judgements.

Two checks compare the newest traffic with that of the champion's promotion: drift (`drift.measure`, with the champion's
scores on both) and, if its teacher is configured, how much teacher and champion disagree (`drift.champion_scores`).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from distilrank.config import Drift, Monitor, Registry
from distilrank.core import artifacts, progress
from distilrank.drift.champion_scores import DISAGREEMENT, SCORES, describe_disagreement
from distilrank.drift.compare import drifted_columns
from distilrank.drift.measure import measure_champion_drift
from distilrank.drift.workspace import push_to_workspace

STAGE = "monitor"


def monitor_champion(
    config: Monitor,
    limits: Drift,
    registry: Registry,
    *,
    traffic: Path,
    scores: Path,
    champion: str,
    name: str,
    newest_end: str,
    output: Path,
) -> bool:
    """Compare the newest traffic with the champion's reference, and decide whether to retrain.

    Args:
        config: the disagreement that raises an alarm, and what an alarm does.
        limits: when traffic counts as drifted.
        registry: where the champion is fetched from.
        traffic: folder with `current.parquet`.
        scores: folder that `champion_scores.score_newest` wrote.
        champion: version id.
        name: the run's name.
        newest_end: end of the newest traffic, ISO 8601.
        output: folder for `monitor.json`, `metrics.prom` (Prometheus' text format), and `drift.json`, `drift.html`,
            `summary.html` and `snapshot.json` as the drift stage writes them.

    Returns:
        Whether an alarm was raised that the configuration answers by `distill`.

    Raises:
        InputError: a folder is damaged or incomplete.
    """
    with artifacts.stage(STAGE, output, config=config, inputs={"traffic": traffic, "scores": scores}) as record:
        record.inputs |= {
            "traffic": artifacts.verify(traffic),
            "scores": artifacts.verify(scores),
            "champion": champion,
        }
        part = measure_champion_drift(
            limits, registry, traffic=traffic, scores=scores / SCORES, champion=champion, output=output
        )
        checks = [_check_drift(limits, part)]
        disagreement = artifacts.read_json(scores / DISAGREEMENT) if (scores / DISAGREEMENT).exists() else None
        if disagreement:
            checks.append(_check_disagreement(config, disagreement))
        failed = [check["name"] for check in checks if not check["passed"]]
        alarm = bool(failed)
        result = {
            "champion": champion,
            "newest_end": newest_end,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "alarm": alarm,
            "checks": checks,
            "disagreement": disagreement,
        }
        artifacts.write_json(output / "monitor.json", result)
        _write_metrics(output / "metrics.prom", result, part)
        artifacts.seal(output)
        push_to_workspace(limits, registry, drift=output, name=name, newest_end=newest_end)
        for check in checks:
            progress.log_event(STAGE, "note", "passed" if check["passed"] else "ALARM", check["name"], check["detail"])
        retrain = alarm and config.retrain == "on_alarm"
        progress.log_event(STAGE, "outcome", json.dumps({"alarm": alarm, "failed": failed, "retrain": retrain}))
        record.facts.update(alarm=alarm, share=part["share"])
        return retrain


# Checks -----------------------------------------------------------------------------------------------------------


def _check_drift(limits: Drift, part: dict[str, Any]) -> dict[str, Any]:
    detail = part["note"]
    if part["comparable"]:
        detail = (
            f"{', '.join(drifted_columns(part)) or 'no column'} drifted since the champion was promoted "
            f"({100 * part['share']:.3g} % of the columns; an alarm takes one of "
            f"{', '.join(limits.alarm) or 'no group'}, or more than {100 * limits.share:g} %)"
        )
    return {
        "name": "drift",
        "passed": part["comparable"] and not part["alarm"],
        "value": part["share"],
        "bound": limits.share,
        "detail": detail,
    }


def _check_disagreement(config: Monitor, disagreement: dict[str, Any]) -> dict[str, Any]:
    bound = config.max_disagreement
    return {
        "name": "disagreement",
        "passed": bool(disagreement["ci_low"] < bound or bound == 1),
        "value": disagreement["ci_low"],
        "bound": bound,
        "detail": f"{describe_disagreement(disagreement)}; the lower end must be below {bound:g}",
    }


def _write_metrics(path: Path, result: dict[str, Any], part: dict[str, Any]) -> None:
    """Write the figures for a Prometheus that collects text files."""
    metrics = CollectorRegistry()
    alarm = Gauge("distilrank_monitor_alarm", "1 where the check fails", ["check"], registry=metrics)
    for check in result["checks"]:
        alarm.labels(check["name"]).set(not check["passed"])
    comparable = Gauge("distilrank_monitor_comparable", "1 where there was something to compare", registry=metrics)
    comparable.set(part["comparable"])
    Gauge("distilrank_monitor_drift_share", "Share of the columns that drifted", registry=metrics).set(part["share"])
    distance = Gauge(
        "distilrank_monitor_distance", "Distance from the champion's reference", ["column"], registry=metrics
    )
    for column in part["columns"]:
        if column["value"] is not None:
            distance.labels(column["name"]).set(column["value"])
    if result["disagreement"]:
        disagreement = Gauge(
            "distilrank_monitor_disagreement",
            "Mean absolute difference of teacher's and champion's probability",
            registry=metrics,
        )
        disagreement.set(result["disagreement"]["newest"]["mean"])
    checked = Gauge("distilrank_monitor_time_seconds", "Time of this check, in seconds since 1970", registry=metrics)
    checked.set(datetime.fromisoformat(result["at"]).timestamp())
    write_to_textfile(str(path), metrics)
