"""The decision whether a student is good enough to replace what is in use.

What it is held to is the policy, the configuration's section `gate`; the checks are in `distilrank.promotion.checks`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
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
"""`unchanged`: the candidate is the champion, byte for byte, which is neither a promotion nor a refusal."""


@dataclass(frozen=True)
class Verdict:
    """What was decided, every check that it rests on, and the policy that asked for them."""

    outcome: Outcome
    checks: tuple[Check, ...]
    evidence: Evidence
    policy: Gate

    @property
    def promoted(self) -> bool:
        """Whether the candidate becomes the champion."""
        return self.outcome not in ("refused", "unchanged")

    @property
    def failed(self) -> list[Check]:
        """The checks that failed, by `checks.counts_as_failed`."""
        return [check for check in self.checks if counts_as_failed(check.name, check.passed, self.outcome)]

    def word(self, check: Check) -> str:
        """What a log or a table says of one of the checks: passed, FAILED or, where it decided nothing, unchanged."""
        return "passed" if check.passed else "FAILED" if check in self.failed else "unchanged"

    @property
    def candidate(self) -> dict[str, Any]:
        """The version that the student would become."""
        return self.evidence.candidate

    @property
    def notes(self) -> list[str]:
        """What people must know beside the checks."""
        notes, override, count = [], self.policy.override, self.evidence.test_evaluations
        if self.failed and self.outcome == "unchanged":
            names = ", ".join(check.name for check in self.failed)
            notes.append(f"the champion stays, though the policy would not promote it today: {names}")
        elif self.failed and override.by:
            word = f"the override by {override.by}, until {override.until}"
            fixed = ", ".join(check.name for check in self.failed if not check.excusable)
            if self.outcome == "overridden":
                notes.append(f"{word}, promotes in spite of the failed checks: {override.reason}")
            elif not _in_force(self.policy, self.evidence.now):
                late = override.last_day is not None and override.last_day > _today(self.evidence.now)
                fault = f"reaches more than {OVERRIDE_DAYS} days ahead" if late else "has expired"
                notes.append(f"{word}, {fault}, so it changes nothing")
            else:
                notes.append(f"{word}, cannot excuse {fixed}")
        limit = self.policy.warn_after_test_evaluations
        if count is not None and 0 < limit < count:
            notes.append(
                f"candidates that this test set has evaluated: {count}, this one included; with each one it becomes "
                "likelier that a student passes by luck, so draw a fresh set (prepare.test_fold) or add judgements"
            )
        return notes

    @property
    def looser(self) -> list[dict[str, Any]]:
        """By which settings less was asked than by default: of the policy, and of how was measured and compared.

        Each has `key`, `value` and `default`. None is forbidden; whoever reads the verdict should know them.
        """
        return [
            *looser_settings("gate", parameters(self.policy)),
            *looser_settings("evaluate", self.evidence.protocol),
            *looser_settings("drift", self.evidence.drift.get("limits") or {}),
        ]

    def to_json(self) -> dict[str, Any]:
        """The content of `verdict.json`."""
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
    """What `Verdict.looser` says, in a line."""
    said = (f"{one['key']} {_plain(one['value'])} ({_plain(one['default'])})" for one in entries)
    return f"looser than the default, which is in brackets: {', '.join(said)}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(value)}]" if isinstance(value, list | tuple) else f"{value:g}"


def decide(
    policy: Gate,
    *,
    metrics: dict[str, Any],
    drift: dict[str, Any],
    candidate: dict[str, Any],
    champion: dict[str, Any] | None,
    anchor: dict[str, Any] | None = None,
    parity: dict[str, Any] | None = None,
    test_evaluations: int | None = None,
    newest_end: str = "",
    now: datetime | None = None,
) -> Verdict:
    """Hold a candidate to the policy; a pure function, given `now` (None: the clock's).

    The arguments are those of `checks.Evidence`. An override in force excuses checks that were measured and failed;
    what was not measured it does not excuse. A candidate that is the champion is `unchanged`, whatever the checks say,
    and is not compared with itself.
    """
    evidence = Evidence(
        metrics=metrics,
        drift=drift,
        candidate=candidate,
        champion=champion,
        anchor=anchor,
        parity=parity,
        test_evaluations=test_evaluations,
        newest_end=newest_end,
        now=now or datetime.now(UTC),
    )
    checks = examine(policy, evidence)
    failed = [check for check in checks if not check.passed]
    outcome: Outcome = "promoted" if champion is not None else "cold_start"
    if evidence.unchanged:
        outcome = "unchanged"
    elif failed:
        excused = _in_force(policy, evidence.now) and all(check.excusable for check in failed)
        outcome = "overridden" if excused else "refused"
    return Verdict(outcome, checks, evidence, policy)


def _in_force(policy: Gate, now: datetime) -> bool:
    """Whether the policy has an override that has not expired, and does so in reasonable time."""
    last, today = policy.override.last_day, _today(now)
    return last is not None and today <= last <= today + timedelta(days=OVERRIDE_DAYS)


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
    """Decide on a student, count this evaluation of its test set, and write `verdict.json`.

    Args:
        config: the policy.
        registry: where champion and anchor are, and where the evaluations of each test set are counted.
        folders: `student`, whose digest gives the id of the version that it would become, `judgements`, and
            `evaluation` and `drift` of that student.
        champion: id of the version that the evaluation compared with; empty: there was none.
        anchor: likewise.
        newest_end: ISO 8601 end of the newest traffic; empty: the log has no times.
        output: folder for `verdict.json`.

    Returns:
        Whether the student is to be promoted.

    Raises:
        InputError: a file is missing or damaged, evaluation or drift is of something else or does not tell of what, or
            the registry has no such champion or anchor.
    """
    inputs = folders.select("evaluation", "drift", "student", "judgements")
    with artifacts.stage("gate", output, config=config, inputs=inputs) as record:
        digests = {name: artifacts.verify(folder) for name, folder in inputs.items()}
        record.inputs |= {**digests, "champion": champion, "anchor": anchor}
        compared = {name: record.inputs[name] for name in ("judgements", "student", "champion", "anchor")}
        artifacts.check_made_of(folders.evaluation, compared, "evaluated")
        compared = {name: record.inputs[name] for name in ("evaluation", "student", "champion")}
        traffic = artifacts.read_record(folders.evaluation)["inputs"].get("traffic", "")
        artifacts.check_made_of(folders.drift, compared | {"traffic": traffic}, "compared")
        metrics = artifacts.read_json(folders.evaluation / "metrics.json")
        backend = registries.connect(registry)
        candidate = registries.version_id(digests["student"])
        back = registries.rolled_back(backend.history(), candidate)
        test_set = metrics.get("test_set", {}).get("digest", "")
        verdict = decide(
            config,
            metrics=metrics,
            drift=artifacts.read_json(folders.drift / "drift.json"),
            candidate={"id": candidate, "digest": digests["student"]} | ({"rolled_back": dict(back)} if back else {}),
            champion=_described(backend, champion),
            anchor=_described(backend, anchor),
            parity=_parity(folders.student),
            test_evaluations=backend.record_test_evaluation(test_set, candidate, metrics["test_set"].get("sketch", ""))
            if test_set
            else None,
            newest_end=newest_end,
        )
        artifacts.write_json(output / "verdict.json", verdict.to_json())
        artifacts.seal(output)
        for check in verdict.checks:
            progress.log_event("gate", "note", verdict.word(check), check.name, check.detail)
        for note in verdict.notes:
            progress.log_event("gate", "note", note)
        if verdict.looser:
            progress.log_event("gate", "note", looser_text(verdict.looser))
        progress.log_event("gate", "note", f"{candidate}: {verdict.outcome.replace('_', ' ')}")
        decided = {
            "outcome": verdict.outcome,
            "candidate": candidate,
            "champion": champion or None,
            "failed": [check.name for check in verdict.failed],
        }
        progress.log_event("gate", "outcome", json.dumps(decided))
        record.facts.update(
            outcome=verdict.outcome,
            failed=[check.name for check in verdict.failed],
            notes=verdict.notes,
            test_evaluations=verdict.evidence.test_evaluations,
        )
        return verdict.promoted


def reconsider(run: Path, policy: Gate) -> Verdict:
    """What `policy` would have said of a finished run; nothing is written, counted or promoted.

    Args:
        run: folder of a local run, with its `metrics.json`, `drift.json`, `profile.json`, `verdict.json`, `student/`.

    Raises:
        InputError: there is no such run, or it did not come to a verdict.
    """
    said = artifacts.read_json(run / "verdict.json")
    decided = said.get("decided")
    return decide(
        policy,
        metrics=artifacts.read_json(run / "metrics.json"),
        drift=artifacts.read_json(run / "drift.json"),
        candidate=said["candidate"],
        champion=said["champion"],
        anchor=said.get("anchor"),
        parity=_parity(run / "student"),
        test_evaluations=said.get("test_set", {}).get("test_evaluations"),
        newest_end=artifacts.read_json(run / "profile.json")["windows"]["newest_end"],
        now=datetime.fromisoformat(decided) if decided else None,
    )


def _described(backend: registries.Backend, version: str) -> dict[str, Any] | None:
    if not version:
        return None
    manifest = backend.manifest(version)
    run = manifest.get("lineage", {}).get("name")
    return {"id": manifest["id"], "created": manifest["created"]} | ({"run": run} if run else {})


def _parity(student: Path) -> dict[str, Any] | None:
    """What the student's export found of itself; None: it was not exported."""
    if PARITY.as_posix() not in artifacts.read_json(student / artifacts.SEAL)["files"]:
        return None
    artifacts.verify(student, only=[PARITY.as_posix()])
    return artifacts.read_json(student / PARITY)
