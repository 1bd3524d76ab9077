"""Promotion: a version tells all that it came from, and a run that is killed, raced or late does no harm."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distilrank import registry
from distilrank.config import Registry
from distilrank.core import artifacts, progress
from distilrank.core.errors import InputError, RunStopped
from distilrank.registry.local import Local
from tests.promotions import IMAGES, LINEAGE, OVERRIDE, fill, run, seal, stages


@pytest.fixture
def config(tmp_path: Path) -> Registry:
    return Registry(uri=str(tmp_path / "registry"))


@pytest.fixture
def backend(config: Registry) -> registry.Backend:
    return registry.connect(config)


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def killed_at(name: str, action: Callable[..., Any], *arguments: Any, calls: int = 1) -> None:
    """Run `action` in a process that is killed as it comes to call the backend's method `name` for the nth time."""

    def child() -> None:
        original, left = getattr(Local, name), [calls]

        def method(*call_arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*call_arguments, **named)

        setattr(Local, name, method)
        action(*arguments)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_version_records_what_it_is_and_everything_it_came_from(
    tmp_path: Path, config: Registry, backend: registry.Backend
) -> None:
    folders = stages(tmp_path / "run")
    name = run(config, folders)
    assert backend.alias("champion") == backend.alias("anchor") == name
    assert name == registry.version_id(artifacts.sealed_digest(folders["student"]))
    folder = backend.fetch(name)
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert held == {
        "README.md",
        "manifest.json",
        "metrics.json",
        "verdict.json",
        "report.html",
        "drift.html",
        "summary.html",
        "digest.json",
        "traffic/reference.parquet",
        "traffic/reference_scores.parquet",
        "student/model.safetensors",
        "student/onnx/model.onnx",
        "student/distilrank.json",
        "student/metrics.json",
        "student/digest.json",
    }
    manifest = backend.manifest(name)
    sealed = artifacts.read_json(folder / "digest.json")["files"]
    assert {path: file["digest"] for path, file in manifest["files"].items()} == {
        path: digest for path, digest in sealed.items() if path != "manifest.json"
    } | {"student/digest.json": artifacts.digest_file(folder / "student" / "digest.json")}
    assert manifest["files"]["student/model.safetensors"]["bytes"] == 1000
    assert manifest["digests"]["data"] == "d" * 64 and manifest["digests"]["code"] == "c" * 64
    for stage in ("teacher", "student", "evaluation", "drift", "traffic"):
        assert manifest["digests"][stage] == artifacts.sealed_digest(folders[stage])
    assert manifest["models"] == {"student": "wheel:mini", "teacher": "wheel:large"}
    assert manifest["metrics"] == {"ndcg_at_10": 0.9, "ece": 0.05, "mrr": None}
    assert manifest["verdict"] == artifacts.read_json(folders["verdict"] / "verdict.json")
    lineage = manifest["lineage"]
    assert (lineage["name"], lineage["images"]) == ("nightly", IMAGES)
    assert lineage["parents"] == {"champion": "", "anchor": ""}
    assert lineage["resolved"] == {"newest_end": "2026-11-01"}
    every = {"preflight", "prepare", "teacher", "label", "student", "evaluate", "drift", "gate", "report"}
    assert set(lineage["stages"]) == every
    assert lineage["stages"]["preflight"]["config"] == {"data": {"path": "shop.csv"}, "window": {"days": 28}}
    assert lineage["stages"]["gate"]["config"] == {"metric": "ndcg_at_10"}
    assert lineage["stages"]["label"]["config"] == {"batch": 32}
    card = (folder / "README.md").read_text()
    assert "On test" in card and ".9000" in card
    assert "promoted as the first of its registry: 2 of 2 checks passed" in card
    promotion = artifacts.read_json(tmp_path / "run" / "promotion" / "promotion.json")
    assert (promotion["version"], promotion["previous"], promotion["outcome"]) == (name, "", "cold_start")


def test_an_override_is_shown_wherever_the_version_is(
    tmp_path: Path, config: Registry, backend: registry.Backend
) -> None:
    [first] = fill(config, tmp_path, "a")
    folders = stages(tmp_path / "run", "b", champion=first, anchor=first, override=OVERRIDE)
    name = run(config, folders, champion=first, anchor=first)
    manifest, card = backend.manifest(name), (backend.fetch(name) / "README.md").read_text()
    assert manifest["verdict"]["override"] == OVERRIDE
    assert manifest["lineage"]["parents"] == {"champion": first, "anchor": first}
    [record] = [record for record in backend.history() if record["version"] == name]
    for text in (record["reason"], card):
        for word in ("ana@shop.example", "2026-12-01", "season starts on Monday", "latency"):
            assert word in text
    assert f"in place of `{first}`: 1 of 2 checks passed" in card


