"""The checks of the gate: each compares the evidence on a student with the policy.

Differences between systems are judged by their confidence interval, not by the point estimate. A lift counts if the
lower end of its interval is above the bound. A student is not inferior if the lower end is within a margin that the
policy states in advance. A check fails if the evidence that it needs is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from distilrank.config import MAX_CONFIDENCE, Gate
from distilrank.rendering.formatting import format_plain, format_plain_interval
from distilrank.rendering.labels import BASELINES, metric_label

SLICE_METRICS = ("ndcg_at_10", "pair_accuracy")
"""Metrics by which slices are compared. If the policy decides by another metric, the first of these is used."""

MAX_NAMED_SLICES = 3
"""Largest number of slices that a detail text names."""


@dataclass(frozen=True)
class Check:
    """Result of one check of the policy: the observed value, its bound, and a sentence that explains the result.

    `value` is None if the evidence does not contain it. The check has then failed, unless the policy sets no limit.
    """

    name: str
    passed: bool
    value: float | str | None
    bound: float | str | None
    detail: str

    @property
    def excusable(self) -> bool:
        """Whether an override can excuse the failure of this check.

        An override vouches for a student. It excuses neither the protocol of the evaluation, nor a value that was not
        measured, nor a student that was rolled back.
        """
        return self.value is not None and self.name not in ("new", "protocol")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The evidence on a candidate that the gate decides on."""

    metrics: dict[str, Any]
    """Content of `metrics.json`."""
    drift: dict[str, Any]
    """Content of `drift.json`. Only the candidate's part counts: drift of the champion is a reason to replace it."""
    candidate: dict[str, Any]
    """`id` of the version that the student would become, and details for `verdict.json`."""
    champion: dict[str, Any] | None
    """`id` and details of the version in use, which `metrics` scores on the same rows; None if there is none."""
    anchor: dict[str, Any] | None = None
    """`id` and details of the anchor, which no promotion changes; None if there is none."""
    parity: dict[str, Any] | None = None
    """Content of the student's `onnx/parity.json`; None if the student was not exported."""
    test_evaluations: int | None = None
    """Number of candidates evaluated on this test set or an overlapping one, including this one; None if unknown."""
    newest_end: str = ""
    """End of the newest traffic, ISO 8601; empty if the log has no times."""
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    """Time of the decision, with a time zone."""

    @property
    def unchanged(self) -> bool:
        """Whether the candidate is byte for byte the champion and was not rolled back."""
        is_champion = self.champion is not None and self.champion["id"] == self.candidate["id"]
        return is_champion and not self.candidate.get("rolled_back")

    @property
    def rival(self) -> dict[str, Any] | None:
        """The champion that the candidate would replace; None if there is none or if it is the candidate."""
        return None if self.unchanged else self.champion

    @property
    def protocol(self) -> dict[str, Any]:
        """Protocol that the evaluation recorded, which may differ from the current configuration."""
        return self.metrics.get("protocol", {})

    @cached_property
    def confidence(self) -> float | None:
        """Confidence level of the intervals; None if unknown."""
        return number(self.protocol.get("confidence"))

    def value(self, system: str, metric: str) -> float | None:
        """Return a metric of a system; None if it was not measured."""
        return number((self.metrics.get("systems", {}).get(system) or {}).get(metric))

    def comparisons(self, metric: str) -> dict[str, dict[str, Any]]:
        """Return the comparisons of the student by one metric, keyed by baseline."""
        return {
            row["baseline"]: row
            for row in self.metrics.get("comparisons", [])
            if row["system"] == "student" and row["metric"] == metric
        }


Checks = Iterator[Check]
Condition = tuple[bool, float | None, float, str]
"""One of several conditions of a check: whether it holds, the observed value, its bound, and a sentence."""


def counts_as_failed(name: str, passed: bool, outcome: str) -> bool:
    """Whether a check counts as failed. The check `new` of an unchanged candidate does not."""
    return not passed and not (outcome == "unchanged" and name == "new")


