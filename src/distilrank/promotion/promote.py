"""The `promote` stage: publish a student that passed the gate as an immutable version and make it the champion."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distilrank import __version__
from distilrank import registry as registries
from distilrank.config import Registry
from distilrank.core import artifacts, progress
from distilrank.core.errors import InputError, RunStopped
from distilrank.core.run_folders import RunFolders
from distilrank.promotion import checks
from distilrank.student import model_card

LINEAGE = ("name", "data", "code", "images")
"""Required keys of `lineage`, which only the pipeline or the local run knows: name, digests and images of the run."""
SECTIONS = ("data", "window", "preflight", "compute")
"""Sections that are taken from preflight's record; each other section is in the record of its own stage."""
RECORDED_ELSEWHERE = ("champion", "anchor", "data_digest", "code_digest")
"""Values resolved by preflight that the manifest records under other keys."""

EVIDENCE = {
    "evaluation": ("student", "teacher", "traffic", "champion", "anchor"),
    "drift": ("evaluation", "student", "traffic", "champion"),
    "verdict": ("evaluation", "drift", "student", "champion", "anchor"),
    "report": ("teacher", "student", "evaluation", "drift", "verdict"),
}
"""Inputs of each stage that must equal the inputs of the promotion, by stage."""


def promote(
    config: Registry,
    folders: RunFolders,
    *,
    label: Mapping[str, Any],
    champion: str,
    anchor: str,
    lineage: Mapping[str, Any],
    output: Path,
) -> str:
    """Publish the student with its evidence and make it the champion. Repeating a promotion changes nothing.

    A student that is already published, because its promotion was interrupted or another run trained the same one, is
    not published again: the version keeps the evidence of its first publication. The first champion also becomes the
    anchor.

    Args:
        config: the registry to publish to.
        folders: all folders of the run except `judgements`, `candidates` and `labels`.
        label: section `label` of the configuration, which has no record of its own here.
        champion: version that the verdict compared with and that the alias must still name; empty if there was none.
        anchor: anchor that the verdict compared with; empty if there was none.
        lineage: `name` of the run, the digests `data` and `code` from preflight, `images` (reference of each image),
            and any further keys, which the manifest keeps.
        output: folder for `promotion.json`.

    Returns:
        Id of the version.

    Raises:
        RunStopped: the verdict does not promote this student over these versions, the alias has moved, or the student
            was the champion and was rolled back.
        InputError: an input is damaged or incomplete, or the registry cannot be written.
    """
    sealed = folders.select("teacher", "student", "evaluation", "drift", "traffic")
    inputs = {**folders.select("resolved", "profile"), **sealed, **folders.select("verdict", "report")}
    read = {"teacher": ["distilrank.json"]}
    with artifacts.stage("promote", output, config=config, inputs=inputs, only=read) as record:
        digests = {name: artifacts.verify(folder, read.get(name)) for name, folder in sealed.items()}
        record.inputs |= {**digests, "champion": champion, "anchor": anchor}
        missing = [name for name in LINEAGE if not lineage.get(name)]
        if missing:
            raise InputError(f"lineage: {missing[0]!r} is missing; it has {', '.join(sorted(lineage)) or 'nothing'}")
        version = registries.version_id(digests["student"])
        verdict = folders.verdict / "verdict.json"
        decision = artifacts.read_json(verdict)
        _require_matching_verdict(decision, version, champion, anchor, verdict)
        _check_evidence({**record.inputs, "verdict": artifacts.digest_file(verdict)}, inputs)

        backend = registries.connect(config)
        rollback = registries.rolled_back(backend.history(), version)
        if rollback is not None:
            raise RunStopped(
                f"registry {backend.uri}: {version} was the champion and was rolled back on {rollback['since']} by "
                f"{rollback['by']} ({rollback['reason'] or 'no reason given'}), so no run promotes it again; to put it "
                f"back, run `distilrank registry promote {version} --reason TEXT`"
            )
        published_now = version not in backend.versions()
        if published_now:
            pages = sorted(path.name for path in folders.drift.glob("*.html"))  # the report links to them
            recorded = {
                "preflight": folders.resolved,
                "prepare": folders.profile,
                "teacher": folders.teacher,
                "student": folders.student,
                "evaluate": folders.evaluation,
                "drift": folders.drift,
                "gate": folders.verdict,
                "report": folders.report,
            }
            stages = {name: _record(folder) for name, folder in recorded.items()}
            sections = stages["preflight"]["config"]
            resolved = artifacts.read_record(folders.resolved)["facts"]
            stages["preflight"]["config"] = {name: sections[name] for name in SECTIONS if name in sections}
            stages["label"] = {"config": dict(label), "inputs": {"teacher": digests["teacher"]}}
            metrics = artifacts.read_json(folders.evaluation / "metrics.json")
            models = {
                "student": artifacts.read_json(folders.student / "distilrank.json")["base"],
                "teacher": artifacts.read_json(folders.teacher / "distilrank.json")["base"],
            }
            with tempfile.TemporaryDirectory() as scratch:
                content = Path(scratch)
                _link(folders.student, content / "student")
                for name, source in (
                    ("metrics.json", folders.evaluation / "metrics.json"),
                    ("verdict.json", verdict),
                    ("report.html", folders.report / "report.html"),
                    *((page, folders.drift / page) for page in pages),
                    ("traffic/reference.parquet", folders.traffic / "reference.parquet"),
                    ("traffic/reference_scores.parquet", folders.evaluation / "traffic_scores" / "reference.parquet"),
                ):
                    _link(source, content / name)
                card = model_card.render(
                    folders.student,
                    stages["student"],
                    teacher=models["teacher"],
                    license=model_card.read_licence(folders.student),
                    evaluation=metrics,
                    verdict=decision,
                )
                artifacts.write_text(
                    content / model_card.FILE, card
                )  # replaces the student's own card, which has dev metrics only
                manifest = {
                    "id": version,
                    "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "digests": {
                        "data": lineage["data"],
                        "code": lineage["code"],
                        "configuration": artifacts.digest_json({name: stages[name]["config"] for name in stages}),
                        **digests,
                        "report": artifacts.digest_file(folders.report / "report.html"),
                    },
                    "models": models,
                    "metrics": metrics["systems"]["student"],
                    "verdict": decision,
                    "lineage": {
                        **lineage,
                        "release": __version__,
                        "parents": {"champion": champion, "anchor": anchor},
                        "resolved": {name: value for name, value in resolved.items() if name not in RECORDED_ELSEWHERE},
                        "stages": stages,
                    },
                    "files": _files(content),
                }
                artifacts.write_json(content / "manifest.json", manifest)
                try:
                    backend.publish(content, version)
                except InputError:  # another run may have published the same student with different evidence
                    published_now = version not in backend.versions()
                    if published_now:
                        raise
        if not published_now:
            backend.verify(version)
            progress.log_event("promote", "note", f"{version} is already in the registry and is not changed")
        backend.move(registries.CHAMPION, version, expected=champion, reason=_reason(decision))
        _set_anchor(backend, version)
        artifacts.write_json(
            output / "promotion.json",
            {
                "version": version,
                "previous": champion,
                "anchor": backend.alias(registries.ANCHOR),
                "registry": config.uri,
                "outcome": decision["outcome"],
            },
        )
        record.facts.update(version=version, published_now=published_now)
        progress.log_event("promote", "note", f"champion: {version}, before: {champion or 'none'}, in {config.uri}")
        progress.log_event("promote", "outcome", json.dumps({"version": version, "previous": champion or None}))
        return version


