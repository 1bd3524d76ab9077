from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from distilrank import artifacts, gate, registry
from distilrank.config import Gate, Registry, parse
from distilrank.errors import InputError

CANDIDATE = {"id": "v" + "a" * 12, "digest": "a" * 64}
CHAMPION = {"id": "v" + "b" * 12, "created": "2026-10-01T00:00:00Z"}
DRIFT = {
    "candidate": {
        "share": 0.25,
        "columns": [{"name": name, "drifted": name == "bm25"} for name in ("query_words", "bm25", "brand", "score")],
    },
    "champion": {"share": 1.0, "columns": []},
}
OFF = {"min_value": 0, "lift_over_bm25": -1, "lift_over_random": -1} | dict.fromkeys(
    ("teacher_margin", "max_ece", "max_drift_share"), 1
)


def comparison(baseline: str, delta: float, low: float, high: float, queries: int = 148) -> dict[str, Any]:
    return {
        "system": "student",
        "baseline": baseline,
        "metric": "ndcg_at_10",
        "delta": delta,
        "ci_low": low,
        "ci_high": high,
        "p_value": 0.001,
        "queries": queries,
    }


def metrics() -> dict[str, Any]:
    """An evaluation that passes every default check, against a champion too."""
    values = {"random": 0.702, "bm25": 0.842, "teacher": 0.94, "student": 0.931, "champion": 0.92}
    ece = {"student": 0.031, "teacher": 0.05, "champion": 0.04}
    return {
        "protocol": {"confidence": 0.95},
        "systems": {name: {"ndcg_at_10": value, "ece": ece.get(name)} for name, value in values.items()},
        "comparisons": [
            # Another metric and another system, with figures that would decide otherwise.
            comparison("bm25", -0.5, -0.6, -0.4) | {"metric": "mrr"},
            comparison("bm25", -0.5, -0.6, -0.4) | {"system": "teacher"},
            comparison("bm25", 0.089, 0.071, 0.108),
            comparison("random", 0.229, 0.2, 0.26),
            comparison("teacher", -0.009, -0.02, 0.003),
            comparison("champion", 0.011, -0.004, 0.025),
        ],
    }


def decide(
    policy: Gate | None = None,
    champion: dict | None = CHAMPION,
    drift: dict | None = None,
    parity: dict | None = None,
    **changed: Any,
) -> gate.Verdict:
    return gate.decide(
        policy or Gate(),
        metrics=metrics() | changed,
        drift=drift or DRIFT,
        candidate=CANDIDATE,
        champion=champion,
        parity=parity,
    )


