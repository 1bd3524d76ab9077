"""Promotion: a student that passed the gate becomes an immutable version of the registry, and its champion."""

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
"""What only the wiring knows of a run, and what every version must tell: its name, digests, and where it ran."""
SECTIONS = ("data", "window", "preflight", "compute")
"""Of the configuration that preflight records; each other section is in the record of its own stage."""
KNOWN = ("champion", "anchor", "data_digest", "code_digest")
"""Of what preflight resolved: it comes by another way."""

EVIDENCE = {
    "evaluation": ("student", "teacher", "traffic", "champion", "anchor"),
    "drift": ("evaluation", "student", "traffic", "champion"),
    "verdict": ("evaluation", "drift", "student", "champion", "anchor"),
    "report": ("teacher", "student", "evaluation", "drift", "verdict"),
}
"""What the stages that say why a version is promoted must have been given: the inputs that they share with this one."""


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
    """Publish the student with its evidence and make it the champion; repeating a promotion changes nothing.

    A student that is published already (its promotion was killed half-way, or another run made the same one) is not
    published again: the version keeps the evidence of its first time. The first to be promoted becomes the anchor too.

    Args:
        folders: all but `judgements`, `candidates` and `labels`.
        label: the section of the configuration; that stage's shards have no folder here.
        champion: the version that the verdict compared with and that the alias must still name; empty: none.
        anchor: the version that the verdict also compared with; empty: none.
        lineage: `name` of the run, `data` and `code`, the digests that the preflight gave, `images`, the reference
            of each image, and what else is worth keeping.
        output: folder for `promotion.json`.

    Returns:
        The version's id.

    Raises:
        RunStopped: the verdict does not promote this very student over these versions, the alias has moved, or the
            student was in use and was rolled back.
        InputError: an input is damaged or incomplete, or the registry cannot be written.
    """
    sealed = folders.select("teacher", "student", "evaluation", "drift", "traffic")
    inputs = {**folders.select("resolved", "profile"), **sealed, **folders.select("verdict", "report")}
    read = {"teacher": ["distilrank.json"]}
    with artifacts.stage("promote", output, config=config, inputs=inputs, only=read) as record:
        digests = {name: artifacts.verify(folder, read.get(name)) for name, folder in sealed.items()}
        record.inputs |= {**digests, "champion": champion, "anchor": anchor}
        lacking = [name for name in LINEAGE if not lineage.get(name)]
        if lacking:
            raise InputError(f"lineage: {lacking[0]!r} is missing; it has {', '.join(sorted(lineage)) or 'nothing'}")
        version = registries.version_id(digests["student"])
        verdict = folders.verdict / "verdict.json"
        decision = artifacts.read_json(verdict)
        _require_matching_verdict(decision, version, champion, anchor, verdict)
        _check_evidence({**record.inputs, "verdict": artifacts.digest_file(verdict)}, inputs)

        backend = registries.connect(config)
        taken_back = registries.rolled_back(backend.history(), version)
        if taken_back is not None:
            raise RunStopped(
                f"registry {backend.uri}: {version} was the champion and was rolled back on {taken_back['since']} by "
                f"{taken_back['by']} ({taken_back['reason'] or 'no reason given'}), so no run promotes it again; "
                f"`distilrank registry promote {version} --reason TEXT` does"
            )
        published_now = version not in backend.versions()
        if published_now:
            pages = sorted(path.name for path in folders.drift.glob("*.html"))  # that the report links to
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
            given = stages["preflight"]["config"]
            resolved = artifacts.read_record(folders.resolved)["facts"]
            stages["preflight"]["config"] = {name: given[name] for name in SECTIONS if name in given}
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
                artifacts.write_text(content / model_card.FILE, card)  # that of the student itself knows dev only
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
                        "resolved": {name: value for name, value in resolved.items() if name not in KNOWN},
                        "stages": stages,
                    },
                    "files": _files(content),
                }
                artifacts.write_json(content / "manifest.json", manifest)
                try:
                    backend.publish(content, version)
                except InputError:  # another run may have published the same student, with evidence of its own
                    published_now = version not in backend.versions()
                    if published_now:
                        raise
        if not published_now:
            backend.verify(version)
            progress.log_event("promote", "note", f"{version} is in the registry already and stays as it was published")
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
    """Make the first champion the anchor, which later ones are compared with however many promotions lie between."""
    if backend.alias(registries.ANCHOR):
        return
    try:
        backend.move(registries.ANCHOR, version, expected="", reason="the first champion")
    except RunStopped as error:  # someone set one in the meantime, which is as good
        progress.log_event("promote", "note", str(error))


def _require_matching_verdict(
    decision: Mapping[str, Any], version: str, champion: str, anchor: str, path: Path
) -> None:
    """Stop unless `decision` is to promote `version` over `champion` and `anchor`."""
    if decision["outcome"] == "unchanged":
        raise RunStopped(f"{path}: unchanged: {version} is the champion already, so there is nothing to promote")
    if not decision["promoted"]:
        failed = ", ".join(check["name"] for check in checks.failed(decision))
        raise RunStopped(f"{path}: {decision['outcome']} (failed: {failed}), so there is nothing to promote")
    if decision["candidate"]["id"] != version:
        raise RunStopped(f"{path}: is about {decision['candidate']['id']}, but the student is {version}")
    for name, expected in (("champion", champion), ("anchor", anchor)):
        judged = decision[name]["id"] if decision.get(name) else ""
        if judged != expected:
            raise RunStopped(f"{path}: compares with {judged or f'no {name}'}, expected {expected or f'no {name}'}")


def _check_evidence(made_of: Mapping[str, str], folders: Mapping[str, Path]) -> None:
    """Refuse evidence on another student than the one to promote, or in comparison with other versions.

    Args:
        made_of: digest or id of each input that stages may have in common, by name.
        folders: the folders of the stages, by name.
    """
    for name, shared in EVIDENCE.items():
        artifacts.check_made_of(folders[name], {key: made_of[key] for key in shared})


def _reason(decision: Mapping[str, Any]) -> str:
    """What the registry's history says of a promotion: nothing, or who set which checks aside."""
    override = decision.get("override")
    if not override:
        return ""
    failed = ", ".join(check["name"] for check in checks.failed(decision))
    return f"override by {override['by']} until {override['until']}: {override['reason']} (failed: {failed})"


def _record(folder: Path) -> dict[str, Any]:
    """What a stage was given, from its own record."""
    record = artifacts.read_record(folder)
    return {"config": record["config"], "inputs": record["inputs"]}


def _files(content: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file of a version, so that two versions can be compared without their bytes."""
    student = artifacts.read_json(content / "student" / artifacts.SEAL)["files"]
    known = {f"student/{name}": digest for name, digest in student.items()}
    paths = sorted(path for path in content.rglob("*") if path.is_file())
    names = {path.relative_to(content).as_posix(): path for path in paths}
    return {
        name: {"bytes": path.stat().st_size, "digest": known.get(name) or artifacts.digest_file(path)}
        for name, path in names.items()
    }


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
