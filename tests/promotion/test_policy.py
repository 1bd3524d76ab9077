"""The policy as a file, on its own or under the command line, and what is wrong with one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from distilrank import config
from distilrank.config import Gate, load, parameters, parse
from distilrank.core.errors import InputError

POLICIES = sorted((Path(__file__).parents[2] / "configs" / "policies").glob("*.yaml"))
SHOP = "data: {source: demo_shop}\n"


def written(folder: Path, policy: str, run: str = SHOP + "gate: policies/own.yaml\n") -> Path:
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "policies" / "own.yaml").write_text(policy)
    (folder / "run.yaml").write_text(run)
    return folder / "run.yaml"


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_shipped_policies_are_valid_and_differ_from_the_default(path: Path) -> None:
    policy = config.read_policy(path)
    content = yaml.safe_load(path.read_text())
    assert policy != Gate() and content == {key: getattr(policy, key) for key in content}


def test_there_are_shipped_policies() -> None:
    assert {path.stem for path in POLICIES} >= {"strict", "first-weeks"}


def test_a_policy_may_be_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "champion: superior\nmin_metrics: {ndcg_at_10: .85}\n")
    expected = Gate.model_validate({"champion": "superior", "min_metrics": {"ndcg_at_10": 0.85}})
    monkeypatch.chdir("/")  # relative to the configuration, not to where we are
    assert load(path).gate == expected
    # The pipeline gets the values, not the file's name.
    assert Gate.model_validate(parameters(load(path))["gate"]) == expected


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "champion: superior\nmin_metrics: {ndcg_at_10: .85}\n")
    gate = load(path, ["gate.min_metrics.mrr=.3", "gate.min_queries=7"]).gate
    assert (gate.champion, gate.min_queries) == ("superior", 7)
    assert (gate.min_metrics.ndcg_at_10, gate.min_metrics.mrr) == (0.85, 0.3)


def test_a_file_on_the_command_line_replaces_the_whole_policy(tmp_path: Path) -> None:
    path = written(tmp_path, "max_ece: .1\n", SHOP + "gate: {min_queries: 7, champion: superior}\n")
    own = tmp_path / "policies" / "own.yaml"
    assert load(path, [f"gate={own}", "gate.min_judgements=5"]).gate == Gate(max_ece=0.1, min_judgements=5)


def test_a_policy_is_read_on_the_machine_that_it_is_for(tmp_path: Path) -> None:
    path = written(tmp_path, "max_ece: .1\n", SHOP + "cpu_overrides: {gate: policies/own.yaml}\n")
    assert load(path, fast_bf16=True).gate == Gate()
    assert load(path, fast_bf16=False).gate == Gate(max_ece=0.1)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("max_ec: .1", "unknown key 'max_ec'; did you mean 'max_ece'?"),
        ("min_metrics: {ndcg_at_1: .1}", "unknown key 'min_metrics.ndcg_at_1'; did you mean 'ndcg_at_10'?"),
        (
            "min_metrics: {ndcg_at_10: 1.1}",
            "min_metrics.ndcg_at_10: Input should be less than or equal to 1 (got 1.1)",
        ),
        (
            "{champion: superior, champion_margin: -0.1}",
            "champion_margin: Input should be greater than or equal to 0 (got -0.1)",
        ),
        (
            "{champion: superior, lift_over_champion: -0.1}",
            "lift_over_champion: Input should be greater than or equal to 0 (got -0.1)",
        ),
        (
            "lift_over_champion: .1",
            "lift_over_champion is 0.1 while champion is 'not_inferior', expected champion: superior, or no lift",
        ),
        (
            "anchor_margin: .001",
            "anchor_margin is 0.001, expected at least champion_margin (0.005): while the champion is the anchor, that "
            "one would never decide",
        ),
        (
            "min_metrics: {mrr: 1.0e-12}",
            "min_metrics: mrr is 1e-12, which any student reaches; expected 0 (none) or at least 0.01",
        ),
        (
            "min_metrics: {pair_accuracy: .4}",
            "min_metrics: pair_accuracy is 0.4, which random order reaches; expected 0 (none) or at least 0.5",
        ),
        ("min_queries: 2", "min_queries: Input should be greater than or equal to 3 (got 2)"),
        ("min_confidence: .8", "min_confidence: Input should be greater than or equal to 0.9 (got 0.8)"),
        (
            "{slices: false, required_slices: [stratum=tail]}",
            "required_slices is stratum=tail while slices is false, expected slices: true, or no required slices",
        ),
        (
            "refuse_from_looks: 20",
            "unknown key 'refuse_from_looks'; it is 'gate.max_test_evaluations' now, and its value is one less",
        ),
        (
            "max_test_evaluations: 5",
            "warn_after_test_evaluations is 9, expected at most max_test_evaluations (5)",
        ),
        (
            "min_queries: many",
            "min_queries: Input should be a valid integer, unable to parse string as an integer (got 'many')",
        ),
        ("slices: [1]", "slices: Input should be a valid boolean (got [1])"),
        (
            "{lift_over_bm25: -1, lift_over_random: -1, teacher_margin: 1, max_ece: .5}",
            "nothing is asked of the student's relevance, expected at least one of min_metrics, lift_over_bm25, "
            "lift_over_random, teacher_margin",
        ),
        ("- a", "expected a mapping of the keys of `gate`, got list"),
        ("", "expected a mapping of the keys of `gate`, got NoneType"),
        ("override: {by: Jo}", "override: reason is missing, expected by, reason and until"),
        (
            "override: {by: Jo, reason: because we must ship}",
            "override: until is missing, expected by, reason and until",
        ),
        (
            "override: {by: J, reason: because we must ship, until: 2026-02-20}",
            "override: by is 'J', expected at least 2 characters",
        ),
        (
            "override: {by: Jo, reason: '   because     ', until: 2026-02-20}",
            "override: reason is 'because', expected at least 15 characters",
        ),
        (
            "override: {by: Jo, reason: because we must ship, until: soon}",
            "override: until is 'soon', expected a day such as 2026-03-31",
        ),
        (
            "override: {by: Jo, reason: because we must ship, until: 2026-02-30}",
            "not readable as YAML (day is out of range for month)",
        ),
    ],
)
def test_what_is_wrong_with_a_policy_is_one_line_that_names_the_file(tmp_path: Path, policy: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load(written(tmp_path, policy))
    assert str(error.value) == f"{tmp_path / 'policies' / 'own.yaml'}: {message}"


def test_a_missing_policy_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "max_ece: .1", SHOP + "gate: policies/other.yaml\n")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'policies' / 'other.yaml'}: no such policy file")):
        load(path)


def test_an_override_of_the_command_line_is_checked_with_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "champion_margin: .02\nanchor_margin: .03\n")
    with pytest.raises(InputError, match=r"with --set: gate: anchor_margin is 0.01, expected at least champion_margin"):
        load(path, ["gate.anchor_margin=.01"])


def test_a_day_may_be_written_with_or_without_quotes(tmp_path: Path) -> None:
    for day in ("2026-02-20", "'2026-02-20'"):
        gate = load(written(tmp_path, f"override: {{by: Jo, reason: because we must ship, until: {day}}}")).gate
        assert gate.override.until == "2026-02-20"


@pytest.mark.parametrize("limit", [{"min_metrics": {"roc_auc": 0.5}}, {"lift_over_bm25": 0}, {"teacher_margin": 0.9}])
def test_one_limit_on_relevance_is_enough(limit: dict) -> None:
    off = {"lift_over_bm25": -1, "lift_over_random": -1, "teacher_margin": 1}
    parse({"data": {"source": "demo_shop"}, "gate": off | limit}, "run.yaml")
    with pytest.raises(InputError, match=r"run\.yaml: gate: nothing is asked of the student's relevance"):
        parse({"data": {"source": "demo_shop"}, "gate": off}, "run.yaml")


def test_blanks_around_an_override_are_stripped() -> None:
    blank = Gate.model_validate({"override": {"by": "  ", "reason": "", "until": " "}})
    assert blank.override.last_day is None and not blank.override.by
    override = {"by": " Jo ", "reason": "because we must ship", "until": " 2026-03-31"}
    assert Gate.model_validate({"override": override}).override.until == "2026-03-31"
