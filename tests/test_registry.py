"""The local registry and promotion into it: immutable, verified, consistent whenever it is killed or raced."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distilrank import artifacts, gate, promote, records, registry
from distilrank.config import Gate, Registry, Text
from distilrank.errors import InputError, RunStopped
from distilrank.registry.local import Local

CHAMPION = registry.CHAMPION


def student(root: Path, weights: str) -> Path:
    folder = root / f"student-{weights}"
    artifacts.write_text(folder / "model.safetensors", weights * 1000)
    artifacts.write_text(folder / "onnx" / "model.onnx", weights)
    description = {"base": "wheel:mini", "text": Text().model_dump(mode="json"), "calibration": {"method": "none"}}
    artifacts.write_json(folder / "distilrank.json", description)
    artifacts.write_json(folder / "metrics.json", {"dev": {"student": 0.91, "bm25": 0.85}})
    artifacts.seal(folder)
    artifacts.write_json(folder / "stage.json", {"config": {"pointwise": 0.25}, "inputs": {"teacher": "t" * 64}})
    return folder


def version(root: Path, weights: str, note: str = "") -> tuple[Path, str]:
    """A folder to publish, and its id."""
    made = student(root, weights)
    folder = root / f"version-{weights}{note}"
    folder.mkdir()
    (folder / "student").symlink_to(made)
    name = registry.version_id(artifacts.sealed_digest(made))
    artifacts.write_json(folder / "manifest.json", {"id": name, "created": "2026-11-01T00:00:00Z", "note": note})
    return folder, name


def published(root: Path, *weights: str) -> tuple[registry.Backend, list[str]]:
    backend = registry.open(str(root / "registry"))
    names = []
    for text in weights:
        folder, name = version(root, text)
        backend.publish(folder, name)
        names.append(name)
    return backend, names


def promoted(root: Path, *weights: str) -> tuple[registry.Backend, list[str]]:
    backend, names = published(root, *weights)
    for before, name in zip(["", *names], names, strict=False):
        backend.move(CHAMPION, name, before)
    return backend, names


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# Opening ----------------------------------------------------------------------------------------------------------


def test_opening_makes_nothing_and_an_absent_registry_is_empty(tmp_path: Path) -> None:
    backend = registry.open(str(tmp_path / "registry"))
    assert (backend.champion(), backend.versions(), backend.history()) == ("", [], [])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="no champion yet"):
        registry.resolve(backend, CHAMPION)


def test_a_file_uri_is_the_same_folder(tmp_path: Path) -> None:
    backend, [name] = promoted(tmp_path, "a")
    other = registry.open(f"file://{tmp_path}/registry")
    assert other.uri == backend.uri and registry.resolve(other, CHAMPION) == registry.resolve(other, name) == name


@pytest.mark.parametrize(("uri", "named"), [("gs://shop/models", "gs://"), ("s3://x", "s3://"), ("", "''")])
def test_what_cannot_be_opened_is_named(uri: str, named: str) -> None:
    with pytest.raises(InputError, match="folder") as caught:
        registry.open(uri)
    assert named in str(caught.value)


def test_check_makes_the_folder_and_names_what_cannot_be_written(tmp_path: Path) -> None:
    registry.open(str(tmp_path / "new" / "registry")).check()
    assert (tmp_path / "new" / "registry").is_dir()
    assert everything(tmp_path / "new") == {}
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"registry .*/file: cannot use .*"):
        registry.open(str(tmp_path / "file")).check()


# Versions ---------------------------------------------------------------------------------------------------------


def test_a_version_comes_back_whole_and_verified(tmp_path: Path) -> None:
    backend, [name] = published(tmp_path, "a")
    folder = backend.fetch(name)
    assert backend.versions() == [name]
    assert artifacts.verify(folder / "student") == artifacts.sealed_digest(tmp_path / "student-a")
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert backend.manifest(name)["id"] == name


def test_publishing_again_is_a_no_op_and_other_content_an_error(tmp_path: Path) -> None:
    backend, [name] = published(tmp_path, "a")
    before = everything(Path(backend.uri))
    backend.publish(tmp_path / "version-a", name)
    other, _ = version(tmp_path, "a", note="other")
    with pytest.raises(InputError, match=r"manifest\.json: version v\w+ is published already, with other content"):
        backend.publish(other, name)
    assert everything(Path(backend.uri)) == before


def test_an_id_stands_for_the_students_bytes(tmp_path: Path) -> None:
    folder, name = version(tmp_path, "a")
    backend = registry.open(str(tmp_path / "registry"))
    with pytest.raises(InputError, match=f"is version {name}, expected v000000000000"):
        backend.publish(folder, "v000000000000")
    with pytest.raises(InputError, match="is no version id"):
        backend.publish(folder, "../outside")
    assert backend.versions() == []


@pytest.mark.parametrize("file", ["student/model.safetensors", "student/onnx/model.onnx", "manifest.json"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damage_is_named(tmp_path: Path, file: str, damage: str) -> None:
    backend, [name] = published(tmp_path, "a")
    path = tmp_path / "registry" / "versions" / name / file
    if damage == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        path.unlink()
    with pytest.raises(InputError, match=str(path)):
        backend.fetch(name)


def test_another_student_under_matching_seals_is_found_out(tmp_path: Path) -> None:
    backend, names = published(tmp_path, "a", "b")
    first, second = (tmp_path / "registry" / "versions" / name for name in names)
    (first / "student" / "digest.json").write_bytes((second / "student" / "digest.json").read_bytes())
    with pytest.raises(InputError, match=r"student/digest\.json: digest \w+ differs"):
        backend.fetch(names[0])
    (first / "student" / "model.safetensors").write_bytes((second / "student" / "model.safetensors").read_bytes())
    artifacts.seal(first / "student")
    artifacts.seal(first)
    with pytest.raises(InputError, match=f"expected {names[0]}"):
        backend.fetch(names[0])


def test_an_added_file_is_found_out(tmp_path: Path) -> None:
    backend, [name] = published(tmp_path, "a")
    (tmp_path / "registry" / "versions" / name / "student" / "extra.bin").write_text("x")
    with pytest.raises(InputError, match=r"extra\.bin: not listed"):
        backend.fetch(name)


def test_an_unknown_version_is_named_with_the_known_ones(tmp_path: Path) -> None:
    backend, [name] = published(tmp_path, "a")
    for wrong in ("v123456789abc", "../versions", "", CHAMPION):
        for ask in (backend.fetch, backend.manifest, lambda text: backend.move(CHAMPION, text, "")):
            with pytest.raises(InputError, match=f"no version {wrong!r}; it has: {name}"):
                ask(wrong)


# The champion -----------------------------------------------------------------------------------------------------


def test_moving_compares_before_it_sets(tmp_path: Path) -> None:
    backend, [first, second, third] = published(tmp_path, "a", "b", "c")
    backend.move(CHAMPION, first, "")
    backend.move(CHAMPION, second, first)
    before = everything(Path(backend.uri))
    with pytest.raises(RunStopped, match=f"champion is {second}, expected {first}; someone else moved it"):
        backend.move(CHAMPION, third, first)
    with pytest.raises(RunStopped, match=f"champion is {second}, expected not set"):
        backend.move(CHAMPION, third, "")
    backend.move(CHAMPION, second, first)  # a repeated move, after a kill say
    assert everything(Path(backend.uri)) == before
    alias = json.loads((tmp_path / "registry" / "aliases" / "champion.json").read_text())
    assert (alias["version"], alias["previous"]) == (second, first)
    assert alias["since"].endswith("Z")


def test_rollback_goes_back_promotion_by_promotion(tmp_path: Path) -> None:
    backend, [first, second, third] = promoted(tmp_path, "a", "b", "c")
    assert backend.rollback() == second == backend.champion()
    assert backend.rollback() == first == backend.champion()
    with pytest.raises(InputError, match=f"{first} is the first champion, nothing to roll back to"):
        backend.rollback()
    backend.move(CHAMPION, third, first)
    assert backend.rollback() == first
    assert backend.versions() == sorted([first, second, third])
    moves = [(record["action"], record["previous"], record["version"]) for record in backend.history()]
    assert moves == [
        ("promote", "", first),
        ("promote", first, second),
        ("promote", second, third),
        ("rollback", third, second),
        ("rollback", second, first),
        ("promote", first, third),
        ("rollback", third, first),
    ]
    assert all("@" in record["by"] and record["alias"] == CHAMPION for record in backend.history())


def test_rollback_of_nothing_and_to_a_damaged_version_change_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no champion yet"):
        registry.open(str(tmp_path / "empty")).rollback()
    backend, [first, second] = promoted(tmp_path, "a", "b")
    (tmp_path / "registry" / "versions" / first / "student" / "model.safetensors").write_text("damaged")
    with pytest.raises(InputError, match=r"model\.safetensors: digest"):
        backend.rollback()
    assert backend.champion() == second and len(backend.history()) == 2


def _race(uri: str, name: str, expected: str, barrier: Any, won: Any) -> None:
    read = Local._record

    def slowly(backend: Local, alias: str) -> dict[str, Any]:
        record = read(backend, alias)
        time.sleep(0.05)  # all the others read in the meantime, if nothing keeps them out
        return record

    Local._record = slowly  # type: ignore[method-assign]
    barrier.wait()
    try:
        registry.open(uri).move(CHAMPION, name, expected)
    except RunStopped:
        return
    won.put(name)


def test_of_many_that_move_at_once_one_wins(tmp_path: Path) -> None:
    backend, [first, *others] = published(tmp_path, *"abcdefg")
    backend.move(CHAMPION, first, "")
    context = multiprocessing.get_context("fork")
    barrier, won = context.Barrier(len(others)), context.Queue()
    racers = [context.Process(target=_race, args=(backend.uri, name, first, barrier, won)) for name in others]
    for racer in racers:
        racer.start()
    winner = won.get(timeout=10)
    for racer in racers:
        racer.join()
    assert won.empty() and backend.champion() == winner
    assert [record["version"] for record in backend.history()] == [first, winner]


# Killed -----------------------------------------------------------------------------------------------------------


def killed_at(owner: Any, name: str, action: Callable[..., Any], *arguments: Any) -> None:
    """Run `action` in a process that is killed as it comes to call `owner.name`."""

    def child() -> None:
        setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        action(*arguments)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("point", [(artifacts, "seal"), (Local, "_lock")])
def test_a_killed_publish_leaves_nothing_to_see_and_is_cleaned_up_when_old(tmp_path: Path, point: Any) -> None:
    folder, name = version(tmp_path, "a")
    backend = registry.open(str(tmp_path / "registry"))
    killed_at(*point, backend.publish, folder, name)
    [left] = (tmp_path / "registry" / "versions").iterdir()
    assert left.name.startswith(".") and backend.versions() == []

    other, other_name = version(tmp_path, "b")
    backend.publish(other, other_name)  # that attempt may still be alive
    assert left.exists() and backend.versions() == [other_name]
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(left, (two_days_ago, two_days_ago))
    backend.publish(folder, name)
    assert not left.exists() and backend.versions() == sorted([name, other_name])
    backend.fetch(name)


def test_copying_an_old_folder_does_not_make_the_attempt_look_old(tmp_path: Path) -> None:
    folder, name = version(tmp_path, "a")
    long_ago = time.time() - 30 * 24 * 3600
    os.utime(folder, (long_ago, long_ago))
    backend = registry.open(str(tmp_path / "registry"))
    killed_at(artifacts, "seal", backend.publish, folder, name)
    [left] = (tmp_path / "registry" / "versions").iterdir()
    backend.publish(*version(tmp_path, "b"))
    assert left.exists()


def test_killed_between_alias_and_log_the_log_is_completed(tmp_path: Path) -> None:
    backend, [first, second, third] = published(tmp_path, "a", "b", "c")
    backend.move(CHAMPION, first, "")
    killed_at(Local, "_append", backend.move, CHAMPION, second, first)
    assert backend.champion() == second
    assert [record["version"] for record in backend.history()] == [first, second]
    assert len((tmp_path / "registry" / "history.jsonl").read_text().splitlines()) == 1
    backend.move(CHAMPION, third, second)
    lines = (tmp_path / "registry" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["version"] for line in lines] == [first, second, third]
    assert backend.rollback() == second


def test_half_a_line_of_log_is_no_record(tmp_path: Path) -> None:
    backend, [first, second] = promoted(tmp_path, "a", "b")
    log = tmp_path / "registry" / "history.jsonl"
    log.write_bytes(log.read_bytes() + '{"alias": "champion", "by": "ü'.encode()[:-1])
    assert len(backend.history()) == 2
    assert backend.rollback() == first
    assert [json.loads(line)["action"] for line in log.read_text().splitlines()] == ["promote", "promote", "rollback"]
    assert second in backend.versions()


def test_a_damaged_alias_or_log_is_named(tmp_path: Path) -> None:
    backend, _ = promoted(tmp_path, "a")
    (tmp_path / "registry" / "history.jsonl").write_text("not json\n")
    with pytest.raises(InputError, match=r"history\.jsonl: line 1 is not JSON"):
        backend.rollback()
    (tmp_path / "registry" / "aliases" / "champion.json").write_text('{"version": "../x"}\n')
    with pytest.raises(InputError, match=r"champion\.json: got .* expected a record"):
        backend.champion()


# Promotion --------------------------------------------------------------------------------------------------------


def stages(root: Path, weights: str = "a", champion: dict[str, Any] | None = None) -> dict[str, Path]:
    """The folders that a promotion reads, as the stages leave them."""
    numbers = {"query_words", "query_characters", "unseen_words", "title_words", "bm25"}
    columns = {field.name: [1, 2] if field.name in numbers else ["x", "y"] for field in records.TRAFFIC}
    records.write(pa.table(columns), root / "traffic" / "reference.parquet", records.TRAFFIC)
    scores = pa.table({"score": np.array([0.2, 0.8], np.float32)})
    records.write(scores, root / "evaluation" / "traffic_scores" / "reference.parquet", records.TRAFFIC_SCORES)
    comparisons = [
        {
            "system": "student",
            "baseline": baseline,
            "metric": "ndcg_at_10",
            "delta": 0.1,
            "ci_low": 0.05,
            "ci_high": 0.2,
        }
        | {"queries": 100}
        for baseline in ("bm25", "random", "teacher", "champion")
    ]
    figures = {"student": {"ndcg_at_10": 0.9, "ece": 0.05}}
    measured = {"protocol": {"ranked_queries": 100}, "systems": figures, "comparisons": comparisons}
    artifacts.write_json(root / "evaluation" / "metrics.json", measured)
    artifacts.write_json(root / "drift" / "drift.json", {"candidate": {"share": 0.1}, "champion": None})
    artifacts.write_text(root / "drift" / "drift.html", "<p>drift</p>")
    artifacts.write_text(root / "report" / "report.html", "<p>report</p>")
    artifacts.write_json(root / "teacher" / "distilrank.json", {"base": "wheel:large"})
    artifacts.write_json(root / "profile" / "stage.json", {"config": {"salt": "s"}, "inputs": {}})
    for name in ("traffic", "evaluation", "drift", "teacher"):
        artifacts.seal(root / name)
        artifacts.write_json(root / name / "stage.json", {"config": {"of": name}, "inputs": {}})
    folders = {
        name: root / name for name in ("evaluation", "drift", "report", "traffic", "verdict", "teacher", "profile")
    }
    folders["student"] = student(root, weights)
    given = {name: folders[name] for name in ("evaluation", "drift", "student")}
    where = Registry(uri=str(root / "registry"))
    gate.gate(Gate(), where, champion=champion["id"] if champion else "", output=root / "verdict", **given)
    return folders


def run(root: Path, folders: dict[str, Path], champion: str = "", output: str = "promotion") -> str:
    return promote.promote(
        Registry(uri=str(root / "registry")),
        **folders,
        champion=champion,
        lineage={"data": "d" * 64, "code": "c" * 64, "run": "demo"},
        output=root / output,
    )


def test_promotion_publishes_a_version_that_tells_what_it_is(tmp_path: Path) -> None:
    folders = stages(tmp_path)
    name = run(tmp_path, folders)
    backend = registry.open(str(tmp_path / "registry"))
    assert backend.champion() == name == registry.version_id(artifacts.sealed_digest(folders["student"]))
    folder = backend.fetch(name)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "README.md",
        "manifest.json",
        "metrics.json",
        "verdict.json",
        "report.html",
        "drift.html",
        "digest.json",
        "traffic/reference.parquet",
        "traffic/reference_scores.parquet",
        "student/model.safetensors",
        "student/onnx/model.onnx",
        "student/distilrank.json",
        "student/metrics.json",
        "student/digest.json",
    }
    assert "On test" in (folder / "README.md").read_text() and ".9000" in (folder / "README.md").read_text()
    manifest = backend.manifest(name)
    assert manifest["digests"]["data"] == "d" * 64 and manifest["digests"]["code"] == "c" * 64
    assert manifest["digests"]["student"] == artifacts.sealed_digest(folders["student"])
    assert manifest["models"] == {"student": "wheel:mini", "teacher": "wheel:large"}
    assert manifest["lineage"]["stages"]["prepare"]["config"] == {"salt": "s"}
    assert manifest["metrics"]["ndcg_at_10"] == 0.9
    assert manifest["verdict"] == artifacts.read_json(tmp_path / "verdict" / "verdict.json")
    assert manifest["lineage"]["run"] == "demo"
    assert manifest["lineage"]["stages"]["gate"]["config"]["metric"] == "ndcg_at_10"
    promotion = artifacts.read_json(tmp_path / "promotion" / "promotion.json")
    assert (promotion["version"], promotion["previous"], promotion["outcome"]) == (name, "", "cold_start")


def test_promotion_is_repeatable_wherever_it_was_killed(tmp_path: Path) -> None:
    folders = stages(tmp_path)
    backend = registry.open(str(tmp_path / "registry"))
    killed_at(Local, "move", run, tmp_path, folders)
    [name] = backend.versions()
    assert backend.champion() == ""
    bytes_before = everything(tmp_path / "registry" / "versions")
    # Other evidence by now (a report carries timings), and the same student.
    artifacts.write_text(tmp_path / "report" / "report.html", "<p>another report</p>")
    assert run(tmp_path, folders) == name == backend.champion()
    assert run(tmp_path, folders, output="again") == name  # killed after the alias moved
    assert everything(tmp_path / "registry" / "versions") == bytes_before
    assert len(backend.history()) == 1


def test_a_second_student_replaces_the_first_with_both_kept(tmp_path: Path) -> None:
    first = run(tmp_path, stages(tmp_path))
    second = run(tmp_path, stages(tmp_path, "b", champion={"id": first}), champion=first)
    backend = registry.open(str(tmp_path / "registry"))
    assert backend.champion() == second and backend.versions() == sorted([first, second])
    assert backend.manifest(second)["verdict"]["champion"]["id"] == first
    assert backend.rollback() == first


def refuse(tmp_path: Path, folders: dict[str, Path], match: str, champion: str = "") -> None:
    with pytest.raises((RunStopped, InputError), match=match):
        run(tmp_path, folders, champion)
    backend = registry.open(str(tmp_path / "registry"))
    assert (backend.versions(), backend.champion()) == ([], "")
    assert not (tmp_path / "promotion" / "promotion.json").exists()


def test_only_a_promoting_verdict_promotes(tmp_path: Path) -> None:
    folders = stages(tmp_path)
    path = tmp_path / "verdict" / "verdict.json"
    verdict = artifacts.read_json(path)
    verdict["checks"][0]["passed"] = False
    artifacts.write_json(path, verdict | {"outcome": "refused", "promoted": False})
    refuse(tmp_path, folders, r"refused \(failed: enough_queries\), so there is nothing to promote")


def test_a_verdict_on_another_student_does_not_count(tmp_path: Path) -> None:
    folders = stages(tmp_path)
    refuse(tmp_path, folders | {"student": student(tmp_path, "b")}, "is about v.*, but the student is v")


def test_a_verdict_over_another_champion_does_not_count(tmp_path: Path) -> None:
    refuse(tmp_path, stages(tmp_path), "compares with no champion, expected v0", champion="v000000000000")


@pytest.mark.parametrize(
    ("part", "file"),
    [("student", "model.safetensors"), ("evaluation", "metrics.json"), ("traffic", "reference.parquet")],
)
def test_damaged_input_is_not_published(tmp_path: Path, part: str, file: str) -> None:
    folders = stages(tmp_path)
    path = folders[part] / file
    path.write_bytes(path.read_bytes() + b" ")
    refuse(tmp_path, folders, f"{path}: digest")


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    folders = stages(tmp_path)
    (tmp_path / "report" / "report.html").unlink()
    refuse(tmp_path, folders, r"report\.html: no such file")


def test_someone_elses_promotion_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    folders = stages(tmp_path)
    backend, [other] = promoted(tmp_path, "z")
    with pytest.raises(RunStopped, match=f"champion is {other}, expected not set"):
        run(tmp_path, folders)
    assert backend.champion() == other
