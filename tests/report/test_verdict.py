from __future__ import annotations

import pytest

from distilrank.report import verdict
from tests.report_runs import CHAMPION, VERSION


@pytest.mark.parametrize(
    ("name", "value", "bound", "reason"),
    [
        ("lift_over_bm25", -0.01, 0.0, "it is not clearly better than BM25 (−0.01, must be above 0)"),
        (
            "superior_to_champion",
            0.0,
            0.0,
            "it is not clearly better than the champion (0, must be above 0)",
        ),
        ("minimum_ndcg_at_10", 0.84999, 0.85, "its nDCG@10 is too low (0.84999, must be at least 0.85)"),
        ("calibration", 0.1000001, 0.1, "its probabilities are poorly calibrated (0.1000001, must be at most 0.1)"),
        ("test_set", 21, 20, "its test set has been used too often (21, must be at most 20)"),
        ("latency", None, 1.2, "“Fast enough” could not be checked"),
        ("new", VERSION, None, "there is nothing new to promote"),
    ],
)
def test_the_reason_of_a_failed_check_is_its_own(name: str, value: object, bound: object, reason: str) -> None:
    row = verdict.check_row({"name": name, "value": value, "bound": bound, "passed": False})
    assert row["reason"] == reason and (value is None or row["shown_value"] in reason or name == "new")


@pytest.mark.parametrize(
    ("delta", "low", "high", "sentence"),
    [
        (0.0284, 0.0171, 0.042, "its nDCG@10 is 0.028 higher than the champion's (90\u00a0% CI [0.017, 0.042])."),
        (-0.004, -0.0085, 0.001, "its nDCG@10 is 0.004 lower than the champion's (90\u00a0% CI [−0.009, 0.001])."),
        (-0.0001, -0.003, 0.003, "its nDCG@10 equals the champion's (90\u00a0% CI [−0.003, 0.003])."),
    ],
)
def test_the_banner_states_how_much_better_the_student_is(delta: float, low: float, high: float, sentence: str) -> None:
    entry = {"system": "student", "baseline": "champion", "metric": "ndcg_at_10", "delta": delta}
    metrics = {"comparisons": [{**entry, "ci_low": low, "ci_high": high}], "protocol": {"confidence": 0.9}}
    decided = {"outcome": "promoted", "checks": [], "candidate": {"id": VERSION}, "champion": {"id": CHAMPION}}
    assert verdict.verdict_section(decided, metrics, "run")["sentence"].endswith(sentence)


def test_the_banner_names_two_reasons_and_counts_the_others() -> None:
    names = ("lift_over_bm25", "calibration", "latency", "drift")
    checks = [{"name": name, "passed": False, "value": 0.5, "bound": 0.5, "detail": ""} for name in names]
    decided = {"outcome": "refused", "checks": checks, "candidate": {"id": VERSION}}
    sentence = verdict.verdict_section(decided, {}, "run")["sentence"]
    assert "better than BM25" in sentence and "calibrated" in sentence and "too slow" not in sentence
    assert sentence.endswith("and 2 more checks failed. There is still no champion.")
