"""The stage around the decision: what it reads, writes, counts and refuses to decide on; and asking again."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from distilrank import cli, registry
from distilrank.config import Gate, Registry, parameters, parse
from distilrank.core import artifacts, progress, sketch
from distilrank.core.errors import InputError
from distilrank.core.run_folders import RunFolders
from distilrank.promotion import gate
from tests.promotion.test_checks import DRIFT, metrics

FOLDERS = ("evaluation", "drift", "student", "judgements")


class Stage:
    """A candidate with its evaluation, and a registry with a champion, all on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, Registry(uri=str(folder / "registry"))
        self.other: dict[str, dict[str, str]] = {"evaluation": {}, "drift": {}}
        """What the records of these stages tell that is not so, by the input's name."""
        self.measured(metrics())
        artifacts.write_json(folder / "drift" / "drift.json", DRIFT)
        artifacts.write_text(folder / "judgements" / "test.parquet", "rows")
        for name in ("drift", "judgements"):
            artifacts.seal(folder / name)
        self.student("weights")

    def measured(self, figures: dict[str, Any]) -> None:
        artifacts.write_json(self.folder / "evaluation" / "metrics.json", figures)
        artifacts.seal(self.folder / "evaluation")

    def record_inputs(self, champion: str = "", anchor: str = "") -> dict[str, str]:
        """Have the stages before this one tell what they were made from, and return it."""
        digests = {name: artifacts.sealed_digest(self.folder / name) for name in FOLDERS}
        made_of = digests | {"champion": champion, "anchor": anchor, "traffic": "7" * 64}
        for name, other in self.other.items():
            artifacts.write_record(self.folder / name, {"inputs": made_of | other})
        return made_of

    def student(self, weights: str) -> str:
        artifacts.write_text(self.folder / "student" / "model.safetensors", weights)
        return registry.version_id(artifacts.seal(self.folder / "student"))

    def promoted(self, weights: str) -> str:
        """A version of the registry that is champion and anchor."""
        made = self.folder / f"made-{weights}"
        artifacts.write_text(made / "student" / "model.safetensors", weights)
        version = registry.version_id(artifacts.seal(made / "student"))
        manifest = {"id": version, "created": "2026-10-01T00:00:00Z", "lineage": {"name": f"made-{weights}"}}
        artifacts.write_json(made / "manifest.json", manifest)
        backend = registry.connect(self.where)
        backend.publish(made, version)
        for alias in (registry.CHAMPION, registry.ANCHOR):
            backend.move(alias, version, backend.alias(alias))
        return version

    def decide(self, policy: Gate | None = None, champion: str = "", anchor: str = "", newest_end: str = "") -> bool:
        self.record_inputs(champion, anchor)
        return self.run(policy, champion, anchor, newest_end)

    def run(self, policy: Gate | None = None, champion: str = "", anchor: str = "", newest_end: str = "") -> bool:
        return gate.gate(
            policy or Gate(),
            self.where,
            RunFolders(**{name: self.folder / name for name in FOLDERS}),
            champion=champion,
            anchor=anchor,
            newest_end=newest_end,
            output=self.folder / "verdict",
        )

    @property
    def verdict(self) -> dict[str, Any]:
        return artifacts.read_json(self.folder / "verdict" / "verdict.json")

    @property
    def record(self) -> dict[str, Any]:
        return artifacts.read_json(self.folder / "verdict" / "stage.json")


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_it_writes_the_verdict_and_its_record(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.decide() is True
    digest = artifacts.sealed_digest(stage.folder / "student")
    assert stage.verdict["outcome"] == "cold_start"
    assert stage.verdict["candidate"] == {"id": registry.version_id(digest), "digest": digest}
    assert (stage.verdict["champion"], stage.verdict["anchor"]) == (None, None)
    assert stage.record["inputs"]["student"] == digest and stage.record["config"]["metric"] == "ndcg_at_10"
    assert stage.record["inputs"]["judgements"] == artifacts.sealed_digest(stage.folder / "judgements")
    assert "| note | passed | lift_over_bm25 | student nDCG@10 0.931 beats" in capsys.readouterr().out


def test_it_names_champion_and_anchor_as_the_registry_has_them(stage: Stage) -> None:
    version = stage.promoted("earlier")
    assert stage.decide(champion=version, anchor=version) is True
    described = {"id": version, "created": "2026-10-01T00:00:00Z", "run": "made-earlier"}
    assert (stage.verdict["champion"], stage.verdict["anchor"]) == (described, described)
    assert stage.verdict["outcome"] == "promoted"


def announced(output: str) -> dict[str, Any]:
    """What the one line of the event `outcome` says."""
    (event,) = (event for line in output.splitlines() if (event := progress.parse(line)) and event.event == "outcome")
    assert event.stage == "gate"
    return json.loads(event.text)


def test_it_refuses_and_explains_why(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    version = stage.promoted("earlier")
    policy = Gate.model_validate({"min_metrics": {"ndcg_at_10": 0.99}, "max_ece": 0.01})
    assert stage.decide(policy, champion=version, anchor=version) is False
    assert stage.verdict["outcome"] == "refused"
    assert stage.record["facts"]["failed"] == ["minimum_ndcg_at_10", "calibration"]
    assert announced(capsys.readouterr().out) == {
        "outcome": "refused",
        "candidate": stage.verdict["candidate"]["id"],
        "champion": version,
        "failed": ["minimum_ndcg_at_10", "calibration"],
    }


def test_it_logs_its_decision_for_programs_too(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.decide()
    candidate = stage.verdict["candidate"]["id"]
    assert announced(capsys.readouterr().out) == {
        "outcome": "cold_start",
        "candidate": candidate,
        "champion": None,
        "failed": [],
    }
    version = stage.promoted("earlier")
    assert stage.decide(champion=version, anchor=version)
    assert announced(capsys.readouterr().out) == {
        "outcome": "promoted",
        "candidate": candidate,
        "champion": version,
        "failed": [],
    }


def test_the_champion_made_again_is_unchanged(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    version = stage.promoted("weights")
    for policy in (Gate(), Gate(champion="superior")):
        assert stage.decide(policy, champion=version, anchor=version) is False
        assert (stage.verdict["outcome"], stage.verdict["promoted"]) == ("unchanged", False)
        assert stage.record["facts"] == {
            "outcome": "unchanged",
            "failed": [],
            "notes": [],
            "test_evaluations": 1,
        }
        output = capsys.readouterr().out
        assert announced(output) == {
            "outcome": "unchanged",
            "candidate": version,
            "champion": version,
            "failed": [],
        }
        assert f"| note | unchanged | new | candidate {version} is byte for byte the champion" in output
        assert "(promoted by the run made-weights)" in output and "FAILED" not in output


def test_each_candidate_counts_once_per_test_set(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    policy = Gate(warn_after_test_evaluations=1, max_test_evaluations=2)
    for _ in range(2):  # repeating the stage adds no evaluation
        assert stage.decide(policy)
        assert stage.verdict["test_set"] == {"digest": "d" * 64, "test_evaluations": 1, "warn_after": 1}
    assert "| note | candidates that this test set has evaluated" not in capsys.readouterr().out
    stage.student("second")
    assert stage.decide(policy) and stage.verdict["test_set"]["test_evaluations"] == 2
    assert "| gate | note | candidates evaluated on this test set, including this one: 2" in capsys.readouterr().out
    stage.student("third")
    assert not stage.decide(policy) and stage.record["facts"]["failed"] == ["test_set"]
    # The same queries with another target are the same test set.
    figures = metrics()
    sketched = figures["test_set"] | {"sketch": sketch.from_ids(f"q{number}" for number in range(60))}
    stage.measured(figures | {"test_set": sketched})
    assert not stage.decide(policy) and stage.verdict["test_set"]["test_evaluations"] == 3
    stage.measured(figures | {"test_set": sketched | {"digest": "f" * 64}})
    assert not stage.decide(policy) and stage.verdict["test_set"]["test_evaluations"] == 3
    # A fresh test set has evaluated nobody.
    stage.measured(figures | {"test_set": figures["test_set"] | {"digest": "e" * 64, "draw": 1}})
    assert stage.decide(policy) and stage.verdict["test_set"]["test_evaluations"] == 1


def test_an_override_is_recorded_and_an_expired_one_reported(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    until = str(datetime.now(UTC).date() + timedelta(days=30))
    policy = {"max_ece": 0.01, "override": {"by": "Jo", "reason": "a rule covers the tail", "until": until}}
    assert stage.decide(Gate.model_validate(policy)) is True
    assert (stage.verdict["outcome"], stage.verdict["override"]) == ("overridden", policy["override"])
    policy["override"] |= {"until": "2020-01-01"}
    assert stage.decide(Gate.model_validate(policy)) is False
    assert (stage.verdict["outcome"], stage.verdict["override"]) == ("refused", None)
    assert "| the override by Jo, valid until 2020-01-01, has expired" in capsys.readouterr().out
    assert "has expired" in stage.record["facts"]["notes"][0]


def test_it_does_not_decide_on_damaged_figures(stage: Stage) -> None:
    path = stage.folder / "evaluation" / "metrics.json"
    path.write_text(path.read_text().replace("0.842", "0.142"))
    with pytest.raises(InputError, match=r"metrics\.json: digest .* differs"):
        stage.decide()
    assert not (stage.folder / "verdict" / "verdict.json").exists()


@pytest.mark.parametrize("part", FOLDERS)
def test_it_does_not_decide_on_a_folder_that_was_changed(stage: Stage, part: str) -> None:
    stage.record_inputs()
    path = stage.folder / part / "added.bin"
    path.touch()
    with pytest.raises(
        InputError, match=rf"input {part}: {path}: not listed in .*digest\.json; the folder was changed"
    ):
        stage.run()
    path.unlink()
    changed = stage.folder / part / next(iter(artifacts.read_json(stage.folder / part / artifacts.SEAL)["files"]))
    changed.write_bytes(changed.read_bytes() + b" ")
    with pytest.raises(InputError, match=rf"input {part}: {changed}: digest .* differs from the recorded .*--no-cache"):
        stage.run()
    assert registry.connect(stage.where).record_test_evaluation("d" * 64, "v" + "0" * 12) == 1, (
        "nothing was decided, so nothing was counted"
    )


@pytest.mark.parametrize("name", ["student", "judgements", "champion", "anchor"])
def test_it_does_not_decide_on_the_evaluation_of_something_else(stage: Stage, name: str) -> None:
    version = stage.promoted("earlier")
    assert stage.decide(champion=version, anchor=version)
    stage.other["evaluation"] = {name: "other"}
    expected = stage.record_inputs(version, version)[name][:13]
    with pytest.raises(InputError, match=f"evaluation: evaluated with {name} other, expected {expected}"):
        stage.decide(champion=version, anchor=version)


@pytest.mark.parametrize("name", ["evaluation", "student", "champion", "traffic"])
def test_it_does_not_decide_on_the_drift_of_something_else(stage: Stage, name: str) -> None:
    version = stage.promoted("earlier")
    assert stage.decide(champion=version, anchor=version)
    stage.other["drift"] = {name: "other"}
    expected = stage.record_inputs(version, version)[name][:13]
    with pytest.raises(InputError, match=f"drift: compared with {name} other, expected {expected}"):
        stage.decide(champion=version, anchor=version)


@pytest.mark.parametrize("part", ["evaluation", "drift"])
def test_it_does_not_decide_on_what_does_not_record_its_inputs(stage: Stage, part: str) -> None:
    stage.record_inputs()
    record = stage.folder / part / artifacts.RECORD
    whole = record.read_text()
    record.unlink()
    with pytest.raises(InputError, match=f"{record}: no such file, expected the record of the stage"):
        stage.run()
    student = artifacts.sealed_digest(stage.folder / "student")
    record.write_text(whole.replace(student, "0" * 64))
    with pytest.raises(InputError, match=f"{record}: differs from the digest that it holds of itself"):
        stage.run()
    artifacts.write_record(stage.folder / part, {"inputs": {}})
    with pytest.raises(InputError, match=rf"{part}: \w+ with \w+ that its record does not tell, expected"):
        stage.run()
    record.write_text(whole)
    assert stage.run()
    stage.measured(metrics() | {"systems": {}})  # evaluated again, and sealed before it was killed
    record = stage.folder / "evaluation" / artifacts.RECORD
    with pytest.raises(InputError, match=f"{record}: is the record of other results"):
        stage.run()


@pytest.mark.parametrize("alias", ["champion", "anchor"])
def test_it_names_a_version_that_the_registry_lacks(stage: Stage, alias: str) -> None:
    with pytest.raises(InputError, match="no version 'vbbbbbbbbbbbb'"):
        stage.decide(**{alias: "vbbbbbbbbbbbb"})
    assert registry.connect(stage.where).record_test_evaluation("d" * 64, "v" + "0" * 12) == 1, (
        "nothing was decided, so nothing was counted"
    )


# Asking again -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(stage: Stage) -> Path:
    """A finished run's folder, which did not need its champion's superiority."""
    version = stage.promoted("earlier")
    assert stage.decide(champion=version, anchor=version, newest_end="2026-11-16T00:00:00+00:00")
    return finished(stage)


def finished(stage: Stage) -> Path:
    """The folder of a run that came to the stage's verdict."""
    folder = stage.folder / "runs" / "one"
    artifacts.copy_tree(stage.folder / "student", folder / "student")
    artifacts.write_json(folder / "verdict.json", stage.verdict)
    artifacts.write_json(folder / "metrics.json", metrics())
    artifacts.write_json(folder / "drift.json", DRIFT)
    artifacts.write_json(folder / "profile.json", {"windows": {"newest_end": "2026-11-16T00:00:00+00:00"}})
    settings = parameters(parse({"data": {"source": "demo_shop"}}, "run"))
    artifacts.write_text(folder / "config.yaml", yaml.safe_dump(settings))
    return folder


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        cli.main(["gate", *map(str, arguments)])
    return int(exit.value.code or 0)  # type: ignore[arg-type]


def test_the_same_policy_repeats_its_verdict(run: Path) -> None:
    recorded = artifacts.read_json(run / "verdict.json")
    assert gate.reconsider(run, Gate()).to_json() == recorded


def test_reconsidering_by_another_policy_writes_nothing(
    run: Path, stage: Stage, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in sorted(stage.folder.rglob("*")) if path.is_file()}
    policy = tmp_path / "superior.yaml"
    policy.write_text("champion: superior\n")
    before[policy] = policy.read_bytes()
    assert command("--run", run, "--policy", policy) == 0
    shown = capsys.readouterr().out
    assert "would be refused" in shown and "superior_to_champion" in shown and "FAILED" in shown
    assert command("--run", run, "--policy", policy, "--fail-on-refusal") == 3
    assert command("--run", run, "--fail-on-refusal") == 0
    assert {path: path.read_bytes() for path in sorted(stage.folder.rglob("*")) if path.is_file()} == before


def test_an_unchanged_run_is_no_refusal_under_any_policy(
    stage: Stage, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    version = stage.promoted("weights")
    assert not stage.decide(champion=version, anchor=version, newest_end="2026-11-16T00:00:00+00:00")
    folder = finished(stage)
    capsys.readouterr()
    policy = ("--set", "gate.champion=superior", "--set", "gate.max_ece=.01")
    assert command("--run", folder, *policy, "--fail-on-refusal") == 0
    shown = capsys.readouterr().out
    assert f"candidate {version} would be unchanged" in " ".join(shown.split()) and shown.count("FAILED") == 1
    assert "would not promote it: calibration" in " ".join(shown.split())


def test_single_keys_of_the_policy_can_be_changed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        command("--run", run, "--set", "gate.max_ece=.03", "--set", "gate.warn_after_test_evaluations=1", "--json") == 0
    )
    verdict = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in verdict["checks"] if not check["passed"]] == ["calibration"]
    assert verdict["policy"]["max_ece"] == 0.03 and verdict["test_set"]["test_evaluations"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "gate: --run is missing"),
        (("--run", "nowhere"), "nowhere/config.yaml: no such configuration file"),
        (("--run", "{run}", "--policy", "nowhere.yaml"), "nowhere.yaml: no such policy file"),
        (("--run", "{run}", "--set", "gate.max_ec=1"), "unknown key 'max_ec'; did you mean 'max_ece'?"),
        (("--run", "{run}", "--set", "student.layers=1"), "--set student: expected gate.KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert command(*(argument.format(run=run) for argument in arguments)) == 2
    output = capsys.readouterr().err
    assert message in output and len(output.strip().splitlines()) == 1


def test_the_schema_accepts_what_the_policy_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(Gate.model_fields) and schema["additionalProperties"] is False
    assert schema["properties"]["champion"]["enum"] == ["not_inferior", "superior"]
    assert all("description" in field for field in schema["properties"].values())


def test_a_student_that_was_rolled_back_is_refused_with_who_and_why(stage: Stage) -> None:
    first, second = stage.promoted("first"), stage.promoted("weights")
    backend = registry.connect(stage.where)
    assert backend.rollback(reason="empty results for sofas") == first
    stage.student("weights")
    assert stage.decide() is False
    (check,) = [check for check in stage.verdict["checks"] if check["name"] == "new"]
    assert not check["passed"] and f"candidate {second} was the champion" in check["detail"]
    assert "rolled it back on 20" in check["detail"] and "empty results for sofas" in check["detail"]