def test_it_logs_the_new_champion_for_programs_too(
    tmp_path: Path, config: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = fill(config, tmp_path, "a", "b")
    events = [event for line in capsys.readouterr().out.splitlines() if (event := progress.parse(line))]
    assert [(event.stage, json.loads(event.text)) for event in events if event.event == "outcome"] == [
        ("promote", {"version": first, "previous": None}),
        ("promote", {"version": second, "previous": first}),
    ]


def test_only_the_first_promotion_sets_the_anchor(tmp_path: Path, config: Registry, backend: registry.Backend) -> None:
    first, second = fill(config, tmp_path, "a", "b")
    assert (backend.alias("champion"), backend.alias("anchor")) == (second, first)
    assert backend.versions() == sorted([first, second])
    assert [record["alias"] for record in backend.history()].count("anchor") == 1


@pytest.mark.parametrize(("method", "calls"), [("publish", 1), ("move", 1), ("move", 2)])
def test_a_promotion_is_repeatable_wherever_it_was_killed(
    tmp_path: Path, config: Registry, backend: registry.Backend, method: str, calls: int
) -> None:
    folders = stages(tmp_path / "run")
    killed_at(method, run, config, folders, calls=calls)
    before = everything(tmp_path / "registry" / "versions") if backend.versions() else None
    # Other evidence by now (a report carries timings), and the same student.
    artifacts.write_text(folders["report"] / "report.html", "<p>another report</p>")
    seal(folders)
    name = run(config, folders)
    assert backend.alias("champion") == backend.alias("anchor") == name
    assert before is None or everything(tmp_path / "registry" / "versions") == before
    whole = everything(tmp_path / "registry")
    assert run(config, folders, output="again") == name
    assert everything(tmp_path / "registry") == whole and len(backend.history()) == 2


def test_a_student_that_was_rolled_back_is_not_promoted_again_by_a_run(
    tmp_path: Path, config: Registry, backend: registry.Backend
) -> None:
    first, second = fill(config, tmp_path, "a", "b")
    backend.rollback(reason="empty results for sofas")
    before = everything(tmp_path / "registry")
    folders = stages(tmp_path / "run", "b", champion=first, anchor=first)
    with pytest.raises(
        RunStopped, match=rf"{second} was the champion and was rolled back on 20.* by .*\(empty results"
    ):
        run(config, folders, champion=first, anchor=first)
    assert everything(tmp_path / "registry") == before
    backend.move("champion", second, first, action="move", reason="the index is repaired")
    third = run(config, stages(tmp_path / "run", "c", champion=second, anchor=first), champion=second, anchor=first)
    assert backend.alias("champion") == third
    again = stages(tmp_path / "run", "b", champion=third, anchor=first)  # replaced by a better one, never taken back
    assert run(config, again, champion=third, anchor=first) == second


def test_the_version_that_a_rollback_went_to_can_be_promoted_on_from(
    tmp_path: Path, config: Registry, backend: registry.Backend
) -> None:
    first, _ = fill(config, tmp_path, "a", "b")
    backend.rollback()
    third = run(config, stages(tmp_path / "run", "c", champion=first, anchor=first), champion=first, anchor=first)
    assert backend.alias("champion") == third and backend.rollback() == first


def test_of_two_runs_that_publish_the_same_student_at_once_both_succeed(
    tmp_path: Path, config: Registry, backend: registry.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, others = stages(tmp_path / "run"), stages(tmp_path / "other")
    artifacts.write_text(others["report"] / "report.html", "<p>another report</p>")
    seal(others)
    publish = Local.publish

    def overtaken(self: Local, folder: Path, version: str) -> None:
        with monkeypatch.context() as inner:
            inner.setattr(Local, "publish", publish)
            run(config, others)
        publish(self, folder, version)

    monkeypatch.setattr(Local, "publish", overtaken)
    name = run(config, folders)
    assert backend.alias("champion") == name and len(backend.history()) == 2
    assert (backend.fetch(name) / "report.html").read_text() == "<p>another report</p>"
    assert artifacts.read_json(tmp_path / "run" / "promotion" / artifacts.RECORD)["facts"]["published_now"] is False


def test_what_prevents_publishing_is_reported(tmp_path: Path, config: Registry) -> None:
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "versions").touch()
    with pytest.raises(InputError, match=r"cannot use .*/versions"):
        run(config, stages(tmp_path / "run"))


# Refused ----------------------------------------------------------------------------------------------------------


def refuse(config: Registry, folders: dict[str, Path], match: str, **arguments: Any) -> None:
    with pytest.raises((RunStopped, InputError), match=match):
        run(config, folders, **arguments)
    backend = registry.connect(config)
    assert (backend.versions(), backend.aliases()) == ([], {})
    assert not (folders["student"].parent / "promotion" / "promotion.json").exists()


def test_only_a_promoting_verdict_promotes(tmp_path: Path, config: Registry) -> None:
    folders = stages(tmp_path / "run")
    path = folders["verdict"] / "verdict.json"
    verdict = artifacts.read_json(path)
    verdict["checks"][0]["passed"] = False
    artifacts.write_json(path, verdict | {"outcome": "refused", "promoted": False})
    seal(folders)
    refuse(config, folders, r"refused \(failed: lift_over_bm25\), so there is nothing to promote")


def test_an_unchanged_student_is_not_called_refused(tmp_path: Path, config: Registry) -> None:
    folders = stages(tmp_path / "run")
    path = folders["verdict"] / "verdict.json"
    verdict = artifacts.read_json(path)
    verdict["checks"].append({"name": "new", "passed": False, "value": "v", "bound": "v", "detail": "the same"})
    artifacts.write_json(path, verdict | {"outcome": "unchanged", "promoted": False})
    seal(folders)
    refuse(config, folders, r"unchanged: v\w{12} is already the champion, so there is nothing to promote")


def test_a_verdict_on_anything_else_does_not_count(tmp_path: Path, config: Registry) -> None:
    other = stages(tmp_path / "other", "b")["student"]
    refuse(config, stages(tmp_path / "run") | {"student": other}, "the candidate is v.*, but the student is v")
    folders = stages(tmp_path / "run")
    refuse(config, folders, "compares with no champion, expected v0", champion="v000000000000")
    refuse(config, folders, "compares with no anchor, expected v0", anchor="v000000000000")


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("student", "model.safetensors"),
        ("evaluation", "metrics.json"),
        ("traffic", "reference.parquet"),
        ("teacher", "distilrank.json"),
        ("drift", "drift.json"),
        ("verdict", "verdict.json"),
        ("report", "report.html"),
    ],
)
def test_damaged_input_is_not_published(tmp_path: Path, config: Registry, part: str, file: str) -> None:
    folders = stages(tmp_path / "run")
    path = folders[part] / file
    path.write_bytes(path.read_bytes() + b" ")
    refuse(config, folders, f"{path}: digest")


