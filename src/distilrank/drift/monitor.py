"""Has traffic moved away from the champion? Asked between runs, of the newest traffic alone; no judgement is needed.

Two things are held against the champion's promotion: its drift (`distilrank.drift`, scores by the champion on both
sides) and, where its teacher is at hand, how far teacher and champion are apart (`distilrank.drift.champion_scores`).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from distilrank.config import Drift, Monitor, Registry
from distilrank.core import artifacts, progress
from distilrank.drift.champion_scores import DISAGREEMENT, SCORES, told
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
    """Hold the newest traffic against the champion's reference; write what was found, and tell whether to retrain.

    Args:
        limits: when traffic counts as drifted.
        traffic: folder with `current.parquet`.
        scores: folder that `newest.score` wrote.
        champion: version id.
        name: the run's.
        newest_end: ISO 8601, the end of the newest traffic.
        output: folder for `monitor.json`, `metrics.prom` (Prometheus' text format), and `drift.json`, `drift.html`,
            `summary.html`, `snapshot.json` as the drift stage writes them.

    Returns:
        Whether there is an alarm that the configuration wants answered by `distill`.

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
        apart = artifacts.read_json(scores / DISAGREEMENT) if (scores / DISAGREEMENT).exists() else None
        checks = [_drift(limits, part), *([_disagreement(config, apart)] if apart else [])]
        alarm = not all(check["passed"] for check in checks)
        found = {
            "champion": champion,
            "newest_end": newest_end,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "alarm": alarm,
            "checks": checks,
            "disagreement": apart,
        }
        artifacts.write_json(output / "monitor.json", found)
        _write_metrics(output / "metrics.prom", found, part)
        artifacts.seal(output)
        push_to_workspace(limits, registry, drift=output, name=name, newest_end=newest_end)
        for check in checks:
            progress.log_event(STAGE, "note", "passed" if check["passed"] else "ALARM", check["name"], check["detail"])
        retrain = alarm and config.retrain == "on_alarm"
        failed = [check["name"] for check in checks if not check["passed"]]
        progress.log_event(STAGE, "outcome", json.dumps({"alarm": alarm, "failed": failed, "retrain": retrain}))
        record.facts.update(alarm=alarm, share=part["share"])
        return retrain


# What is found ----------------------------------------------------------------------------------------------------


def _drift(limits: Drift, part: dict[str, Any]) -> dict[str, Any]:
    drifted = [column["name"] for column in part["columns"] if column["drifted"]]
    detail = part["note"] if not part["comparable"] else (
        f"{', '.join(drifted) or 'no column'} drifted since the champion was promoted ({100 * part['share']:.3g} % of "
        f"the columns; an alarm takes one of {', '.join(limits.alarm) or 'no group'}, or more than "
        f"{100 * limits.share:g} %)"
    )  # fmt: skip
    return {
        "name": "drift",
        "passed": part["comparable"] and not part["alarm"],
        "value": part["share"],
        "bound": limits.share,
        "detail": detail,
    }


def _disagreement(config: Monitor, found: dict[str, Any]) -> dict[str, Any]:
    bound = config.max_disagreement
    return {
        "name": "disagreement",
        "passed": bool(found["ci_low"] < bound or bound == 1),
        "value": found["ci_low"],
        "bound": bound,
        "detail": f"{told(found)}; the lower end must be below {bound:g}",
    }


def _write_metrics(path: Path, found: dict[str, Any], part: dict[str, Any]) -> None:
    """The figures for a Prometheus that collects text files."""
    metrics = CollectorRegistry()
    alarm = Gauge("distilrank_monitor_alarm", "1 where the check fails", ["check"], registry=metrics)
    for check in found["checks"]:
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
    if found["disagreement"]:
        apart = Gauge(
            "distilrank_monitor_disagreement",
            "Mean absolute difference of teacher's and champion's probability",
            registry=metrics,
        )
        apart.set(found["disagreement"]["newest"]["mean"])
    at = Gauge("distilrank_monitor_time_seconds", "When this was found, in seconds since 1970", registry=metrics)
    at.set(datetime.fromisoformat(found["at"]).timestamp())
    write_to_textfile(str(path), metrics)