def failed(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the failed checks of a `verdict.json`."""
    outcome = verdict["outcome"]
    return [check for check in verdict["checks"] if counts_as_failed(check["name"], check["passed"], outcome)]


def examine(policy: Gate, evidence: Evidence) -> tuple[Check, ...]:
    """Run all checks that apply, in the order in which reports list them."""
    return tuple(check for rule in RULES for check in rule(policy, evidence))


# Is the evidence sufficient? --------------------------------------------------------------------------------------


def enough_queries(policy: Gate, evidence: Evidence) -> Checks:
    """Every comparison by the deciding metric has enough queries."""
    label, bound = metric_label(policy.metric), policy.min_queries
    counts = [number(row.get("queries")) for row in evidence.comparisons(policy.metric).values()]
    if not counts:
        detail = f"the evaluation has no comparison of the student by {label}, so the number of queries is unknown"
        yield Check("enough_queries", False, None, bound, detail)
        return
    if None in counts:
        detail = f"the evaluation does not state the number of queries in its comparisons by {label}"
        yield Check("enough_queries", False, None, bound, detail)
        return
    queries = min(int(count) for count in counts if count is not None)
    detail = f"the decision rests on {queries} test queries; at least {bound} are required"
    yield Check("enough_queries", queries >= bound, queries, bound, detail)


def enough_judgements(policy: Gate, evidence: Evidence) -> Checks:
    """All splits together have enough judged pairs."""
    bound = policy.min_judgements
    if not bound:
        return
    pairs = number(evidence.metrics.get("test_set", {}).get("judgements"))
    state = "the number of judged pairs in train, dev and test is unknown"
    if pairs is not None:
        state = f"{pairs:,.0f} pairs are judged in train, dev and test together"
    detail = f"{state}; at least {bound:,} are required"
    yield Check("enough_judgements", pairs is not None and pairs >= bound, pairs, bound, detail)


def test_set(policy: Gate, evidence: Evidence) -> Checks:
    """The test set has not been used too often. Its reuse inflates false promotions."""
    count, bound = evidence.test_evaluations, policy.max_test_evaluations
    if not bound:
        return
    state = "the number of candidates evaluated on this test set is unknown"
    if count is not None:
        state = f"candidates evaluated on this test set, including this one: {count}"
    detail = f"{state}; at most {bound} are allowed before a new test set is drawn (prepare.test_fold)"
    yield Check("test_set", count is not None and count <= bound, count, bound, detail)


def protocol(policy: Gate, evidence: Evidence) -> Checks:
    """The protocol of the evaluation meets the policy."""
    confidence, resamples = evidence.confidence, number(evidence.protocol.get("bootstrap"))
    low, high = policy.min_confidence, MAX_CONFIDENCE
    level = "unknown" if confidence is None else f"{confidence:g}"
    detail = f"the confidence level of the intervals is {level}, expected {low:g} to {high:g}"
    conditions: list[Condition] = [
        (confidence is not None and low <= confidence <= high, confidence, high if (confidence or 0) > high else low,
         detail),
    ]  # fmt: skip
    bound = policy.min_resamples
    count = "unknown" if resamples is None else f"{resamples:,.0f}"
    detail = f"the number of bootstrap resamples is {count}, expected at least {bound:,}"
    conditions.append((resamples is not None and resamples >= bound, resamples, bound, detail))
    sliced = evidence.metrics.get("slices", {})
    if evidence.rival is not None and policy.slices and "rows" in sliced:  # missing rows fail the check `slices`
        min_queries, bound = number(sliced.get("min_queries")), policy.max_slice_queries
        size = "unknown" if min_queries is None else f"{min_queries:g}"
        detail = f"the smallest number of queries of a compared slice is {size}, expected at most {bound}"
        conditions.append((min_queries is not None and min_queries <= bound, min_queries, bound, detail))
    yield from _joint("protocol", conditions)


def near_duplicates(policy: Gate, evidence: Evidence) -> Checks:
    """Few test queries are near duplicates of training queries."""
    share, bound = number(evidence.protocol.get("near_duplicates")), policy.max_near_duplicates
    rule = f"at most {100 * bound:g} % are allowed" if bound < 1 else "no limit is set"
    if share is None:
        detail = f"the share of test queries with a near duplicate among the training queries is unknown; {rule}"
        yield Check("near_duplicates", bound == 1, None, bound, detail)
        return
    detail = f"{100 * share:.3g} % of the test queries have a near duplicate among the training queries; {rule}"
    yield Check("near_duplicates", share <= bound, share, bound, detail)


# Does the student rank well enough? -------------------------------------------------------------------------------


def minimum(policy: Gate, evidence: Evidence) -> Checks:
    """Each metric reaches its minimum."""
    for metric, bound in policy.min_metrics.model_dump().items():
        if not bound:
            continue
        name, label, value = f"minimum_{metric}", metric_label(metric), evidence.value("student", metric)
        if value is None:
            detail = f"the evaluation has no {label} of the student, so this check fails"
            yield Check(name, False, None, bound, detail)
            continue
        shown_value = format_plain(value, _places(value, bound))
        detail = f"the student's {label} is {shown_value}; it must be at least {bound:g}"
        yield Check(name, value >= bound, value, bound, detail)


def above_chance(policy: Gate, evidence: Evidence) -> Checks:
    """A policy whose only requirements on relevance are minimums has at least one that random order fails."""
    if policy.lift_over_bm25 > -1 or policy.lift_over_random > -1 or policy.teacher_margin < 1:
        return
    minimums = {metric: bound for metric, bound in policy.min_metrics.model_dump().items() if bound}
    random_values = {metric: evidence.value("random", metric) for metric in minimums}
    margins = {metric: minimums[metric] - value for metric, value in random_values.items() if value is not None}
    if not margins:
        detail = "the evaluation has no metric of random order for which a minimum is set, so this check fails"
        yield Check("above_chance", False, None, 0, detail)
        return
    metric = max(margins, key=lambda name: margins[name])
    value, bound = random_values[metric] or 0.0, minimums[metric]
    detail = (
        f"the {metric_label(metric)} of random order is {format_plain(value, _places(value, bound))}, and the minimum "
        f"is {bound:g}; at least one minimum must exceed the value of random order, unless lift_over_bm25, "
        "lift_over_random or teacher_margin is set"
    )
    yield Check("above_chance", margins[metric] > 0, margins[metric], 0, detail)


def lift_over_bm25(policy: Gate, evidence: Evidence) -> Checks:
    """The student is better than BM25."""
    if policy.lift_over_bm25 > -1:
        yield _difference(policy, evidence, "lift_over_bm25", "bm25", policy.lift_over_bm25, strictly=True)


def lift_over_random(policy: Gate, evidence: Evidence) -> Checks:
    """The student is better than random order, which reaches high values on short lists."""
    if policy.lift_over_random > -1:
        yield _difference(policy, evidence, "lift_over_random", "random", policy.lift_over_random, strictly=True)


def teacher_margin(policy: Gate, evidence: Evidence) -> Checks:
    """The student is not far behind its teacher."""
    if policy.teacher_margin < 1:
        yield _difference(policy, evidence, "teacher_margin", "teacher", -policy.teacher_margin, strictly=False)


def against_champion(policy: Gate, evidence: Evidence) -> Checks:
    """The student is not inferior, or is superior, to the champion that it would replace."""
    if evidence.rival is None:
        return
    if policy.champion == "superior":
        bound = policy.lift_over_champion
        yield _difference(policy, evidence, "superior_to_champion", "champion", bound, strictly=True)
    else:
        bound = -policy.champion_margin
        yield _difference(policy, evidence, "not_inferior_to_champion", "champion", bound, strictly=False)


def against_anchor(policy: Gate, evidence: Evidence) -> Checks:
    """The student is not inferior to the anchor.

    Without this check, small losses that are each within the champion's margin could add up over promotions.
    """
    if evidence.anchor is not None and policy.anchor_margin < 1:
        name, bound = "not_inferior_to_anchor", -policy.anchor_margin
        yield _difference(policy, evidence, name, "anchor", bound, strictly=False)


def slices(policy: Gate, evidence: Evidence) -> Checks:
    """The student is on no slice significantly worse than the champion, after Holm's correction over all slices."""
    if evidence.rival is None or not policy.slices:
        return
    metric = policy.metric if policy.metric in SLICE_METRICS else SLICE_METRICS[0]
    label, results = metric_label(metric), evidence.metrics.get("slices", {})
    rows = results.get("rows")
    compared = [
        (row, comparison)
        for row in rows or []
        for comparison in row.get("comparisons", [])
        if comparison["baseline"] == "champion" and comparison["metric"] == metric
    ]
    is_complete = all(
        number(comparison.get(key)) is not None for _, comparison in compared for key in ("delta", "p_holm")
    )
    if rows is None or len(compared) < len(rows) or not is_complete or evidence.confidence is None:
        detail = f"the evaluation does not compare every slice with the champion by {label}, so this check fails"
        yield Check("slices", False, None, 0, detail)
        return
    names = {name for row, _ in compared for name in (row["column"], f"{row['column']}={row['value']}")}
    missing = [name for name in policy.required_slices if name not in names]
    if missing:
        detail = f"{_untested(missing[0], results)}, but gate.required_slices requires it, so this check fails"
        yield Check("slices", False, None, 0, detail)
        return
    too_small, min_queries = results.get("left_out"), results.get("min_queries")
    if not compared:
        detail = "the evaluation has no slices (evaluate.slices)"
        if too_small:
            detail = f"no slice has the {min_queries} queries that a comparison requires"
        yield Check("slices", bool(too_small), None, 0, detail)
        return
    alpha = 1 - evidence.confidence
    worse = sorted(
        ((row, comparison) for row, comparison in compared if comparison["delta"] < 0 and comparison["p_holm"] < alpha),
        key=lambda pair: pair[1]["delta"],
    )
    untested = f"; slices of fewer than {min_queries} queries are not tested" if too_small else ""
    family = f"{len(compared)} slices by {label} (Holm, {100 * alpha:.3g} %)"
    if worse:
        named = ", ".join(
            f"{row['column']} {row['value']} by {format_plain(-comparison['delta'], 3)} on {row['queries']} queries"
            for row, comparison in worse[:MAX_NAMED_SLICES]
        )
        more = f" and {len(worse) - MAX_NAMED_SLICES} more" if len(worse) > MAX_NAMED_SLICES else ""
        detail = f"significantly worse than the champion on {len(worse)} of {family}: {named}{more}; none is allowed"
    else:
        detail = f"significantly worse than the champion on none of {family}"
    yield Check("slices", not worse, len(worse), 0, detail + untested)


def _untested(name: str, results: Mapping[str, Any]) -> str:
    """Explain why a slice, or a whole column of slices, was not compared."""
    column, _, value = name.partition("=")
    sizes = [
        row["queries"] for row in results.get("left_out", []) if row["column"] == column and value in ("", row["value"])
    ]
    min_queries = results.get("min_queries")
    if not sizes or not value:
        return f"no slice {name} of at least {min_queries} test queries was compared with the champion"
    return f"the slice {name} has {max(sizes)} test queries, fewer than the {min_queries} that a comparison requires"


def _difference(policy: Gate, evidence: Evidence, name: str, baseline: str, bound: float, *, strictly: bool) -> Check:
    """Check that the lower end of the interval of student minus baseline is above the bound, or not below it."""
    bound += 0.0  # no negative zero
    metric, theirs = metric_label(policy.metric), BASELINES[baseline]
    row = evidence.comparisons(policy.metric).get(baseline, {})
    delta, low, high = (number(row.get(key)) for key in ("delta", "ci_low", "ci_high"))
    if delta is None or low is None or high is None:
        detail = f"the evaluation does not compare the student with {theirs} by {metric}, so this check fails"
        return Check(name, False, None, bound, detail)
    passed = low > bound if strictly else low >= bound
    places = _places(low, bound)
    student_value, baseline_value = (
        _value_text(evidence.value(system, policy.metric)) for system in ("student", baseline)
    )
    verb = "beats" if delta > 0 else "trails" if delta < 0 else "equals"
    by = f" by {format_plain(delta, 3)}" if delta > 0 else f" by {format_plain(-delta, 3)}" if delta < 0 else ""
    rule, failing = ("must exceed", "but does not") if strictly else ("must not be below", "but is")
    queries = f" on {row['queries']} queries" if "queries" in row else ""
    interval = "interval" if evidence.confidence is None else f"{100 * evidence.confidence:g} % CI"
    detail = (
        f"student {metric}{student_value} {verb} {theirs}{baseline_value}{by}, {interval} "
        f"{format_plain_interval(low, high, places)}{queries}; "
        f"the lower end {rule} {bound:g}{'' if passed else f', {failing}'}"
    )
    return Check(name, passed, low, bound, detail)


# Can the student be served? ---------------------------------------------------------------------------------------


def calibration(policy: Gate, evidence: Evidence) -> Checks:
    """The student's probabilities are calibrated."""
    value, bound = evidence.value("student", "ece"), policy.max_ece
    rule = f"it must be at most {bound:g}" if bound < 1 else "no limit is set"
    if value is None:
        detail = f"the evaluation has no calibration error (ECE) of the student; {rule}"
        yield Check("calibration", bound == 1, None, bound, detail)
        return
    detail = f"the student's calibration error (ECE) is {format_plain(value, _places(value, bound))}; {rule}"
    yield Check("calibration", value <= bound, value, bound, detail)


def score_collapse(policy: Gate, evidence: Evidence) -> Checks:
    """The student's scores distinguish products."""
    scores = (evidence.metrics.get("distribution") or {}).get("student") or {}
    spread, distinct = number(scores.get("within_query")), number(scores.get("distinct"))
    conditions: list[Condition] = []
    if bound := policy.min_score_spread:
        shown_spread = "unknown" if spread is None else f"{spread:.3g}"
        detail = (
            f"the standard deviation of the student's scores within a query is {shown_spread}, "
            f"expected at least {bound:g}"
        )
        conditions.append((spread is not None and spread >= bound, spread, bound, detail))
    if bound := policy.min_distinct_scores:
        shown_share = "unknown" if distinct is None else f"{100 * distinct:.3g} %"
        detail = f"the share of distinct scores is {shown_share}, expected at least {100 * bound:g} %"
        conditions.append((distinct is not None and distinct >= bound, distinct, bound, detail))
    yield from _joint("score_collapse", conditions)


def onnx_parity(policy: Gate, evidence: Evidence) -> Checks:
    """The student's ONNX files rank products as its torch model does."""
    if evidence.parity is None:
        return
    losses = {name: number(file.get("ndcg_loss")) for name, file in evidence.parity.get("files", {}).items()}
    bound = policy.max_onnx_loss
    rule = f"a loss of at most {bound:g} is allowed" if bound < 1 else "no limit is set"
    unknown = [name for name, loss in losses.items() if loss is None]
    if unknown or not losses:
        detail = f"the difference of {unknown[0] if unknown else 'the ONNX files'} from torch is unknown; {rule}"
        yield Check("onnx_parity", bound == 1, None, bound, detail)
        return
    worst = max(losses, key=lambda name: losses[name] or 0.0)
    loss = losses[worst] or 0.0
    detail = (
        f"{worst} loses {format_plain(loss)} of dev nDCG@10 compared with torch, the largest loss of {len(losses)} "
        f"ONNX files; {rule}"
    )
    yield Check("onnx_parity", loss <= bound, loss, bound, detail)


def latency(policy: Gate, evidence: Evidence) -> Checks:
    """The student is about as fast as the champion, measured in turn on the same requests."""
    timings = evidence.metrics.get("latency") or {}
    times = {
        system: {key: number((timings.get(system) or {}).get(f"{key}_ms")) for key in ("p50", "p95")}
        for system in ("student", "champion")
    }
    conditions: list[Condition] = []
    if (bound := policy.max_latency_ratio) and evidence.rival is not None:
        for key in ("p50", "p95"):
            ours, theirs = times["student"][key], times["champion"][key]
            if ours is None or not theirs:
                conditions.append((False, None, bound, f"{key} of student and champion was not measured in this run"))
                continue
            ratio = ours / theirs
            detail = f"the {key} of a request is {ours:.1f} ms, {ratio:.2f} times the champion's {theirs:.1f} ms"
            conditions.append((ratio <= bound, ratio, bound, f"{detail}; at most {bound:g} times is allowed"))
    if bound := policy.max_p95_ms:
        ours = times["student"]["p95"]
        state = "was not measured" if ours is None else f"is {ours:.1f} ms"
        detail = f"the p95 of a request {state}; at most {bound:g} ms is allowed"
        conditions.append((ours is not None and ours <= bound, ours, bound, detail))
    yield from _joint("latency", conditions)


def new(policy: Gate, evidence: Evidence) -> Checks:
    """The candidate is neither the champion nor a student that was rolled back."""
    candidate, champion, rollback = evidence.candidate["id"], evidence.champion, evidence.candidate.get("rolled_back")
    if rollback:
        reason = f": {rollback['reason']}" if rollback["reason"] else ""
        detail = (
            f"candidate {candidate} was the champion until {rollback['by']} rolled it back on "
            f"{rollback['since'][:10]}{reason}; to put it back, run "
            f"`distilrank registry promote {candidate} --reason ...`"
        )
        yield Check("new", False, candidate, None, detail)
        return
    if champion is None:
        yield Check("new", True, candidate, None, f"there is no champion yet, so candidate {candidate} is new")
        return
    if candidate == champion["id"]:
        by = f" (promoted by the run {champion['run']})" if champion.get("run") else ""
        detail = f"candidate {candidate} is byte for byte the champion{by}, so there is nothing to promote"
    else:
        detail = f"candidate {candidate} differs from the champion, {champion['id']}"
    yield Check("new", candidate != champion["id"], candidate, champion["id"], detail)


# Does the training data represent today's traffic? ----------------------------------------------------------------


def drift(policy: Gate, evidence: Evidence) -> Checks:
    """Few columns have drifted from the training window to the newest traffic."""
    comparison, bound = evidence.drift.get("candidate") or {}, policy.max_drift_share
    share = number(comparison.get("share")) if comparison.get("comparable", True) else None
    rule = f"at most {100 * bound:g} % are allowed" if bound < 1 else "no limit is set"
    if share is None:
        detail = f"the drift of the newest traffic from the training window is unknown; {rule}"
        yield Check("drift", bound == 1, None, bound, detail)
        return
    names = [column["name"] for column in comparison.get("columns", []) if column["drifted"]]
    drifted = f" ({', '.join(names)})" if names else ""
    detail = (
        f"{100 * share:.3g} % of the columns{drifted} have drifted from the training window to the newest traffic; "
        f"{rule}"
    )
    yield Check("drift", share <= bound, share, bound, detail)


def embedding_drift(policy: Gate, evidence: Evidence) -> Checks:
    """A classifier of embeddings barely separates the newest traffic from the training window."""
    comparison, bound = evidence.drift.get("candidate") or {}, policy.max_embedding_auc
    embedding = comparison.get("embedding") or {}
    auc, low, high = (number(embedding.get(key)) for key in ("auc", "ci_low", "ci_high"))
    rule = f"the lower end must be at most {bound:g}" if bound < 1 else "no limit is set"
    if auc is None or low is None or high is None:
        reason = f" ({comparison['note'].rstrip('.')})" if comparison.get("note") else ""
        detail = f"the drift of embeddings from the training window to the newest traffic is unknown{reason}; {rule}"
        yield Check("embedding_drift", bound == 1, None, bound, detail)
        return
    detail = (
        "a classifier of embeddings separates the newest traffic from the training window with a ROC-AUC of "
        f"{format_plain(auc, 3)}, CI {format_plain_interval(low, high, _places(low, bound))}; {rule}"
    )
    yield Check("embedding_drift", low <= bound, low, bound, detail)


def freshness(policy: Gate, evidence: Evidence) -> Checks:
    """The newest traffic is recent."""
    bound = policy.max_traffic_age_days
    if not bound:
        return
    rule = f"at most {bound:g} days are allowed"
    if not evidence.newest_end:
        detail = f"the log has no times, so the age of the newest traffic is unknown; {rule}"
        yield Check("freshness", False, None, bound, detail)
        return
    end = datetime.fromisoformat(evidence.newest_end)
    end = end if end.tzinfo else end.replace(tzinfo=UTC)
    days = max((evidence.now - end).total_seconds(), 0) / 86_400
    detail = f"the newest traffic ends on {end.astimezone(UTC):%Y-%m-%d}, {days:.1f} days before this decision; {rule}"
    yield Check("freshness", days <= bound, round(days, 3), bound, detail)


RULES: tuple[Callable[[Gate, Evidence], Checks], ...] = (
    enough_queries,
    enough_judgements,
    test_set,
    protocol,
    near_duplicates,
    minimum,
    above_chance,
    lift_over_bm25,
    lift_over_random,
    teacher_margin,
    against_champion,
    against_anchor,
    slices,
    calibration,
    score_collapse,
    onnx_parity,
    latency,
    drift,
    embedding_drift,
    freshness,
    new,
)


# Shared by the checks ---------------------------------------------------------------------------------------------


def _joint(name: str, conditions: list[Condition]) -> Checks:
    """Join several conditions to one check.

    Value and bound are those of the first condition whose value is unknown, otherwise of the first that fails,
    otherwise of the first.
    """
    if conditions:
        failed = [condition for condition in conditions if not condition[0]]
        unknown = [condition for condition in failed if condition[1] is None]  # no override excuses these
        passed, value, bound, _ = [*unknown, *failed, *conditions][0]
        yield Check(name, passed, value, bound, "; ".join(condition[-1] for condition in conditions))


def number(value: Any) -> float | None:
    """Return `value` if it is a finite number, else None, which passes no check."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _value_text(value: float | None) -> str:
    """Format a value with a space before it; empty if it is unknown."""
    return "" if value is None else f" {format_plain(value, 3)}"


def _places(value: float, bound: float) -> int:
    """Number of decimals, at least 3, that shows on which side of the bound the value is."""
    return next((places for places in range(3, 9) if value == bound or round(value, places) != round(bound, places)), 9)