@pytest.mark.parametrize("part", ["evaluation", "drift", "verdict", "report"])
def test_evidence_on_another_student_is_not_published(tmp_path: Path, config: Registry, part: str) -> None:
    other = stages(tmp_path / "other", "b")
    if part == "verdict":  # it names the right student, and was reached on the evaluation of another
        shutil.copy(stages(tmp_path / "run")["verdict"] / "verdict.json", other[part])
        seal(other)
    folders = stages(tmp_path / "run") | {part: other[part]}
    refuse(config, folders, rf"other/{part}: made with \w+ \w{{13}}, expected \w{{13}}")


@pytest.mark.parametrize("part", ["evaluation", "drift", "verdict", "report", "student", "resolved"])
def test_a_record_that_is_missing_or_of_another_folder_is_not_published(
    tmp_path: Path, config: Registry, part: str
) -> None:
    folders = stages(tmp_path / "run")
    path = folders[part] / artifacts.RECORD
    record = path.read_text()
    path.unlink()
    refuse(config, folders, f"{path}: no such file, expected the record of the stage that made the folder")
    path.write_text(record.replace("config", "Config"))
    refuse(config, folders, f"{path}: differs from the digest that it holds of itself")
    path.write_text((stages(tmp_path / "other", "b", ndcg=0.8)["traffic"] / artifacts.RECORD).read_text())
    refuse(config, folders, rf"{path}: is the record of other results \(\w{{12}}\), expected that of \w{{12}}")


def test_what_is_missing_is_named(tmp_path: Path, config: Registry) -> None:
    folders = stages(tmp_path / "run")
    for name in LINEAGE:
        refuse(config, folders, f"lineage: '{name}' is missing", lineage={**LINEAGE, name: ""})
    (folders["report"] / "report.html").unlink()
    refuse(
        config, folders, r"input report \(.*\): lacks 1 of its 1 files, report\.html for one; its files were deleted"
    )


def test_someone_elses_promotion_meanwhile_is_not_overwritten(
    tmp_path: Path, config: Registry, backend: registry.Backend
) -> None:
    folders = stages(tmp_path / "run")
    [other] = fill(config, tmp_path, "z")
    with pytest.raises(RunStopped, match=f"champion is {other}, expected not set"):
        run(config, folders)
    assert backend.alias("champion") == backend.alias("anchor") == other