def _set_anchor(backend: registries.Backend, version: str) -> None:
    """Make the first champion the anchor, with which every later candidate is compared."""
    if backend.alias(registries.ANCHOR):
        return
    try:
        backend.move(registries.ANCHOR, version, expected="", reason="the first champion")
    except RunStopped as error:  # another promoter has set an anchor meanwhile, which is as good
        progress.log_event("promote", "note", str(error))


def _require_matching_verdict(
    decision: Mapping[str, Any], version: str, champion: str, anchor: str, path: Path
) -> None:
    """Stop the run unless the verdict promotes `version` over `champion` and `anchor`."""
    if decision["outcome"] == "unchanged":
        raise RunStopped(f"{path}: unchanged: {version} is already the champion, so there is nothing to promote")
    if not decision["promoted"]:
        failed = ", ".join(check["name"] for check in checks.failed(decision))
        raise RunStopped(f"{path}: {decision['outcome']} (failed: {failed}), so there is nothing to promote")
    if decision["candidate"]["id"] != version:
        raise RunStopped(f"{path}: the candidate is {decision['candidate']['id']}, but the student is {version}")
    for name, expected in (("champion", champion), ("anchor", anchor)):
        judged = decision[name]["id"] if decision.get(name) else ""
        if judged != expected:
            raise RunStopped(f"{path}: compares with {judged or f'no {name}'}, expected {expected or f'no {name}'}")


def _check_evidence(made_of: Mapping[str, str], folders: Mapping[str, Path]) -> None:
    """Check that the evidence is about the student to promote, compared with the expected versions.

    Args:
        made_of: digest or id of each shared input, by name.
        folders: folder of each stage, by name.

    Raises:
        InputError: a stage had other inputs.
    """
    for name, shared in EVIDENCE.items():
        artifacts.check_made_of(folders[name], {key: made_of[key] for key in shared})


def _reason(decision: Mapping[str, Any]) -> str:
    """Return the reason for the registry's history: empty, or the override and the failed checks that it excuses."""
    override = decision.get("override")
    if not override:
        return ""
    failed = ", ".join(check["name"] for check in checks.failed(decision))
    return f"override by {override['by']} until {override['until']}: {override['reason']} (failed: {failed})"


def _record(folder: Path) -> dict[str, Any]:
    """Return configuration and inputs of a stage from its record."""
    record = artifacts.read_record(folder)
    return {"config": record["config"], "inputs": record["inputs"]}


def _files(content: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of each file of a version, so that versions can be compared without reading them."""
    student = artifacts.read_json(content / "student" / artifacts.SEAL)["files"]
    student_digests = {f"student/{name}": digest for name, digest in student.items()}
    paths = sorted(path for path in content.rglob("*") if path.is_file())
    names = {path.relative_to(content).as_posix(): path for path in paths}
    return {
        name: {"bytes": path.stat().st_size, "digest": student_digests.get(name) or artifacts.digest_file(path)}
        for name, path in names.items()
    }


def _link(source: Path, target: Path) -> None:
    """Link a file, or the files of a sealed folder, to `target`, so that the bytes are copied only once."""
    if source.is_dir():
        for name in [*artifacts.read_json(source / artifacts.SEAL)["files"], artifacts.SEAL]:
            _link(source / name, target / name)
        return
    if not source.is_file():
        raise InputError(f"{source}: no such file, expected a part of the version to publish")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())
