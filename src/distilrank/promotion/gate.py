"""The `gate` stage: decide whether a student is good enough to replace the champion.

The section `gate` of the configuration is the policy. The checks that it sets are in `distilrank.promotion.checks`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from distilrank import registry as registries
from distilrank.config import OVERRIDE_DAYS, Gate, Registry, looser_settings, parameters
from distilrank.core import artifacts, progress
from distilrank.core.run_folders import RunFolders
from distilrank.promotion.checks import Check, Evidence, counts_as_failed, examine
from distilrank.student.model_card import PARITY

Outcome = Literal["promoted", "cold_start", "overridden", "refused", "unchanged"]
"""`unchanged` means that the candidate is byte for byte the champion. It is neither promoted nor refused."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of the gate, with its checks, evidence and policy."""

    outcome: Outcome
    checks: tuple[Check, ...]
    evidence: Evidence
    policy: Gate

    @property
    def promoted(self) -> bool:
        """Whether the candidate is to become the champion."""
        return self.outcome not in ("refused", "unchanged")

    @property
    def failed(self) -> list[Check]:
        """Checks that count as failed (see `checks.counts_as_failed`)."""
        return [check for check in self.checks if counts_as_failed(check.name, check.passed, self.outcome)]

    def word(self, check: Check) -> str:
        """Return the result of a check for logs and tables: passed, FAILED or, if it decided nothing, unchanged."""
        return "passed" if check.passed else "FAILED" if check in self.failed else "unchanged"

    @property
    def candidate(self) -> dict[str, Any]:
        """The version that the student would become."""
        return self.evidence.candidate

    @property
    def notes(self) -> list[str]:
        """Remarks on the decision that no check contains."""
        notes, override, count = [], self.policy.override, self.evidence.test_evaluations
        if self.failed and self.outcome == "unchanged":
            names = ", ".join(check.name for check in self.failed)
            notes.append(f"the champion remains in use, although the current policy would not promote it: {names}")
        elif self.failed and override.by:
            subject = f"the override by {override.by}, valid until {override.until},"
            fixed = ", ".join(check.name for check in self.failed if not check.excusable)
            if self.outcome == "overridden":
                notes.append(f"{subject} promotes the student despite the failed checks: {override.reason}")
            elif not _in_force(self.policy, self.evidence.now):
                is_too_long = override.last_day is not None and override.last_day > _today(self.evidence.now)
                fault = f"extends more than {OVERRIDE_DAYS} days ahead" if is_too_long else "has expired"
                notes.append(f"{subject} {fault}, so it has no effect")
            else:
                notes.append(f"{subject} cannot excuse {fixed}")
        limit = self.policy.warn_after_test_evaluations
        if count is not None and 0 < limit < count:
            notes.append(
                f"candidates evaluated on this test set, including this one: {count}; each makes it more likely that a "
                "student passes by chance, so draw a new test set (prepare.test_fold) or add judgements"
            )
        return notes

    @property
    def looser(self) -> list[dict[str, Any]]:
        """Settings of the policy, the evaluation and the drift comparison that require less than the defaults.

        Each has `key`, `value` and `default`. None is forbidden, but readers of the verdict should know them.
        """
        return [
            *looser_settings("gate", parameters(self.policy)),
            *looser_settings("evaluate", self.evidence.protocol),
            *looser_settings("drift", self.evidence.drift.get("limits") or {}),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `verdict.json`."""
        evidence = self.evidence
        return {
            "outcome": self.outcome,
            "promoted": self.promoted,
            "decided": evidence.now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "checks": [asdict(check) for check in self.checks],
            "candidate": evidence.candidate,
            "champion": evidence.champion,
            "anchor": evidence.anchor,
            "override": parameters(self.policy.override) if self.outcome == "overridden" else None,
            "test_set": {
                "digest": evidence.metrics.get("test_set", {}).get("digest", ""),
                "test_evaluations": evidence.test_evaluations,
                "warn_after": self.policy.warn_after_test_evaluations,
            },
            "policy": parameters(self.policy),
            "looser": self.looser,
        }


def looser_text(entries: Iterable[Mapping[str, Any]]) -> str:
    """Format the entries of `Verdict.looser` as one line."""
    settings = (
        f"{entry['key']} {_format_setting(entry['value'])} ({_format_setting(entry['default'])})" for entry in entries
    )
    return f"looser than the default, which is in parentheses: {', '.join(settings)}"


def _format_setting(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(value)}]" if isinstance(value, list | tuple) else f"{value:g}"


def decide(policy: Gate, evidence: Evidence) -> Verdict:
    """Decide on a candidate by the policy; a pure function of its arguments.

    An override in force excuses failed checks, but not values that were not measured. A candidate that is the champion
    is `unchanged` whatever the checks say, and is not compared with itself.
    """
    checks = examine(policy, evidence)
    failed = [check for check in checks if not check.passed]
    outcome: Outcome = "promoted" if evidence.champion is not None else "cold_start"
    if evidence.unchanged:
        outcome = "unchanged"
    elif failed:
        excused = _in_force(policy, evidence.now) and all(check.excusable for check in failed)
        outcome = "overridden" if excused else "refused"
    return Verdict(outcome, checks, evidence, policy)


def _in_force(policy: Gate, now: datetime) -> bool:
    """Whether the policy has an override that has not expired and that expires within OVERRIDE_DAYS."""
    last_day, today = policy.override.last_day, _today(now)
    return last_day is not None and today <= last_day <= today + timedelta(days=OVERRIDE_DAYS)


def _today(now: datetime) -> date:
    return now.astimezone(UTC).date()


def gate(
    config: Gate,
    registry: Registry,
    folders: RunFolders,
    *,
    champion: str,
    anchor: str,
    newest_end: str,
    output: Path,
) -> bool:
    """Decide on a student, record the evaluation of its test set, and write `verdict.json`.

    Args:
        config: the policy.
        registry: contains the champion, the anchor and the record of test evaluations.
        folders: `student`, whose digest determines the id of its version, `judgements`, and `evaluation` and `drift`
            of that student.
        champion: id of the version that the evaluation compared the student with; empty if there was none.
        anchor: id of the anchor that the evaluation compared the student with; empty if there was none.
        newest_end: end of the newest traffic, ISO 8601; empty if the log has no times.
        output: folder for `verdict.json`.

    Returns:
        Whether the student is to be promoted.

    Raises:
        InputError: a file is missing or damaged, the evaluation or the drift comparison has other inputs or does not
            record them, or the registry has no such champion or anchor.
    """
    inputs = folders.select("evaluation", "drift", "student", "judgements")
    with artifacts.stage("gate", output, config=config, inputs=inputs) as record:
        digests = {name: artifacts.verify(folder) for name, folder in inputs.items()}
        record.inputs |= {**digests, "champion": champion, "anchor": anchor}
        _require_same_inputs(folders, record.inputs)
        evidence = _collect_evidence(
            folders, registries.connect(registry), digests["student"], champion, anchor, newest_end
        )
        verdict = decide(config, evidence)
        artifacts.write_json(output / "verdict.json", verdict.to_json())
        artifacts.seal(output)
        _log(verdict)
        record.facts.update(
            outcome=verdict.outcome,
            failed=[check.name for check in verdict.failed],
            notes=verdict.notes,
            test_evaluations=evidence.test_evaluations,
        )
        return verdict.promoted


def _require_same_inputs(folders: RunFolders, inputs: Mapping[str, str]) -> None:
    """Check that the evaluation and the drift comparison have the same inputs as this decision."""
    names = ("judgements", "student", "champion", "anchor")
    artifacts.check_made_of(folders.evaluation, {name: inputs[name] for name in names}, "evaluated")
    traffic = artifacts.read_record(folders.evaluation)["inputs"].get("traffic", "")
    compared = {name: inputs[name] for name in ("evaluation", "student", "champion")}
    artifacts.check_made_of(folders.drift, compared | {"traffic": traffic}, "compared")


def _collect_evidence(
    folders: RunFolders, backend: registries.Backend, student_digest: str, champion: str, anchor: str, newest_end: str
) -> Evidence:
    """Read the evidence, and record in the registry that this candidate was evaluated on its test set."""
    metrics = artifacts.read_json(folders.evaluation / "metrics.json")
    candidate: dict[str, Any] = {"id": registries.version_id(student_digest), "digest": student_digest}
    rollback = registries.rolled_back(backend.history(), candidate["id"])
    if rollback:
        candidate["rolled_back"] = dict(rollback)
    evidence = Evidence(
        metrics=metrics,
        drift=artifacts.read_json(folders.drift / "drift.json"),
        candidate=candidate,
        champion=_describe_version(backend, champion),
        anchor=_describe_version(backend, anchor),
        parity=_read_parity(folders.student),
        newest_end=newest_end,
    )
    test_set = metrics.get("test_set", {})
    if not test_set.get("digest"):
        return evidence
    # Last, so that no evaluation is recorded where other evidence is missing.
    count = backend.record_test_evaluation(test_set["digest"], candidate["id"], test_set.get("sketch", ""))
    return replace(evidence, test_evaluations=count)


def _log(verdict: Verdict) -> None:
    """Log every check and note, and the outcome again as JSON for programs."""
    for check in verdict.checks:
        progress.log_event("gate", "note", verdict.word(check), check.name, check.detail)
    for note in verdict.notes:
        progress.log_event("gate", "note", note)
    if verdict.looser:
        progress.log_event("gate", "note", looser_text(verdict.looser))
    candidate = verdict.candidate["id"]
    progress.log_event("gate", "note", f"{candidate}: {verdict.outcome.replace('_', ' ')}")
    champion = verdict.evidence.champion
    outcome = {
        "outcome": verdict.outcome,
        "candidate": candidate,
        "champion": champion["id"] if champion else None,
        "failed": [check.name for check in verdict.failed],
    }
    progress.log_event("gate", "outcome", json.dumps(outcome))


def reconsider(run: Path, policy: Gate) -> Verdict:
    """Decide on a finished run by another policy; nothing is written, recorded or promoted.

    Args:
        run: folder of a local run with `metrics.json`, `drift.json`, `profile.json`, `verdict.json` and `student/`.
        policy: the policy to apply.

    Raises:
        InputError: there is no such run, or it has no verdict.
    """
    verdict = artifacts.read_json(run / "verdict.json")
    decided = verdict.get("decided")
    evidence = Evidence(
        metrics=artifacts.read_json(run / "metrics.json"),
        drift=artifacts.read_json(run / "drift.json"),
        candidate=verdict["candidate"],
        champion=verdict["champion"],
        anchor=verdict.get("anchor"),
        parity=_read_parity(run / "student"),
        test_evaluations=verdict.get("test_set", {}).get("test_evaluations"),
        newest_end=artifacts.read_json(run / "profile.json")["windows"]["newest_end"],
        now=datetime.fromisoformat(decided) if decided else datetime.now(UTC),
    )
    return decide(policy, evidence)


def _describe_version(backend: registries.Backend, version: str) -> dict[str, Any] | None:
    """Return id, creation time and run of a version for `verdict.json`; None if `version` is empty."""
    if not version:
        return None
    manifest = backend.manifest(version)
    run = manifest.get("lineage", {}).get("name")
    return {"id": manifest["id"], "created": manifest["created"]} | ({"run": run} if run else {})


def _read_parity(student: Path) -> dict[str, Any] | None:
    """Read the comparison of the student's ONNX files with torch; None if the student was not exported."""
    if PARITY.as_posix() not in artifacts.read_json(student / artifacts.SEAL)["files"]:
        return None
    artifacts.verify(student, only=[PARITY.as_posix()])
    return artifacts.read_json(student / PARITY)
