"""`distilrank registry`, run as people run it, on a small registry that promotion filled."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distilrank import cli, registry
from distilrank.config import Registry
from distilrank.registry import ledger
from tests.promotions import IMAGES, OVERRIDE, fill, run, stages

HERE = Registry(uri="registry")


@dataclass
class Ran:
    """What one run of the command left."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)

    def complains(self, *words: str, status: int = 2) -> None:
        assert self.status == status, self.err
        assert len(self.err.strip().splitlines()) == 1 and self.err.startswith("distilrank: "), self.err
        for word in words:
            assert word in self.err, self.err


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main(["registry", *map(str, arguments)])
        captured = capsys.readouterr()
        return Ran(int(exit.value.code or 0), captured.out, captured.err)

    return command


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A registry of three versions: the first is the anchor, the third the champion."""
    root = tmp_path_factory.mktemp("filled")
    return root / "registry", fill(Registry(uri=str(root / "registry")), root, "a", "b", "c")


@pytest.fixture
def versions(call: Any, filled: tuple[Path, list[str]], tmp_path: Path) -> list[str]:
    """The same in ./registry."""
    shutil.copytree(filled[0], tmp_path / "registry")
    return filled[1]


def aliases() -> dict[str, str]:
    return registry.connect(HERE).aliases()


# Looking ----------------------------------------------------------------------------------------------------------


def test_list_shows_what_each_alias_names(call: Any, versions: list[str]) -> None:
    rows = call("list", "--json").json()
    shown = {row["id"]: (row["aliases"], row["outcome"], row["metrics"]["ndcg_at_10"]) for row in rows}
    assert shown == {
        versions[0]: (["anchor"], "cold_start", 0.9),
        versions[1]: ([], "promoted", 0.91),
        versions[2]: (["champion"], "promoted", 0.92),
    }
    lines = {line.split()[1]: line for line in call("list").out.splitlines() if line.startswith("│ v")}
    assert "anchor" in lines[versions[0]] and "champion" in lines[versions[2]] and "0.9200" in lines[versions[2]]
    assert versions[1] in lines[versions[2]]  # in place of


def test_an_empty_registry_lists_nothing(call: Any, tmp_path: Path) -> None:
    registry.connect(HERE).check()
    assert call("list", "--json").json() == []
    assert "no version yet" in call("list").out
    call("show").complains("no champion yet")
    call("rollback", "--reason", "x").complains("no champion yet")
    call("diff", "anchor", "champion").complains("no alias 'anchor'")
    assert call("gc", "--keep", "1", "--json").json()["removed"] == []
    assert list(tmp_path.rglob("*.json")) == []


def test_a_folder_without_a_registry_is_named_and_left_unchanged(call: Any, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("absent", "photos"):
        for command in (
            ("list",),
            ("show",),
            ("diff", "a", "b"),
            ("verify",),
            ("gc", "--keep", "1"),
            ("rollback", "--reason", "x"),
            ("promote", "champion", "--reason", "x"),
        ):
            call(*command, "--registry", tmp_path / name).complains(f"{tmp_path / name}: there is no registry")
    assert list(tmp_path.rglob("*")) == [tmp_path / "photos"]


def test_show_prints_the_reason_and_the_sources(call: Any, versions: list[str]) -> None:
    text = call("show").out
    words = ("95 % CI [0.071, 0.108]", "d" * 64, "wheel:mini", "0.9200", "promote", "nightly", IMAGES["train"])
    for word in (f"{versions[2]}, champion, created 20", *words):
        assert word in text
    shown = call("show", "anchor", "--json").json()
    assert (shown["id"], shown["aliases"]) == (versions[0], ["anchor"])
    moves = {(record["alias"], record["version"]) for record in shown["history"]}
    assert moves == {("champion", versions[0]), ("champion", versions[1]), ("anchor", versions[0])}
    call("show", "v000000000000").complains("no version 'v000000000000'", *versions)


def test_show_prints_who_overrode_which_check(call: Any, tmp_path: Path, versions: list[str]) -> None:
    before = {"champion": versions[2], "anchor": versions[0]}
    run(HERE, stages(tmp_path / "run", "d", override=OVERRIDE, **before), **before)
    text = call("show").out
    assert "overridden by ana@shop.example until 2026-12-01: season starts on Monday" in text
    assert re.search(r"latency +│ failed", text)


def test_diff_prints_what_changed_and_nothing_else(call: Any, versions: list[str]) -> None:
    diff = call("diff", "anchor", "champion", "--json").json()
    assert (diff["a"], diff["b"]) == (versions[0], versions[2])
    measures = {row["name"]: row for row in diff["measures"]}
    assert measures["ndcg_at_10"]["difference"] == pytest.approx(0.02)
    assert measures["ece"]["difference"] == 0 and measures["mrr"]["difference"] is None
    assert diff["settings"] == [{"name": "student.passes", "a": 3, "b": 5}]
    origin = {row["name"]: (row["a"], row["b"]) for row in diff["origin"]}
    changed = {"digest of student", "digest of report", "digest of evaluation", "digest of configuration"}
    assert set(origin) == changed | {"compared with champion", "compared with anchor"}
    assert origin["compared with champion"] == ("-", versions[1])
    files = {row["name"]: (row["a"], row["b"]) for row in diff["files"]}
    assert files["student/model.safetensors"] == (1000, 1000)
    assert {"report.html", "student/digest.json", "verdict.json", "metrics.json", "README.md"} <= set(files)
    assert not {"drift.html", "student/distilrank.json", "traffic/reference.parquet"} & set(files)
    text = call("diff", "anchor", "champion").out
    for pattern in (r"nDCG@10 +│ 0\.9000 +│ 0\.9200 +│ \+0\.0200", r"student\.passes +│ 3 +│ 5", "1,000"):
        assert re.search(pattern, text), text
    same = call("diff", "champion", versions[2]).out
    assert all(f"{what}: no difference" in same for what in ("Settings", "Origin", "Files"))


# Changing ---------------------------------------------------------------------------------------------------------


def test_promote_moves_an_alias_on_purpose(call: Any, versions: list[str]) -> None:
    record = call("promote", "champion", "--alias", "anchor", "--reason", "yearly  review", "--json").json()
    assert (record["version"], record["previous"], record["action"]) == (versions[2], versions[0], "move")
    assert (record["reason"], aliases()["anchor"]) == ("yearly review", versions[2])
    assert call("promote", versions[1], "--reason", "x").out == f"champion: {versions[1]}, before: {versions[2]}\n"
    again = call("promote", versions[1], "--reason", "x").out
    assert again == f"champion: {versions[1]}, before: {versions[2]} (was already)\n"
    assert call("promote", versions[1], "--expect", "champion", "--reason", "x").status == 0
    assert call("promote", versions[0], "--alias", "holdout", "--reason", "A/B").out.endswith("before: none\n")
    assert aliases() == {"anchor": versions[2], "champion": versions[1], "holdout": versions[0]}


def test_promote_refuses_bad_arguments(call: Any, versions: list[str], tmp_path: Path) -> None:
    before = aliases()
    stale = call("promote", versions[0], "--expect", versions[1], "--reason", "x")
    stale.complains(f"champion is {versions[2]}, expected {versions[1]}", status=1)
    call("promote", "v000000000000", "--reason", "x").complains("no version 'v000000000000'")
    call("promote", versions[0], "--alias", "Bad Name", "--reason", "x").complains("'Bad Name' is not an alias")
    call("promote", versions[0], "--expect", "anchor", "--reason", "x").complains(f"expected {versions[0]}", status=1)
    call("promote", versions[0], "--expect", "nobody", "--reason", "x").complains("no alias 'nobody'")
    call("promote", versions[0], "--expect", "v000000000000", "--reason", "x").complains("no version 'v000000000000'")
    call("promote", versions[0], "--reason", " ").complains("--reason: is empty")
    call("promote", versions[0], "--reason", "sof\udce4").complains("--reason: is not UTF-8")
    call("rollback", "--reason", "sof\udce4").complains("--reason: is not UTF-8")
    assert call("promote", versions[0]).status == 2
    damaged = tmp_path / "registry" / "versions" / versions[0] / "student" / "model.safetensors"
    damaged.write_text("other")
    call("promote", versions[0], "--reason", "x").complains(str(damaged))
    assert aliases() == before


def test_a_registry_that_lost_its_aliases_waits_for_a_person(call: Any, versions: list[str], tmp_path: Path) -> None:
    for folder in ("aliases", "history"):
        shutil.rmtree(tmp_path / "registry" / folder)
    for command in (["show"], ["verify"], ["rollback", "--reason", "x"]):
        call(*command).complains("but no champion", "`distilrank registry promote VERSION --reason TEXT`")
    assert call("promote", versions[2], "--reason", "it was in use").out == f"champion: {versions[2]}, before: none\n"
    assert call("verify").status == call("show").status == 0


def test_rollback_from_a_version_is_done_once(call: Any, versions: list[str]) -> None:
    act = ("rollback", "--expect", versions[2], "--reason", "empty results")
    assert call(*act).out == f"champion: {versions[1]}, before: {versions[2]}\n"
    assert call(*act).out == f"champion: {versions[1]}, before: {versions[2]} (was already)\n"
    late = call("rollback", "--expect", versions[0], "--reason", "x")
    late.complains(f"champion is {versions[1]}, expected {versions[0]}", "nothing is rolled back", status=1)
    call("rollback", "--expect", "v000000000000", "--reason", "x").complains("no version 'v000000000000'")
    assert aliases()["champion"] == versions[1]


def test_no_text_of_a_registry_commands_the_terminal(call: Any, versions: list[str]) -> None:
    reason = "red \x1b[31m, \x9b2J, \x07 and \x7f"
    call("promote", versions[1], "--reason", reason)
    for command in (["show"], ["show", "--json"], ["list"], ["rollback", "--reason", reason, "--json"]):
        out = call(*command).out
        assert not set(out) & set("\x1b\x9b\x07\x7f") and ("red" in out) == (command != ["list"])
    assert "red \\x1b[31m, \\x9b2J, \\x07 and \\x7f" in call("show", versions[1]).out
    assert call("show", versions[1], "--json").json()["history"][-1]["reason"] == reason
    refused = call("promote", "\x1b[2Jv", "--reason", "x")
    assert refused.status == 2 and "\x1b" not in refused.err


def test_rollback_goes_back_one_by_one_and_prints_why(call: Any, versions: list[str]) -> None:
    record = call("rollback", "--reason", "empty results", "--json").json()
    assert (record["version"], record["previous"]) == (versions[1], versions[2])
    assert (record["action"], record["reason"]) == ("rollback", "empty results")
    assert call("rollback", "--reason", "x").out == f"champion: {versions[0]}, before: {versions[1]}\n"
    call("rollback", "--reason", "x").complains("nothing to roll back to")
    call("rollback", "--alias", "anchor", "--reason", "x").complains("is the first anchor")
    call("rollback", "--alias", "other", "--reason", "x").complains("other was never set")


def test_verify_reads_every_version_and_names_the_damaged_file(call: Any, versions: list[str], tmp_path: Path) -> None:
    assert call("verify").out.count("every digest matches") == 3
    damaged = tmp_path / "registry" / "versions" / versions[0] / "student" / "model.safetensors"
    damaged.write_text("other")
    ran = call("verify", "--json")
    problems = {row["id"]: row["problem"] for row in json.loads(ran.out)}
    assert str(damaged) in problems[versions[0]] and problems[versions[1]] is None
    ran.complains("1 of 3 versions damaged", versions[0])
    assert call("verify", "champion", "--json").json() == [{"id": versions[2], "problem": None}]
    call("verify", "anchor").complains(versions[0])


def test_a_damaged_history_is_no_damage_of_versions(call: Any, versions: list[str], tmp_path: Path) -> None:
    damaged = tmp_path / "registry" / "history" / "champion" / "00000001.json"
    damaged.write_text("{}\n")
    ran = call("verify")
    ran.complains(f"{damaged}: damaged")
    assert "versions damaged" not in ran.err and ran.out == ""


def test_verify_finds_an_alias_without_its_version(call: Any, versions: list[str], tmp_path: Path) -> None:
    (tmp_path / "registry" / "versions" / versions[2]).rename(tmp_path / "taken-away")
    call("verify").complains(f"no version '{versions[2]}'")


def test_gc_prints_what_it_would_free_and_frees_it(
    call: Any, versions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("gc", "--keep", "1", "--json").json()["removed"] == []  # all of them are of today
    monkeypatch.setattr(ledger, "MINIMUM_AGE", -1.0)
    assert call("gc", "--keep", "2", "--json").json()["removed"] == []  # back by one rollback
    dry = call("gc", "--keep", "1", "--dry-run", "--json").json()
    folder = tmp_path / "registry" / "versions" / versions[1]
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    [row] = dry["removed"]
    own = sum((folder / name).stat().st_size for name in ("manifest.json", "digest.json"))
    assert (row["id"], row["bytes"], dry["bytes"]) == (versions[1], held - own, held - own) and folder.exists()
    assert f"{versions[1]}: would be removed, " in call("gc", "--keep", "1", "--dry-run").out
    assert f"{versions[1]}: removed, " in call("gc", "--keep", "1").out
    assert not folder.exists() and registry.connect(HERE).versions() == sorted([versions[0], versions[2]])
    assert call("gc", "--keep", "0").status == 2


def test_a_configuration_names_the_registry(call: Any, versions: list[str], tmp_path: Path) -> None:
    settings = tmp_path / "shop.yaml"
    settings.write_text('{"data": {"source": "demo_shop"}, "registry": {"uri": "registry"}}')
    assert len(call("list", "--config", settings, "--json").json()) == 3
    call("list", "--config", settings, "--registry", "other").complains("/other: there is no registry")
    call("list", "--config", "absent.yaml").complains("absent.yaml: no such configuration file")
    call("mirror", "--config", settings).complains("no mirror, expected registry.mirror")


def test_every_command_teaches_by_an_example(call: Any) -> None:
    text = call("--help").out
    for command in ("list", "show", "diff", "promote", "rollback", "verify", "gc", "mirror"):
        assert command in text
        assert f"distilrank registry {command}" in " ".join(call(command, "--help").out.split())
