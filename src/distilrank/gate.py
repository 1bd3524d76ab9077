"""The decision whether a student is good enough to replace what is in use.

Differences between systems are judged by their interval, not by the figure itself: a lift counts when even its lower
end is above the bound, and "not worse" means that the lower end is within a margin that was stated beforehand.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from distilrank import artifacts, progress
from distilrank import registry as registries
from distilrank.config import Gate, Registry
from distilrank.model_card import PARITY

Outcome = Literal["promoted", "cold_start", "overridden", "refused"]

METRICS = {"ndcg_at_5": "nDCG@5", "ndcg_at_10": "nDCG@10", "mrr": "MRR", "pair_accuracy": "pair accuracy"}
BASELINES = {"bm25": "BM25", "random": "random ordering", "teacher": "its teacher", "champion": "the champion"}


@dataclass(frozen=True)
class Check:
    """One condition of the policy: the value seen, the bound that it is held to, and a sentence on it.

    `value` is None where the evaluation does not have it: such a check has failed.
    """

    name: str
    passed: bool
    value: float | str | None
    bound: float | str | None
    detail: str


@dataclass(frozen=True)
class Verdict:
    """What was decided, and every check that it rests on."""

    outcome: Outcome
    checks: tuple[Check, ...]
    candidate: dict[str, Any]
    champion: dict[str, Any] | None

    @property
    def promoted(self) -> bool:
        """Whether the candidate becomes the champion."""
        return self.outcome != "refused"

    def to_json(self) -> dict[str, Any]:
        """The content of `verdict.json`."""
        return {
            "outcome": self.outcome,
            "promoted": self.promoted,
            "checks": [asdict(check) for check in self.checks],
            "candidate": self.candidate,
            "champion": self.champion,
        }


def decide(
    policy: Gate,
    *,
    metrics: dict[str, Any],
    drift: dict[str, Any],
    candidate: dict[str, Any],
    champion: dict[str, Any] | None,
    parity: dict[str, Any] | None = None,
) -> Verdict:
    """Hold a candidate to the policy; a pure function.

    Args:
        metrics: content of `metrics.json`; a comparison that it lacks is a failed check.
        drift: content of `drift.json`; only the candidate's part counts. A drifted champion is a reason to replace it.
        candidate: `id` of the version that the student would become, and anything worth keeping beside it.
        champion: likewise for the version in use, scored on the same rows in `metrics`; None: there is none.
        parity: content of the student's `onnx/parity.json`; None: it was not exported.
    """
    measured = _Measured(policy.metric, metrics)
    checks = [_enough_queries(policy, measured)]
    if policy.min_value > 0:
        checks.append(_min_value(policy, measured))
    for name, baseline, bound in (
        ("lift_over_bm25", "bm25", policy.lift_over_bm25),
        ("lift_over_random", "random", policy.lift_over_random),
    ):
        if bound > -1:
            checks.append(measured.difference(name, baseline, bound, strictly=True))
    if policy.teacher_margin < 1:
        checks.append(measured.difference("teacher_margin", "teacher", 0 - policy.teacher_margin, strictly=False))
    checks += [_calibration(policy, measured), _drift(policy, drift)]
    if parity is not None:
        checks.append(_exported(policy, parity))
    if champion is not None:
        margin = 0 - policy.champion_margin
        checks.append(measured.difference("not_inferior_to_champion", "champion", margin, strictly=False))
    checks.append(_new(candidate, champion))
    passed = all(check.passed for check in checks)
    outcome: Outcome = "refused" if not passed else "promoted" if champion is not None else "cold_start"
    return Verdict(outcome, tuple(checks), candidate, champion)


def gate(
    config: Gate, registry: Registry, *, evaluation: Path, drift: Path, student: Path, champion: str, output: Path
) -> bool:
    """Decide on a student and write `verdict.json`.

    Args:
        evaluation: folder with `metrics.json`.
        drift: folder with `drift.json`.
        student: the sealed student; its digest gives the id of the version that it would become.
        champion: id of the version that `evaluation` compared with; empty: there was none.
        output: folder for `verdict.json`.

    Returns:
        Whether the student is to be promoted.

    Raises:
        InputError: a file is missing or damaged, or the registry has no such champion.
    """
    with artifacts.stage("gate", output, config=config) as record:
        digests = {
            name: artifacts.sealed_digest(folder)
            for name, folder in (("evaluation", evaluation), ("drift", drift), ("student", student))
        }
        record.inputs |= {**digests, "champion": champion}
        artifacts.verify(evaluation, only=["metrics.json"])
        artifacts.verify(drift, only=["drift.json"])
        exported = PARITY.as_posix() in artifacts.read_json(student / artifacts.SEAL)["files"]
        if exported:
            artifacts.verify(student, only=[PARITY.as_posix()])
        replaced = registries.open(registry.uri).manifest(champion) if champion else None
        verdict = decide(
            config,
            metrics=artifacts.read_json(evaluation / "metrics.json"),
            drift=artifacts.read_json(drift / "drift.json"),
            candidate={"id": registries.version_id(digests["student"]), "digest": digests["student"]},
            champion=replaced and {"id": replaced["id"], "created": replaced["created"]},
            parity=artifacts.read_json(student / PARITY) if exported else None,
        )
        artifacts.write_json(output / "verdict.json", verdict.to_json())
        for check in verdict.checks:
            progress.announce("gate", "note", "passed" if check.passed else "FAILED", check.name, check.detail)
        progress.announce("gate", "note", f"{verdict.candidate['id']}: {verdict.outcome.replace('_', ' ')}")
        record.facts.update(
            outcome=verdict.outcome, failed=[check.name for check in verdict.checks if not check.passed]
        )
        return verdict.promoted


class _Measured:
    """What an evaluation says of the student by one metric."""

    def __init__(self, metric: str, metrics: dict[str, Any]) -> None:
        self.metric, self.label = metric, METRICS[metric]
        self.systems = metrics.get("systems", {})
        confidence = _number(metrics.get("protocol", {}).get("confidence"))
        self.interval = "interval" if confidence is None else f"{100 * confidence:g} % interval"
        self.comparisons = {
            row["baseline"]: row
            for row in metrics.get("comparisons", [])
            if row["system"] == "student" and row["metric"] == metric
        }

    def value(self, system: str, metric: str) -> float | None:
        return _number((self.systems.get(system) or {}).get(metric))

    def queries(self) -> int | None:
        """Queries under the thinnest comparison."""
        counts = [_number(row.get("queries")) for row in self.comparisons.values()]
        return min((int(count or 0) for count in counts), default=None)

    def difference(self, name: str, baseline: str, bound: float, strictly: bool) -> Check:
        """Whether the lower end of the interval of student minus baseline is above the bound, or not below it."""
        label = BASELINES[baseline]
        row = self.comparisons.get(baseline, {})
        delta, low, high = (_number(row.get(key)) for key in ("delta", "ci_low", "ci_high"))
        if delta is None or low is None or high is None:
            detail = f"the evaluation does not compare the student with {label} by {self.label}, so this cannot pass"
            return Check(name, False, None, bound, detail)
        passed = low > bound if strictly else low >= bound
        places = _places(low, bound)
        ours, theirs = (_shown(self.value(system, self.metric)) for system in ("student", baseline))
        verb = "beats" if delta > 0 else "trails" if delta < 0 else "equals"
        by = f" by {_figure(delta, sign='+')}" if delta > 0 else f" by {_figure(-delta)}" if delta < 0 else ""
        rule, failing = ("must exceed", "but does not") if strictly else ("must not be below", "but is")
        queries = f" on {row['queries']} queries" if "queries" in row else ""
        detail = (
            f"student {self.label}{ours} {verb} {label}{theirs}{by}, {self.interval} "
            f"[{_figure(low, places, '+')}, {_figure(high, places, '+')}]{queries}; "
            f"the lower end {rule} {_limit(bound)}{'' if passed else f', {failing}'}"
        )
        return Check(name, passed, low, bound, detail)


def _enough_queries(policy: Gate, measured: _Measured) -> Check:
    queries = measured.queries()
    if queries is None:
        detail = f"the evaluation compares the student with nothing by {measured.label}, so no query counts"
        return Check("enough_queries", False, None, policy.min_queries, detail)
    detail = f"the decision rests on {queries} test queries; it takes at least {policy.min_queries}"
    return Check("enough_queries", queries >= policy.min_queries, queries, policy.min_queries, detail)


def _min_value(policy: Gate, measured: _Measured) -> Check:
    value = measured.value("student", policy.metric)
    if value is None:
        detail = f"the evaluation has no {measured.label} of the student, so this cannot pass"
        return Check("min_value", False, None, policy.min_value, detail)
    figure = _figure(value, _places(value, policy.min_value))
    detail = f"student {measured.label} is {figure}; it must be at least {_limit(policy.min_value)}"
    return Check("min_value", value >= policy.min_value, value, policy.min_value, detail)


def _calibration(policy: Gate, measured: _Measured) -> Check:
    value, bound = measured.value("student", "ece"), policy.max_ece
    rule = f"it may be {_limit(bound)} at most" if bound < 1 else "no limit is set"
    if value is None:
        detail = f"the evaluation has no calibration error (ECE) of the student; {rule}"
        return Check("calibration", bound == 1, None, bound, detail)
    detail = f"student calibration error (ECE) is {_figure(value, _places(value, bound))}; {rule}"
    return Check("calibration", value <= bound, value, bound, detail)


def _drift(policy: Gate, drift: dict[str, Any]) -> Check:
    found, bound = drift.get("candidate") or {}, policy.max_drift_share
    share = _number(found.get("share"))
    rule = f"at most {100 * bound:g} % may" if bound < 1 else "no limit is set"
    if share is None:
        detail = f"how far the newest traffic has drifted from the training window is not known; {rule}"
        return Check("drift", bound == 1, None, bound, detail)
    names = [column["name"] for column in found.get("columns", []) if column["drifted"]]
    which = f" ({', '.join(names)})" if names else ""
    detail = f"{100 * share:.3g} % of the columns{which} have drifted from training window to newest traffic; {rule}"
    return Check("drift", share <= bound, share, bound, detail)


def _exported(policy: Gate, parity: dict[str, Any]) -> Check:
    losses = {name: _number(found.get("ndcg_loss")) for name, found in parity.get("files", {}).items()}
    bound = policy.max_onnx_loss
    rule = f"at most {_limit(bound)} may be lost" if bound < 1 else "no limit is set"
    unknown = [name for name, loss in losses.items() if loss is None]
    if unknown or not losses:
        detail = f"how far {unknown[0] if unknown else 'any ONNX file'} is from torch is not known; {rule}"
        return Check("onnx_parity", bound == 1, None, bound, detail)
    worst = max(losses, key=lambda name: losses[name] or 0.0)
    loss = losses[worst] or 0.0
    detail = f"{worst} loses {_figure(loss, 4)} of dev nDCG@10 to torch, the most of {len(losses)} ONNX files; {rule}"
    return Check("onnx_parity", loss <= bound, loss, bound, detail)


def _new(candidate: dict[str, Any], champion: dict[str, Any] | None) -> Check:
    ours = candidate["id"]
    if champion is None:
        return Check("new", True, ours, None, f"there is no champion yet, so candidate {ours} is new")
    if ours == champion["id"]:
        detail = f"candidate {ours} is the champion itself, byte for byte, so there is nothing to promote"
    else:
        detail = f"candidate {ours} differs from the champion, {champion['id']}"
    return Check("new", ours != champion["id"], ours, champion["id"], detail)


def _number(value: Any) -> float | None:
    """`value` if it is a finite number, else None: what is not a number never passes a check."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _figure(value: float, places: int = 3, sign: str = "-") -> str:
    """A number as papers print them: .931, +.089."""
    return _bare(f"{value:{sign}z.{places}f}")


def _limit(value: float) -> str:
    return _bare(f"{value:g}")


def _bare(text: str) -> str:
    """The number without its leading zero."""
    return re.sub(r"^([+-]?)0\.", r"\1.", text)


def _shown(value: float | None) -> str:
    return "" if value is None else f" {_figure(value)}"


def _places(value: float, bound: float) -> int:
    """Decimals, at least 3, that show on which side of the bound the value is."""
    return next((places for places in range(3, 9) if value == bound or round(value, places) != round(bound, places)), 9)
