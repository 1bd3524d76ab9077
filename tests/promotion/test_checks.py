"""The decision: every check both ways, and what the evidence lacks."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from distilrank.config import Gate
from distilrank.promotion import checks, gate
from distilrank.promotion.checks import Evidence

PROTOCOL = {"confidence": 0.95, "bootstrap": 2000, "near_duplicates": 0.01}
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
CANDIDATE = {"id": "v" + "a" * 12, "digest": "a" * 64}
CHAMPION = {"id": "v" + "b" * 12, "created": "2026-10-01T00:00:00Z"}
SAME = CHAMPION | {"id": CANDIDATE["id"]}
ANCHOR = {"id": "v" + "c" * 12, "created": "2026-09-01T00:00:00Z"}
EMBEDDING = {"auc": 0.58, "ci_low": 0.55, "ci_high": 0.61, "limit": 0.55, "drifted": False}
DRIFT = {
    "candidate": {
        "share": 0.25,
        "columns": [{"name": name, "drifted": name == "bm25"} for name in ("query_words", "bm25", "brand", "score")],
        "embedding": EMBEDDING,
    },
    "champion": {"share": 1.0, "columns": []},
}
DEFAULT_CHECKS = [
    "enough_queries",
    "enough_judgements",
    "protocol",
    "near_duplicates",
    "lift_over_bm25",
    "lift_over_random",
    "teacher_margin",
    "not_inferior_to_champion",
    "not_inferior_to_anchor",
    "slices",
    "calibration",
    "score_collapse",
    "latency",
    "drift",
    "embedding_drift",
    "new",
]


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


def part(value: str, delta: float, p_holm: float, baseline: str = "champion") -> dict[str, Any]:
    """A slice, with figures of another metric that would decide otherwise."""
    row = {"baseline": baseline, "metric": "ndcg_at_10", "delta": delta, "p_value": p_holm / 3, "p_holm": p_holm}
    other = {**row, "metric": "pair_accuracy", "delta": -0.5, "p_holm": 0.001}
    return {"column": "stratum", "value": value, "queries": 40, "comparisons": [other, row]}


def metrics() -> dict[str, Any]:
    """An evaluation that passes every default check, against a champion and an anchor too."""
    values = {"random": 0.702, "bm25": 0.842, "teacher": 0.94, "student": 0.931, "champion": 0.92, "anchor": 0.918}
    ece = {"student": 0.031, "teacher": 0.05, "champion": 0.04}
    return {
        "protocol": PROTOCOL,
        "systems": {
            name: {"ndcg_at_10": value, "roc_auc": 0.8, "recall_at_precision_95": 0.3, "ece": ece.get(name)}
            for name, value in values.items()
        },
        "comparisons": [
            # Another metric and another system, with figures that would decide otherwise.
            comparison("bm25", -0.5, -0.6, -0.4) | {"metric": "mrr"},
            comparison("bm25", -0.5, -0.6, -0.4) | {"system": "teacher"},
            comparison("bm25", 0.089, 0.071, 0.108),
            comparison("random", 0.229, 0.2, 0.26),
            comparison("teacher", -0.009, -0.02, 0.003),
            comparison("champion", 0.011, -0.004, 0.025),
            comparison("anchor", 0.013, -0.008, 0.03),
        ],
        "slices": {
            "min_queries": 20,
            "rows": [part("head", 0.02, 0.01), part("torso", -0.01, 0.6), part("tail", -0.02, 0.051)],
            "left_out": [],
        },
        "latency": {
            "student": {"p50_ms": 12.0, "p95_ms": 20.0},
            "champion": {"p50_ms": 10.0, "p95_ms": 18.0},
        },
        "distribution": {"student": {"standard_deviation": 2.0, "within_query": 1.2, "distinct": 0.98}},
        "test_set": {"digest": "d" * 64, "queries": 148, "pairs": 1200, "judgements": 4800, "draw": 0},
    }


def decide(
    policy: Gate | None = None,
    *,
    champion: dict | None = CHAMPION,
    anchor: dict | None = ANCHOR,
    drift: dict | None = None,
    parity: dict | None = None,
    test_evaluations: int | None = 3,
    newest_end: str = "2026-11-16T00:00:00+00:00",
    **changed: Any,
) -> gate.Verdict:
    evidence = Evidence(
        metrics=metrics() | changed,
        drift=drift or DRIFT,
        candidate=CANDIDATE,
        champion=champion,
        anchor=anchor,
        parity=parity,
        test_evaluations=test_evaluations,
        newest_end=newest_end,
        now=NOW,
    )
    return gate.decide(policy or Gate(), evidence)


def failed(verdict: gate.Verdict) -> list[str]:
    return [check.name for check in verdict.failed]


def find_check(verdict: gate.Verdict, name: str) -> checks.Check:
    [check] = [check for check in verdict.checks if check.name == name]
    return check


def detail(verdict: gate.Verdict, name: str) -> str:
    return find_check(verdict, name).detail


def with_comparison(baseline: str, delta: float, low: float, high: float, **more: Any) -> list[dict[str, Any]]:
    others = [row for row in metrics()["comparisons"] if row["baseline"] != baseline]
    return [*others, comparison(baseline, delta, low, high, **more)]


# As a whole -------------------------------------------------------------------------------------------------------


def test_a_better_student_is_promoted_over_the_champion() -> None:
    verdict = decide()
    assert (verdict.outcome, verdict.promoted, failed(verdict)) == ("promoted", True, [])
    assert [check.name for check in verdict.checks] == DEFAULT_CHECKS


def test_without_a_champion_it_is_a_cold_start() -> None:
    verdict = decide(champion=None, anchor=None)
    assert (verdict.outcome, verdict.promoted) == ("cold_start", True)
    against = {"not_inferior_to_champion", "not_inferior_to_anchor", "slices", "latency"}
    assert {check.name for check in verdict.checks} == set(DEFAULT_CHECKS) - against
    assert verdict.to_json()["champion"] is None
    # Without a champion the other checks hold all the same.
    comparisons = with_comparison("bm25", 0.01, -0.01, 0.03)
    assert decide(champion=None, anchor=None, comparisons=comparisons).outcome == "refused"


def test_verdict_has_the_form_that_readers_rely_on() -> None:
    policy = Gate.model_validate({"min_metrics": {"ndcg_at_10": 0.9}, "warn_after_test_evaluations": 3})
    verdict = json.loads(json.dumps(decide(policy).to_json(), allow_nan=False))
    assert set(verdict) == {
        *("outcome", "promoted", "decided", "checks", "candidate", "champion", "anchor"),
        *("override", "test_set", "policy", "looser"),
    }
    assert all(set(check) == {"name", "passed", "value", "bound", "detail"} for check in verdict["checks"])
    assert (verdict["candidate"], verdict["champion"], verdict["anchor"]) == (CANDIDATE, CHAMPION, ANCHOR)
    assert verdict["test_set"] == {"digest": "d" * 64, "test_evaluations": 3, "warn_after": 3}
    assert verdict["override"] is None and verdict["decided"] == "2026-11-20T12:00:00Z"
    assert Gate.model_validate(verdict["policy"]) == policy
    lift = next(check for check in verdict["checks"] if check["name"] == "lift_over_bm25")
    assert (lift["value"], lift["bound"], lift["passed"]) == (0.071, 0.0, True)


def test_deciding_does_not_change_its_inputs() -> None:
    inputs = {"metrics": metrics(), "drift": DRIFT, "candidate": CANDIDATE, "champion": CHAMPION, "anchor": ANCHOR}
    before = copy.deepcopy(inputs)
    evidence = Evidence(**inputs, now=NOW)
    first, second = (gate.decide(Gate(), evidence) for _ in range(2))
    assert inputs == before and first == second


def test_empty_evidence_fails_every_check_on_it() -> None:
    policy = Gate.model_validate(
        {"min_metrics": {"mrr": 0.1}, "max_traffic_age_days": 7, "max_p95_ms": 50, "max_test_evaluations": 19}
    )
    evidence = Evidence(metrics={}, drift={}, candidate=CANDIDATE, champion=CHAMPION, anchor=ANCHOR, parity={}, now=NOW)
    verdict = gate.decide(policy, evidence)
    expected = {*DEFAULT_CHECKS, "minimum_mrr", "freshness", "test_set", "onnx_parity"} - {"new"}
    assert set(failed(verdict)) == expected
    assert all(check.value is None for check in verdict.failed)


# Differences between systems --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("baseline", "low", "check", "passes"),
    [
        ("bm25", 0.0, "lift_over_bm25", False),  # must exceed
        ("bm25", 1e-9, "lift_over_bm25", True),
        ("random", -0.01, "lift_over_random", False),
        ("champion", -0.005, "not_inferior_to_champion", True),  # may be that much below
        ("champion", -0.00501, "not_inferior_to_champion", False),
        ("anchor", -0.01, "not_inferior_to_anchor", True),
        ("anchor", -0.0101, "not_inferior_to_anchor", False),
        ("teacher", -0.1, "teacher_margin", True),
        ("teacher", -0.11, "teacher_margin", False),
    ],
)
def test_the_lower_end_of_the_interval_decides(baseline: str, low: float, check: str, passes: bool) -> None:
    verdict = decide(comparisons=with_comparison(baseline, 0.05, low, 0.1))
    assert failed(verdict) == ([] if passes else [check])
    assert verdict.promoted is passes


@pytest.mark.parametrize(
    ("low", "lift", "passes"), [(0.0, 0.0, False), (0.0001, 0.0, True), (0.01, 0.01, False), (0.011, 0.01, True)]
)
def test_superiority_asks_for_more_than_no_loss(low: float, lift: float, passes: bool) -> None:
    policy = Gate(champion="superior", lift_over_champion=lift)
    verdict = decide(policy, comparisons=with_comparison("champion", 0.02, low, 0.03))
    assert failed(verdict) == ([] if passes else ["superior_to_champion"])
    assert "not_inferior_to_champion" not in [check.name for check in verdict.checks]


@pytest.mark.parametrize("baseline", ["bm25", "random", "teacher", "champion", "anchor"])
def test_a_missing_comparison_never_passes(baseline: str) -> None:
    rows = [row for row in metrics()["comparisons"] if row["baseline"] != baseline]
    verdict = decide(comparisons=rows)
    assert len(failed(verdict)) == 1 and verdict.outcome == "refused"
    assert "does not compare" in verdict.failed[0].detail and verdict.failed[0].value is None


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.5", True])
def test_a_value_that_is_not_a_number_never_passes(value: Any) -> None:
    rows = with_comparison("bm25", 0.1, 0.05, 0.15)
    rows[-1]["ci_low"] = value
    verdict = decide(comparisons=rows)
    assert failed(verdict) == ["lift_over_bm25"]
    json.dumps(verdict.to_json(), allow_nan=False)


def test_small_losses_cannot_add_up() -> None:
    """Each champion within the margin of the one before, and one day the anchor says no."""
    margin, promoted = Gate().champion_margin, 0
    for loss in range(1, 10):
        of_champion = comparison("champion", -0.002, -margin, 0.001)
        of_anchor = comparison("anchor", -0.002 * loss, -0.002 * loss - 0.003, -0.002 * loss + 0.003)
        others = [row for row in metrics()["comparisons"] if row["baseline"] not in ("champion", "anchor")]
        verdict = decide(comparisons=[*others, of_champion, of_anchor])
        if not verdict.promoted:
            assert failed(verdict) == ["not_inferior_to_anchor"]
            break
        promoted += 1
    assert promoted == 3


def test_the_chosen_metric_decides() -> None:
    rows = [row | {"metric": "mrr"} for row in metrics()["comparisons"] if row["metric"] == "ndcg_at_10"]
    systems = {name: values | {"mrr": 0.5} for name, values in metrics()["systems"].items()}
    verdict = decide(Gate(metric="mrr"), comparisons=rows, systems=systems)
    assert verdict.promoted
    assert "student MRR 0.500 beats" in detail(verdict, "lift_over_bm25")
    assert "3 slices by nDCG@10" in detail(verdict, "slices")  # by MRR they are not compared
    assert not decide(Gate(metric="pair_accuracy")).promoted


def test_details_are_sentences_with_the_numbers() -> None:
    verdict = decide()
    assert detail(verdict, "lift_over_bm25") == (
        "student nDCG@10 0.931 beats BM25 0.842 by 0.089, 95 % CI [0.071, 0.108] on 148 queries; "
        "the lower end must exceed 0"
    )
    assert detail(verdict, "teacher_margin") == (
        "student nDCG@10 0.931 trails its teacher 0.940 by 0.009, 95 % CI [-0.020, 0.003] on 148 queries; "
        "the lower end must not be below -0.1"
    )
    assert detail(verdict, "drift") == (
        "25 % of the columns (bm25) have drifted from the training window to the newest traffic; "
        "at most 25 % are allowed"
    )
    assert detail(verdict, "calibration") == "the student's calibration error (ECE) is 0.031; it must be at most 0.2"
    assert detail(verdict, "enough_judgements") == (
        "4,800 pairs are judged in train, dev and test together; at least 100 are required"
    )
    assert detail(verdict, "latency") == (
        "the p50 of a request is 12.0 ms, 1.20 times the champion's 10.0 ms; at most 2 times is allowed; "
        "the p95 of a request is 20.0 ms, 1.11 times the champion's 18.0 ms; at most 2 times is allowed"
    )
    worse = decide(comparisons=with_comparison("champion", -0.02, -0.03, -0.01))
    assert detail(worse, "not_inferior_to_champion").endswith("the lower end must not be below -0.005, but is")


def test_a_detail_shows_enough_decimals_to_see_the_side_of_the_bound() -> None:
    close = decide(comparisons=with_comparison("bm25", 0.02, -0.00004, 0.04))
    assert "[-0.00004, 0.04000]" in detail(close, "lift_over_bm25")
    assert failed(close) == ["lift_over_bm25"]


# The other checks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "check"),
    [
        ({"min_queries": 149}, "enough_queries"),
        ({"min_judgements": 4801}, "enough_judgements"),
        ({"min_metrics": {"ndcg_at_10": 0.932}}, "minimum_ndcg_at_10"),
        ({"min_metrics": {"ndcg_at_10": 0.931, "roc_auc": 0.81}}, "minimum_roc_auc"),
        ({"min_metrics": {"recall_at_precision_95": 0.31}}, "minimum_recall_at_precision_95"),
        ({"lift_over_bm25": 0.071}, "lift_over_bm25"),
        ({"lift_over_random": 0.2}, "lift_over_random"),
        ({"teacher_margin": 0.019}, "teacher_margin"),
        ({"champion_margin": 0.0039}, "not_inferior_to_champion"),
        ({"anchor_margin": 0.0079}, "not_inferior_to_anchor"),
        ({"max_ece": 0.03}, "calibration"),
        ({"min_score_spread": 1.21}, "score_collapse"),
        ({"min_distinct_scores": 0.99}, "score_collapse"),
        ({"max_latency_ratio": 1.15}, "latency"),
        ({"max_p95_ms": 19.9}, "latency"),
        ({"max_drift_share": 0.2}, "drift"),
        ({"max_embedding_auc": 0.54}, "embedding_drift"),
        ({"max_traffic_age_days": 4}, "freshness"),
        ({"warn_after_test_evaluations": 1, "max_test_evaluations": 2}, "test_set"),
    ],
)
def test_each_setting_decides_alone(policy: dict[str, Any], check: str) -> None:
    assert failed(decide(Gate.model_validate(policy))) == [check]


@pytest.mark.parametrize(
    "policy",
    [
        {"min_metrics": {"ndcg_at_10": 0.931, "roc_auc": 0.8, "recall_at_precision_95": 0.3}},
        {"min_judgements": 4800, "min_queries": 148},
        {"min_score_spread": 1.2, "min_distinct_scores": 0.98},
        {"max_latency_ratio": 1.2, "max_p95_ms": 20},
        {"max_embedding_auc": 0.55, "max_drift_share": 0.25},
        {"max_traffic_age_days": 4.5},
        {"max_test_evaluations": 3, "warn_after_test_evaluations": 3},
    ],
)
def test_a_bound_itself_passes(policy: dict[str, Any]) -> None:
    assert failed(decide(Gate.model_validate(policy))) == []


@pytest.mark.parametrize(
    ("off", "changed"),
    [
        ({"min_judgements": 0}, {"test_set": {}}),
        ({"slices": False}, {"slices": {}}),
        ({"max_latency_ratio": 0}, {"latency": {}}),
        ({"min_score_spread": 0, "min_distinct_scores": 0}, {"distribution": {}}),
        ({"max_embedding_auc": 1}, {"drift": {"candidate": {"share": 0.1, "columns": [], "embedding": None}}}),
        ({"max_drift_share": 1}, {"drift": {"candidate": {"columns": [], "embedding": EMBEDDING}}}),
        ({"max_ece": 1}, {"systems": {"student": {"ndcg_at_10": 0.9, "ece": None}}}),
        ({"anchor_margin": 1}, {"comparisons": metrics()["comparisons"][:-1]}),
    ],
)
def test_what_is_missing_may_be_missing_only_where_nothing_is_asked_of_it(off: dict, changed: dict) -> None:
    assert decide(**changed).outcome == "refused"
    assert failed(decide(Gate.model_validate(off), **changed)) == []


def test_queries_are_counted_for_the_smallest_comparison() -> None:
    verdict = decide(comparisons=with_comparison("random", 0.2, 0.1, 0.3, queries=29))
    assert failed(verdict) == ["enough_queries"]
    assert detail(verdict, "enough_queries") == "the decision rests on 29 test queries; at least 30 are required"


def test_a_slice_that_became_worse_refuses() -> None:
    rows = [part("head", 0.02, 0.01), part("torso", -0.04, 0.012), part("tail", -0.031, 0.049)]
    verdict = decide(slices={"min_queries": 20, "rows": rows, "left_out": [{"column": "script"}]})
    assert failed(verdict) == ["slices"]
    assert find_check(verdict, "slices").value == 2
    assert detail(verdict, "slices") == (
        "significantly worse than the champion on 2 of 3 slices by nDCG@10 (Holm, 5 %): stratum torso by 0.040 on 40 "
        "queries, stratum tail by 0.031 on 40 queries; none is allowed; slices of fewer than 20 queries are not tested"
    )
    # At another confidence, another significance.
    assert failed(decide(slices={"min_queries": 20, "rows": rows[1:]}, protocol=PROTOCOL | {"confidence": 0.99})) == []


def test_a_slice_without_its_comparison_never_passes() -> None:
    rows = [part("head", 0.02, 0.01), part("tail", 0.02, 0.01, baseline="bm25")]
    verdict = decide(slices={"min_queries": 20, "rows": rows})
    assert failed(verdict) == ["slices"] and "does not compare every slice" in detail(verdict, "slices")
    unknown = [part("head", 0.02, 0.01), part("tail", -0.02, float("nan"))]
    assert failed(decide(slices={"min_queries": 20, "rows": unknown})) == ["slices"]
    unknown_level = {name: value for name, value in PROTOCOL.items() if name != "confidence"}
    assert failed(decide(protocol=unknown_level)) == ["protocol", "slices"]  # no level, no significance


def small(column: str, value: str, queries: int) -> dict[str, Any]:
    """A slice that is too small to be compared."""
    return {"column": column, "value": value, "queries": queries}


@pytest.mark.parametrize(
    ("required", "left_out", "reason"),
    [
        (["stratum=tail", "stratum"], [], ""),
        (["script=latin"], [], "no slice script=latin of at least 20 test queries was compared with the champion"),
        (
            ["stratum", "script=han"],
            [small("script", "latin", 90), small("script", "han", 7)],
            "the slice script=han has 7 test queries, fewer than the 20 that a comparison requires",
        ),
        (["script"], [small("script", "han", 7)], "no slice script of at least 20 test queries was compared"),
    ],
)
def test_required_slices_must_have_been_compared(required: list[str], left_out: list, reason: str) -> None:
    found_slices = metrics()["slices"] | {"left_out": left_out}
    verdict = decide(Gate.model_validate({"required_slices": required}), slices=found_slices)
    assert failed(verdict) == (["slices"] if reason else [])
    if reason:
        assert detail(verdict, "slices").startswith(reason) and "gate.required_slices" in detail(verdict, "slices")
        assert not find_check(verdict, "slices").excusable
    assert not failed(decide(slices=found_slices))


def test_a_collapsed_student_is_refused() -> None:
    one_score = {"standard_deviation": 0.0, "within_query": 0.0, "distinct": 0.001}
    verdict = decide(distribution={"student": one_score})
    assert failed(verdict) == ["score_collapse"]
    assert detail(verdict, "score_collapse") == (
        "the standard deviation of the student's scores within a query is 0, expected at least 0.01; "
        "the share of distinct scores is 0.1 %, expected at least 10 %"
    )
    # A score for each query, whatever the product, spreads over all pairs and tells no product from another.
    by_query = {"standard_deviation": 3.0, "within_query": 0.0, "distinct": 0.15}
    assert failed(decide(distribution={"student": by_query})) == ["score_collapse"]


def test_exported_files_must_rank_as_the_student_does() -> None:
    files = {"model.onnx": {"ndcg_loss": -1e-9}, "model_qint8_avx512_vnni.onnx": {"ndcg_loss": 0.0031}}
    verdict = decide(parity={"files": files})
    assert failed(verdict) == ["onnx_parity"]
    assert detail(verdict, "onnx_parity") == (
        "model_qint8_avx512_vnni.onnx loses 0.0031 of dev nDCG@10 compared with torch, the largest loss of 2 ONNX "
        "files; "
        "a loss of at most 0.002 is allowed"
    )
    assert not failed(decide(Gate(max_onnx_loss=0.004), parity={"files": files}))
    assert not failed(decide(parity={"files": {"model.onnx": {"ndcg_loss": -0.01}}}))
    for unknown in ({}, {"files": {"model.onnx": {"ndcg_loss": None}}}):
        assert failed(decide(parity=unknown)) == ["onnx_parity"]
        assert not failed(decide(Gate(max_onnx_loss=1), parity=unknown))


def test_latency_is_compared_with_the_champion_of_the_same_run() -> None:
    slow_tail = {"student": {"p50_ms": 10.0, "p95_ms": 40.0}, "champion": {"p50_ms": 10.0, "p95_ms": 18.0}}
    verdict = decide(latency=slow_tail)
    assert failed(verdict) == ["latency"] and find_check(verdict, "latency").value == pytest.approx(40 / 18)
    alone = {"student": slow_tail["student"]}
    assert failed(decide(latency=alone)) == ["latency"]
    assert failed(decide(latency=alone, champion=None)) == []
    verdict = decide(Gate(max_p95_ms=39), latency=alone, champion=None)
    assert (find_check(verdict, "latency").value, detail(verdict, "latency")) == (
        40.0,
        "the p95 of a request is 40.0 ms; at most 39 ms is allowed",
    )


def test_only_the_candidates_own_drift_counts() -> None:
    calm = {"share": 0.0, "columns": [], "embedding": EMBEDDING}
    drifted = {"share": 0.75, "columns": [], "embedding": EMBEDDING | {"auc": 0.9, "ci_low": 0.85}}
    assert decide(drift={"candidate": calm, "champion": drifted}).promoted
    assert failed(decide(drift={"candidate": drifted, "champion": calm})) == ["drift", "embedding_drift"]
    assert failed(decide(drift={"candidate": None, "champion": calm})) == ["drift", "embedding_drift"]
    assert failed(decide(drift={"candidate": calm | {"comparable": False}})) == ["drift"]
    few = calm | {"embedding": None, "note": "Embeddings not compared: fewer than 20 queries in a sample."}
    assert "unknown (Embeddings not compared: fewer than 20" in detail(decide(drift={"candidate": few}), DRIFTED)


DRIFTED = "embedding_drift"


def test_traffic_must_be_fresh_where_that_is_asked() -> None:
    policy = Gate(max_traffic_age_days=4)
    assert detail(decide(policy), "freshness") == (
        "the newest traffic ends on 2026-11-16, 4.5 days before this decision; at most 4 days are allowed"
    )
    assert decide(policy, newest_end="2026-11-17T00:00:00").promoted
    assert decide(policy, newest_end="2026-11-21T00:00:00Z").promoted  # a shop's clock may be ahead
    verdict = decide(policy, newest_end="")
    assert failed(verdict) == ["freshness"] and "the log has no times" in detail(verdict, "freshness")
    assert decide(newest_end="").promoted


def test_reuse_of_a_test_set_is_a_warning_and_then_refused() -> None:
    assert decide(test_evaluations=9).notes == []
    [note] = decide(test_evaluations=10).notes
    assert note.startswith("candidates evaluated on this test set, including this one: 10") and "test_fold" in note
    assert decide(test_evaluations=1000).promoted and decide(test_evaluations=None).promoted
    policy = Gate(max_test_evaluations=11)
    assert decide(policy, test_evaluations=11).promoted
    assert failed(decide(policy, test_evaluations=12)) == failed(decide(policy, test_evaluations=None)) == ["test_set"]
    assert decide(Gate(warn_after_test_evaluations=0), test_evaluations=1000).notes == []


def test_an_identical_student_has_nothing_to_promote() -> None:
    verdict = decide(champion=SAME)
    assert (verdict.outcome, verdict.promoted, failed(verdict), verdict.notes) == ("unchanged", False, [], [])
    assert not find_check(verdict, "new").passed and verdict.word(find_check(verdict, "new")) == "unchanged"
    assert "is byte for byte the champion, so there is nothing" in detail(verdict, "new")
    written = verdict.to_json()
    assert (written["outcome"], written["promoted"], written["override"]) == ("unchanged", False, None)
    assert [check["name"] for check in written["checks"] if not check["passed"]] == ["new"]
    assert checks.failed(written) == []
    by = decide(champion=SAME | {"run": "weekly-1"})
    assert "byte for byte the champion (promoted by the run weekly-1), so there is nothing" in detail(by, "new")


def test_an_identical_student_is_not_compared_with_itself() -> None:
    # What such comparisons say, if the two timings of one model differ: nothing that would count.
    timed = {"student": {"p50_ms": 30.0, "p95_ms": 60.0}, "champion": {"p50_ms": 10.0, "p95_ms": 18.0}}
    for policy in (Gate(champion="superior"), Gate()):
        verdict = decide(policy, champion=SAME, latency=timed, slices={})
        assert (verdict.outcome, failed(verdict)) == ("unchanged", [])
        compared = {"superior_to_champion", "not_inferior_to_champion", "slices", "latency"}
        assert {check.name for check in verdict.checks} == set(DEFAULT_CHECKS) - compared
    slow = decide(Gate(max_p95_ms=50), champion=SAME, latency=timed)
    assert failed(slow) == ["latency"], "milliseconds are no comparison"


def test_what_the_champion_would_fail_today_is_reported_and_refuses_nothing() -> None:
    verdict = decide(Gate(max_ece=0.03, max_traffic_age_days=4), champion=SAME)
    assert (verdict.outcome, verdict.promoted) == ("unchanged", False)
    assert failed(verdict) == ["calibration", "freshness"]
    assert [verdict.word(check) for check in verdict.checks if not check.passed] == ["FAILED", "FAILED", "unchanged"]
    assert verdict.notes == [
        "the champion remains in use, although the current policy would not promote it: calibration, freshness"
    ]
    assert [check["name"] for check in checks.failed(verdict.to_json())] == ["calibration", "freshness"]


def test_a_champion_that_was_rolled_back_is_refused_not_unchanged() -> None:
    back = {"by": "Jo", "since": "2026-11-19T00:00:00Z", "reason": "empty results"}
    candidate = CANDIDATE | {"rolled_back": back}
    evidence = Evidence(metrics=metrics(), drift=DRIFT, candidate=candidate, champion=SAME, now=NOW)
    verdict = gate.decide(overriding(), evidence)
    assert (verdict.outcome, failed(verdict)) == ("refused", ["new"])
    assert verdict.notes == ["the override by J. Doe, valid until 2026-11-20, cannot excuse new"]
    assert "Jo rolled it back on 2026-11-19: empty results" in detail(verdict, "new")


# The protocol is a part of the policy ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "protocol", "value", "bound"),
    [
        ({}, {"confidence": 0.8999}, 0.8999, 0.9),
        ({"min_confidence": 0.95}, {"confidence": 0.9}, 0.9, 0.95),
        ({}, {"confidence": 0.999}, 0.999, 0.99),  # by which no slice would be worse
        ({}, {"bootstrap": 999}, 999, 1000),
        ({}, {"bootstrap": None}, None, 1000),
        ({}, {"bootstrap": 999, "confidence": None}, None, 0.9),
    ],
)
def test_the_recorded_protocol_is_checked_against_the_policy(
    policy: dict, protocol: dict, value: Any, bound: float
) -> None:
    override = {"by": "J. Doe", "reason": "the tail is covered by a rule for now", "until": "2026-11-20"}
    verdict = decide(Gate.model_validate({**policy, "override": override}), protocol=PROTOCOL | protocol, slices={
        "min_queries": 20, "rows": [part("head", 0.02, 0.01)],
    })  # fmt: skip
    assert verdict.outcome == "refused" and "protocol" in failed(verdict)  # nobody answers for how it was measured
    assert (find_check(verdict, "protocol").value, find_check(verdict, "protocol").bound) == (value, bound)


def test_slices_cannot_be_made_too_small_to_test() -> None:
    none = {"rows": [], "left_out": [small("stratum", "head", 49)]}
    assert decide(slices={"min_queries": 50, **none}).promoted
    verdict = decide(slices={"min_queries": 51, **none})
    assert failed(verdict) == ["protocol"] and "the smallest number of queries of a compared slice is 51" in detail(
        verdict, "protocol"
    )
    assert decide(Gate(slices=False), slices={"min_queries": 51, **none}).promoted
    assert decide(slices={}, champion=None).promoted


def test_near_duplicates_of_what_was_learned_are_bounded() -> None:
    assert failed(decide(protocol=PROTOCOL | {"near_duplicates": 0.1})) == []
    verdict = decide(protocol=PROTOCOL | {"near_duplicates": 0.101})
    assert failed(verdict) == ["near_duplicates"] and detail(verdict, "near_duplicates").startswith(
        "10.1 % of the test"
    )
    unknown = PROTOCOL | {"near_duplicates": None}
    assert failed(decide(protocol=unknown)) == ["near_duplicates"]
    assert failed(decide(Gate(max_near_duplicates=1), protocol=unknown)) == []


@pytest.mark.parametrize(
    ("min_metrics", "off", "failing"),
    [
        ({"ndcg_at_10": 0.702}, True, ["above_chance"]),
        ({"ndcg_at_10": 0.703}, True, []),
        ({"ndcg_at_10": 0.2, "roc_auc": 0.55}, True, []),  # one that can fail is enough
        ({"mrr": 0.4}, True, ["minimum_mrr", "above_chance"]),  # not measured
        ({"ndcg_at_10": 0.2}, False, []),
    ],
)
def test_minimums_that_chance_reaches_are_no_limit(min_metrics: dict, off: bool, failing: list[str]) -> None:
    nothing_else = {"lift_over_bm25": -1, "lift_over_random": -1, "teacher_margin": 1} if off else {}
    systems = metrics()["systems"]
    systems["random"] |= {"roc_auc": 0.5}
    verdict = decide(Gate.model_validate({"min_metrics": min_metrics, **nothing_else}), systems=systems)
    assert failed(verdict) == failing


def test_whatever_is_looser_than_the_default_is_shown() -> None:
    assert decide().looser == [] == decide(Gate(max_ece=0.1, max_p95_ms=50, max_test_evaluations=19)).looser
    policy = Gate(slices=False, max_ece=1, max_latency_ratio=0, min_queries=3, warn_after_test_evaluations=0)
    protocol = PROTOCOL | {"bootstrap": 1000, "bins": 2, "slices": ["stratum"], "slice_queries": 10}
    verdict = decide(policy, protocol=protocol, drift=DRIFT | {"limits": {"numeric": 5, "chance": 0.05}})
    assert verdict.promoted and verdict.to_json()["looser"][0] == {"key": "gate.min_queries", "value": 3, "default": 30}
    assert gate.looser_text(verdict.looser) == (
        "looser than the default, which is in parentheses: gate.min_queries 3 (30), gate.slices false (true), "
        "gate.max_ece 1 (0.2), gate.max_latency_ratio 0 (2), gate.warn_after_test_evaluations 0 (9), "
        "evaluate.bootstrap 1000 (2000), evaluate.slices [stratum] ([stratum, query_words, product_type]), "
        "evaluate.bins 2 (10), drift.numeric 5 (0.15)"
    )


# Override ---------------------------------------------------------------------------------------------------------


def overriding(until: str = "2026-11-20", **policy: Any) -> Gate:
    word = {"by": "J. Doe", "reason": "the tail is covered by a rule for now", "until": until}
    return Gate.model_validate({"override": word, **policy})


def test_an_override_promotes_in_spite_of_what_was_measured() -> None:
    verdict = decide(overriding(max_ece=0.03))
    assert (verdict.outcome, verdict.promoted, failed(verdict)) == ("overridden", True, ["calibration"])
    assert verdict.to_json()["override"] == {
        "by": "J. Doe",
        "reason": "the tail is covered by a rule for now",
        "until": "2026-11-20",
    }
    assert verdict.notes == [
        "the override by J. Doe, valid until 2026-11-20, promotes the student despite the failed checks: "
        "the tail is covered by a rule for now"
    ]


def test_an_override_that_is_not_needed_is_not_reported() -> None:
    verdict = decide(overriding())
    assert (verdict.outcome, verdict.notes, verdict.to_json()["override"]) == ("promoted", [], None)


def test_an_expired_override_changes_nothing() -> None:
    verdict = decide(overriding("2026-11-19", max_ece=0.03))
    assert (verdict.outcome, verdict.to_json()["override"]) == ("refused", None)
    assert verdict.notes == ["the override by J. Doe, valid until 2026-11-19, has expired, so it has no effect"]


def test_an_override_lasts_a_season_at_most() -> None:
    assert decide(overriding("2027-02-18", max_ece=0.03)).outcome == "overridden"  # 90 days ahead
    for day in ("2027-02-19", "9999-12-31"):
        verdict = decide(overriding(day, max_ece=0.03))
        assert verdict.outcome == "refused"
        note = f"the override by J. Doe, valid until {day}, extends more than 90 days ahead, so it has no effect"
        assert verdict.notes == [note]


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"comparisons": metrics()["comparisons"][:-2] + metrics()["comparisons"][-1:]}, "not_inferior_to_champion"),
        ({"slices": {}}, "slices"),
        ({"distribution": {}}, "score_collapse"),
    ],
)
def test_an_override_cannot_excuse_what_was_not_measured(changed: dict[str, Any], name: str) -> None:
    verdict = decide(overriding(max_ece=0.03), **changed)
    assert verdict.outcome == "refused" and set(failed(verdict)) == {"calibration", name}
    assert verdict.notes == [f"the override by J. Doe, valid until 2026-11-20, cannot excuse {name}"]


def test_an_override_does_not_promote_the_champion_over_itself() -> None:
    verdict = decide(overriding(max_ece=0.03), champion=SAME)
    assert (verdict.outcome, verdict.promoted, verdict.to_json()["override"]) == ("unchanged", False, None)
    assert verdict.notes == [
        "the champion remains in use, although the current policy would not promote it: calibration"
    ]


def test_without_slices_the_check_fails_and_too_small_ones_are_reported() -> None:
    none: dict[str, Any] = {"min_queries": 20, "rows": [], "left_out": []}
    verdict = decide(slices=none)
    assert failed(verdict) == ["slices"] and detail(verdict, "slices").startswith("the evaluation has no slices")
    small_slices = decide(slices=none | {"left_out": [{"column": "stratum", "value": "head", "queries": 9}]})
    assert small_slices.promoted and "no slice has the 20 queries" in detail(small_slices, "slices")
