"""Promotion: a student that passed the gate becomes an immutable version of the registry, and its champion."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from distilrank import artifacts, model_card, progress
from distilrank import registry as registries
from distilrank.config import Registry
from distilrank.errors import InputError, RunStopped

LINEAGE = ("data", "code")
"""Digests that only the wiring knows, and that every version must tell."""


def promote(
    config: Registry,
    *,
    profile: Path,
    teacher: Path,
    student: Path,
    evaluation: Path,
    drift: Path,
    verdict: Path,
    report: Path,
    traffic: Path,
    champion: str,
    lineage: dict[str, Any],
    output: Path,
) -> str:
    """Publish the student with its evidence and make it the champion; repeating a promotion changes nothing.

    A student that is published already (its promotion was killed half-way, or rolled back later) is not published
    again: the version keeps the evidence of its first time.

    Args:
        profile: folder with the record of the prepare stage.
        teacher, student, evaluation, drift, traffic: the sealed folders of those stages.
        verdict: folder with the gate's `verdict.json` on this student.
        report: folder with `report.html`.
        champion: the version that the verdict compared with and that the alias must still name; empty: none.
        lineage: `data` and `code`, the digests that the preflight gave, and what else is worth keeping (the run's
            name, say); stored in the manifest.
        output: folder for `promotion.json`.

    Returns:
        The version's id.

    Raises:
        RunStopped: the verdict does not promote this very student over this champion, or the alias has moved.
        InputError: an input is damaged or incomplete, or the registry cannot be written.
    """
    folders = {"teacher": teacher, "student": student, "evaluation": evaluation, "drift": drift, "traffic": traffic}
    with artifacts.stage("promote", output, config=config) as record:
        digests = {name: artifacts.sealed_digest(folder) for name, folder in folders.items()}
        record.inputs |= {**digests, "champion": champion}
        lacking = [name for name in LINEAGE if name not in lineage]
        if lacking:
            raise InputError(f"lineage: {lacking[0]!r} is missing; it has {', '.join(sorted(lineage)) or 'nothing'}")
        version = registries.version_id(artifacts.verify(student))
        decision = artifacts.read_json(verdict / "verdict.json")
        _insist(decision, version, champion, verdict / "verdict.json")

        backend = registries.open(config.uri)
        published_now = version not in backend.versions()
        if published_now:
            artifacts.verify(evaluation, only=["metrics.json", "traffic_scores/reference.parquet"])
            artifacts.verify(drift, only=["drift.html"])
            artifacts.verify(traffic, only=["reference.parquet"])
            recorded = {
                "prepare": profile,
                "teacher": teacher,
                "student": student,
                "evaluate": evaluation,
                "drift": drift,
                "gate": verdict,
            }
            stages = {name: _record(folder) for name, folder in recorded.items()}
            with tempfile.TemporaryDirectory() as scratch:
                content = Path(scratch)
                _link(student, content / "student")
                for name, source in (
                    ("metrics.json", evaluation / "metrics.json"),
                    ("verdict.json", verdict / "verdict.json"),
                    ("report.html", report / "report.html"),
                    ("drift.html", drift / "drift.html"),
                    ("traffic/reference.parquet", traffic / "reference.parquet"),
                    ("traffic/reference_scores.parquet", evaluation / "traffic_scores" / "reference.parquet"),
                ):
                    _link(source, content / name)
                manifest = {
                    "id": version,
                    "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "digests": {
                        **{name: lineage[name] for name in LINEAGE},
                        "configuration": artifacts.digest_json({name: stages[name]["config"] for name in stages}),
                        **digests,
                        "report": artifacts.digest_file(report / "report.html"),
                    },
                    "models": {
                        "student": artifacts.read_json(student / "distilrank.json")["base"],
                        "teacher": artifacts.read_json(teacher / "distilrank.json")["base"],
                    },
                    "metrics": artifacts.read_json(evaluation / "metrics.json")["systems"]["student"],
                    "verdict": decision,
                    "lineage": {**lineage, "stages": stages},
                }
                card = model_card.render(
                    student,
                    stages["student"],
                    teacher=manifest["models"]["teacher"],
                    licence=model_card.read_licence(student),
                    evaluation=artifacts.read_json(evaluation / "metrics.json"),
                )
                artifacts.write_text(content / model_card.FILE, card)  # that of the student itself knows dev only
                artifacts.write_json(content / "manifest.json", manifest)
                backend.publish(content, version)
        else:
            backend.fetch(version)
            progress.announce("promote", "note", f"{version} is in the registry already and stays as it was published")
        backend.move(registries.CHAMPION, version, expected=champion)
        artifacts.write_json(
            output / "promotion.json",
            {"version": version, "previous": champion, "registry": config.uri, "outcome": decision["outcome"]},
        )
        record.facts.update(version=version, published_now=published_now)
        progress.announce("promote", "note", f"champion: {version}, before: {champion or 'none'}, in {config.uri}")
        return version


def _insist(decision: dict[str, Any], version: str, champion: str, path: Path) -> None:
    """Stop unless `decision` is to promote `version` over `champion`."""
    if not decision["promoted"]:
        failed = ", ".join(check["name"] for check in decision["checks"] if not check["passed"])
        raise RunStopped(f"{path}: {decision['outcome']} (failed: {failed}), so there is nothing to promote")
    if decision["candidate"]["id"] != version:
        raise RunStopped(f"{path}: is about {decision['candidate']['id']}, but the student is {version}")
    judged = decision["champion"]["id"] if decision["champion"] else ""
    if judged != champion:
        raise RunStopped(f"{path}: compares with {judged or 'no champion'}, expected {champion or 'no champion'}")


def _record(folder: Path) -> dict[str, Any]:
    """What a stage was given, from its own record."""
    record = artifacts.read_json(folder / artifacts.RECORD)
    return {"config": record["config"], "inputs": record["inputs"]}


def _link(source: Path, target: Path) -> None:
    """Put a file, or the files of a sealed folder, at `target` as links, so that the bytes are copied only once."""
    if source.is_dir():
        for name in [*artifacts.read_json(source / artifacts.SEAL)["files"], artifacts.SEAL]:
            _link(source / name, target / name)
        return
    if not source.is_file():
        raise InputError(f"{source}: no such file, expected a part of the version to publish")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())