def failed(verdict: gate.Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def detail(verdict: gate.Verdict, name: str) -> str:
    return next(check.detail for check in verdict.checks if check.name == name)


def with_comparison(baseline: str, delta: float, low: float, high: float, **more: Any) -> list[dict[str, Any]]:
    others = [row for row in metrics()["comparisons"] if row["baseline"] != baseline]
    return [*others, comparison(baseline, delta, low, high, **more)]


def test_a_better_student_is_promoted_over_the_champion() -> None:
    verdict = decide()
    assert (verdict.outcome, verdict.promoted, failed(verdict)) == ("promoted", True, [])
    assert [check.name for check in verdict.checks] == [
        "enough_queries",
        "lift_over_bm25",
        "lift_over_random",
        "teacher_margin",
        "calibration",
        "drift",
        "not_inferior_to_champion",
        "new",
    ]


def test_without_a_champion_it_is_a_cold_start() -> None:
    verdict = decide(champion=None)
    assert (verdict.outcome, verdict.promoted) == ("cold_start", True)
    assert "not_inferior_to_champion" not in [check.name for check in verdict.checks]
    assert verdict.to_json()["champion"] is None
    # Without a champion the other checks hold all the same.
    assert decide(champion=None, comparisons=with_comparison("bm25", 0.01, -0.01, 0.03)).outcome == "refused"


def test_exported_files_must_rank_as_the_student_does() -> None:
    files = {"model.onnx": {"ndcg_loss": -1e-9}, "model_qint8_avx512_vnni.onnx": {"ndcg_loss": 0.0031}}
    verdict = decide(parity={"files": files})
    assert failed(verdict) == ["onnx_parity"]
    assert detail(verdict, "onnx_parity") == (
        "model_qint8_avx512_vnni.onnx loses .0031 of dev nDCG@10 to torch, the most of 2 ONNX files; "
        "at most .002 may be lost"
    )
    assert not failed(decide(Gate(max_onnx_loss=0.004), parity={"files": files}))
    assert not failed(decide(parity={"files": {"model.onnx": {"ndcg_loss": -0.01}}}))
    for unknown in ({}, {"files": {"model.onnx": {"ndcg_loss": None}}}):
        assert failed(decide(parity=unknown)) == ["onnx_parity"]
        assert not failed(decide(Gate(max_onnx_loss=1), parity=unknown))


def test_verdict_has_the_form_that_readers_rely_on() -> None:
    verdict = json.loads(json.dumps(decide(Gate(min_value=0.9)).to_json(), allow_nan=False))
    assert set(verdict) == {"outcome", "promoted", "checks", "candidate", "champion"}
    assert all(set(check) == {"name", "passed", "value", "bound", "detail"} for check in verdict["checks"])
    assert verdict["candidate"] == CANDIDATE and verdict["champion"] == CHAMPION
    lift = next(check for check in verdict["checks"] if check["name"] == "lift_over_bm25")
    assert (lift["value"], lift["bound"], lift["passed"]) == (0.071, 0.0, True)
    assert next(check for check in verdict["checks"] if check["name"] == "min_value")["value"] == 0.931


def test_details_are_sentences_with_the_numbers() -> None:
    verdict = decide()
    assert detail(verdict, "lift_over_bm25") == (
        "student nDCG@10 .931 beats BM25 .842 by +.089, 95 % interval [+.071, +.108] on 148 queries; "
        "the lower end must exceed 0"
    )
    assert detail(verdict, "teacher_margin") == (
        "student nDCG@10 .931 trails its teacher .940 by .009, 95 % interval [-.020, +.003] on 148 queries; "
        "the lower end must not be below -.1"
    )
    assert detail(verdict, "drift") == (
        "25 % of the columns (bm25) have drifted from training window to newest traffic; at most 50 % may"
    )
    assert detail(verdict, "calibration") == "student calibration error (ECE) is .031; it may be .2 at most"
    worse = decide(comparisons=with_comparison("champion", -0.02, -0.03, -0.01))
    assert detail(worse, "not_inferior_to_champion").endswith("the lower end must not be below -.005, but is")


def test_a_detail_shows_enough_decimals_to_see_the_side_of_the_bound() -> None:
    close = decide(comparisons=with_comparison("bm25", 0.02, -0.00004, 0.04))
    assert "[-.00004, +.04000]" in detail(close, "lift_over_bm25")
    assert failed(close) == ["lift_over_bm25"]


@pytest.mark.parametrize(
    ("baseline", "low", "check", "passes"),
    [
        ("bm25", 0.0, "lift_over_bm25", False),  # must exceed
        ("bm25", 1e-9, "lift_over_bm25", True),
        ("random", -0.01, "lift_over_random", False),
        ("champion", -0.005, "not_inferior_to_champion", True),  # may be that much below
        ("champion", -0.00501, "not_inferior_to_champion", False),
        ("teacher", -0.1, "teacher_margin", True),
        ("teacher", -0.11, "teacher_margin", False),
    ],
)
def test_the_lower_end_of_the_interval_decides(baseline: str, low: float, check: str, passes: bool) -> None:
    verdict = decide(comparisons=with_comparison(baseline, 0.05, low, 0.1))
    assert failed(verdict) == ([] if passes else [check])
    assert verdict.promoted is passes


@pytest.mark.parametrize(
    ("policy", "check"),
    [
        ({"min_queries": 149}, "enough_queries"),
        ({"min_value": 0.932}, "min_value"),
        ({"lift_over_bm25": 0.071}, "lift_over_bm25"),
        ({"lift_over_random": 0.2}, "lift_over_random"),
        ({"teacher_margin": 0.019}, "teacher_margin"),
        ({"champion_margin": 0.0039}, "not_inferior_to_champion"),
        ({"max_ece": 0.03}, "calibration"),
        ({"max_drift_share": 0.2}, "drift"),
    ],
)
def test_each_knob_decides_alone(policy: dict[str, float], check: str) -> None:
    assert failed(decide(Gate(**policy))) == [check]


def test_the_chosen_metric_decides() -> None:
    rows = [row | {"metric": "mrr"} for row in metrics()["comparisons"] if row["metric"] == "ndcg_at_10"]
    systems = {name: values | {"mrr": 0.5} for name, values in metrics()["systems"].items()}
    verdict = decide(Gate(metric="mrr"), comparisons=rows, systems=systems)
    assert verdict.promoted
    assert "student MRR .500 beats" in detail(verdict, "lift_over_bm25")
    assert not decide(Gate(metric="pair_accuracy")).promoted


@pytest.mark.parametrize("baseline", ["bm25", "random", "teacher", "champion"])
def test_a_missing_comparison_never_passes(baseline: str) -> None:
    rows = [row for row in metrics()["comparisons"] if row["baseline"] != baseline]
    verdict = decide(comparisons=rows)
    assert len(failed(verdict)) == 1 and verdict.outcome == "refused"
    assert "does not compare" in detail(verdict, failed(verdict)[0])
    assert not any(check.value is not None for check in verdict.checks if not check.passed)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.5", True])
def test_what_is_no_number_never_passes(value: Any) -> None:
    rows = with_comparison("bm25", 0.1, 0.05, 0.15)
    rows[-1]["ci_low"] = value
    verdict = decide(comparisons=rows)
    assert failed(verdict) == ["lift_over_bm25"]
    json.dumps(verdict.to_json(), allow_nan=False)


def test_an_empty_evaluation_fails_every_check_on_it() -> None:
    verdict = gate.decide(Gate(min_value=0.1), metrics={}, drift={}, candidate=CANDIDATE, champion=CHAMPION)
    assert set(failed(verdict)) == {check.name for check in verdict.checks} - {"new"}


def test_queries_are_counted_under_the_thinnest_comparison() -> None:
    verdict = decide(comparisons=with_comparison("random", 0.2, 0.1, 0.3, queries=29))
    assert failed(verdict) == ["enough_queries"]
    assert detail(verdict, "enough_queries") == "the decision rests on 29 test queries; it takes at least 30"


def test_calibration_may_be_missing_only_where_any_will_do() -> None:
    systems = copy.deepcopy(metrics()["systems"])
    systems["student"]["ece"] = None
    assert failed(decide(systems=systems)) == ["calibration"]
    assert failed(decide(Gate(max_ece=1), systems=systems)) == []


def test_only_the_candidates_drift_counts() -> None:
    calm = {"candidate": {"share": 0.0, "columns": []}, "champion": {"share": 1.0, "drifted": True, "columns": []}}
    assert decide(drift=calm).promoted
    drifted = {"candidate": {"share": 0.75, "columns": []}, "champion": {"share": 0.0, "columns": []}}
    assert failed(decide(drift=drifted)) == ["drift"]
    assert failed(decide(drift={"candidate": None, "champion": None})) == ["drift"]


def test_an_identical_student_has_nothing_to_promote() -> None:
    verdict = decide(champion=CHAMPION | {"id": CANDIDATE["id"]})
    assert failed(verdict) == ["new"] and not verdict.promoted
    assert "byte for byte" in detail(verdict, "new")


def test_a_policy_without_any_limit_is_refused() -> None:
    for more in ({}, {"min_queries": 0}, {"champion_margin": 0.0}):
        with pytest.raises(InputError, match=r"run\.yaml: gate: .*every limit on the student is switched off"):
            parse({"data": {"source": "demo_shop"}, "gate": OFF | more}, "run.yaml")
    for name, value in {"min_value": 0.5, "lift_over_bm25": 0, "lift_over_random": 0, "max_ece": 0.9}.items():
        assert getattr(Gate(**OFF | {name: value}), name) == value


def test_deciding_changes_nothing_it_is_given() -> None:
    given = {"metrics": metrics(), "drift": DRIFT, "candidate": CANDIDATE, "champion": CHAMPION}
    before = copy.deepcopy(given)
    first, second = (gate.decide(Gate(), **given) for _ in range(2))
    assert given == before and first == second


# The stage --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    artifacts.write_json(tmp_path / "evaluation" / "metrics.json", metrics())
    artifacts.write_json(tmp_path / "drift" / "drift.json", DRIFT)
    artifacts.write_text(tmp_path / "student" / "model.safetensors", "weights")
    for name in ("evaluation", "drift", "student"):
        artifacts.seal(tmp_path / name)
    return {name: tmp_path / name for name in ("evaluation", "drift", "student")}


def test_stage_writes_the_verdict_and_its_record(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "out" / "verdict"
    assert gate.gate(Gate(), Registry(uri=str(tmp_path / "registry")), champion="", output=output, **folders) is True
    verdict = artifacts.read_json(output / "verdict.json")
    digest = artifacts.sealed_digest(folders["student"])
    assert verdict["outcome"] == "cold_start"
    assert verdict["candidate"] == {"id": registry.version_id(digest), "digest": digest}
    record = artifacts.read_json(output / "stage.json")
    assert record["inputs"]["student"] == digest and record["config"]["metric"] == "ndcg_at_10"
    assert "| note | passed | lift_over_bm25 | student nDCG@10 .931 beats" in capsys.readouterr().out


def test_stage_refuses_and_says_why(folders: dict[str, Path], tmp_path: Path) -> None:
    place = Registry(uri=str(tmp_path / "registry"))
    assert gate.gate(Gate(min_value=0.99), place, champion="", output=tmp_path / "verdict", **folders) is False
    assert artifacts.read_json(tmp_path / "verdict" / "verdict.json")["outcome"] == "refused"
    assert artifacts.read_json(tmp_path / "verdict" / "stage.json")["facts"]["failed"] == ["min_value"]


def test_stage_does_not_decide_on_damaged_figures(folders: dict[str, Path], tmp_path: Path) -> None:
    path = folders["evaluation"] / "metrics.json"
    path.write_text(path.read_text().replace("0.842", "0.142"))
    with pytest.raises(InputError, match=r"metrics\.json: digest .* differs"):
        gate.gate(Gate(), Registry(uri=str(tmp_path / "r")), champion="", output=tmp_path / "verdict", **folders)
    assert not (tmp_path / "verdict" / "verdict.json").exists()


def test_stage_names_a_champion_that_the_registry_lacks(folders: dict[str, Path], tmp_path: Path) -> None:
    place = Registry(uri=str(tmp_path / "registry"))
    with pytest.raises(InputError, match="no version 'vbbbbbbbbbbbb'"):
        gate.gate(Gate(), place, champion=CHAMPION["id"], output=tmp_path / "verdict", **folders)
