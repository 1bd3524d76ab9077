"""The checks of the gate: each compares the evidence on a student with the policy.

Differences between systems are judged by their interval, not by the figure itself: a lift counts when even its lower
end is above the bound, and "not worse" means that the lower end is within a margin that was stated beforehand. What
the evidence lacks fails the check that asks for it.
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

SLICED = ("ndcg_at_10", "pair_accuracy")
"""The measures by which slices are compared; a policy that decides by another one has them judged by the first."""

SHOWN = 3
"""Slices that a sentence names."""


@dataclass(frozen=True)
class Check:
    """One condition of the policy: the value seen, the bound that it is held to, and a sentence on it.

    `value` is None where the evidence does not have it: such a check has failed, unless it asks for nothing.
    """

    name: str
    passed: bool
    value: float | str | None
    bound: float | str | None
    detail: str

    @property
    def excusable(self) -> bool:
        """Whether an override may stand in for it: it answers for a student, so not for how that was measured, nor for
        what was not measured at all, nor for a student that was rolled back."""
        return self.value is not None and self.name not in ("new", "protocol")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The evidence on a candidate that the gate decides on."""

    metrics: dict[str, Any]
    """Content of `metrics.json`."""
    drift: dict[str, Any]
    """Content of `drift.json`; only the candidate's part counts. A drifted champion is a reason to replace it."""
    candidate: dict[str, Any]
    """`id` of the version that the student would become, and anything worth keeping beside it."""
    champion: dict[str, Any] | None
    """The same of the version in use, which `metrics` scores on the same rows; None: there is none."""
    anchor: dict[str, Any] | None = None
    """The same of the version that no promotion changes; None: there is none."""
    parity: dict[str, Any] | None = None
    """Content of the student's `onnx/parity.json`; None: it was not exported."""
    test_evaluations: int | None = None
    """Candidates that this test set, or one with many of its queries, has evaluated, this one included; None:
    unknown."""
    newest_end: str = ""
    """ISO 8601 end of the newest traffic; empty: the log has no times."""
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When the decision is made, with a time zone."""

    @property
    def unchanged(self) -> bool:
        """Whether the candidate is the champion, byte for byte, and was not rolled back."""
        same = self.champion is not None and self.champion["id"] == self.candidate["id"]
        return same and not self.candidate.get("rolled_back")

    @property
    def rival(self) -> dict[str, Any] | None:
        """The champion that the candidate would replace; None: there is none, or it is the candidate."""
        return None if self.unchanged else self.champion

    @property
    def protocol(self) -> dict[str, Any]:
        """The protocol that the evaluation recorded; the configuration is not consulted."""
        return self.metrics.get("protocol", {})

    @cached_property
    def confidence(self) -> float | None:
        """Level of the intervals."""
        return number(self.protocol.get("confidence"))

    def value(self, system: str, metric: str) -> float | None:
        """A metric of a system; None: it was not measured."""
        return number((self.metrics.get("systems", {}).get(system) or {}).get(metric))

    def comparisons(self, metric: str) -> dict[str, dict[str, Any]]:
        """Comparisons of the student by a metric, by baseline."""
        return {
            row["baseline"]: row
            for row in self.metrics.get("comparisons", [])
            if row["system"] == "student" and row["metric"] == metric
        }


Found = Iterator[Check]
Part = tuple[bool, float | None, float, str]
"""One of several conditions of a check: whether it holds, the value seen, its bound, a sentence."""


def counts_as_failed(name: str, passed: bool, outcome: str) -> bool:
    """Whether a check failed under this outcome: that an unchanged candidate is not new is no failure."""
    return not passed and not (outcome == "unchanged" and name == "new")


def failed(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The checks of a `verdict.json` that failed."""
    outcome = verdict["outcome"]
    return [check for check in verdict["checks"] if counts_as_failed(check["name"], check["passed"], outcome)]


def examine(policy: Gate, evidence: Evidence) -> tuple[Check, ...]:
    """Run every check that applies, in the order in which people read them."""
    return tuple(check for rule in RULES for check in rule(policy, evidence))


# What the decision rests on ---------------------------------------------------------------------------------------


def enough_queries(policy: Gate, evidence: Evidence) -> Found:
    """Enough queries in the comparison that has the fewest."""
    label, bound = metric_label(policy.metric), policy.min_queries
    counts = [number(row.get("queries")) for row in evidence.comparisons(policy.metric).values()]
    if not counts:
        detail = f"the evaluation compares the student with nothing by {label}, so no query counts"
        yield Check("enough_queries", False, None, bound, detail)
        return
    if None in counts:
        detail = f"the evaluation does not say on how many queries it compares by {label}"
        yield Check("enough_queries", False, None, bound, detail)
        return
    queries = min(int(count) for count in counts if count is not None)
    detail = f"the decision rests on {queries} test queries; it takes at least {bound}"
    yield Check("enough_queries", queries >= bound, queries, bound, detail)


def enough_judgements(policy: Gate, evidence: Evidence) -> Found:
    """Enough judged pairs, over all splits."""
    bound = policy.min_judgements
    if not bound:
        return
    pairs = number(evidence.metrics.get("test_set", {}).get("judgements"))
    seen = "how many pairs are judged" if pairs is None else f"{pairs:,.0f} pairs are judged"
    detail = f"{seen} in train, dev and test {'is not known' if pairs is None else 'together'}; it takes {bound:,}"
    yield Check("enough_judgements", pairs is not None and pairs >= bound, pairs, bound, detail)


def test_set(policy: Gate, evidence: Evidence) -> Found:
    """Reuse of the test set, which inflates false promotions."""
    count, bound = evidence.test_evaluations, policy.max_test_evaluations
    if not bound:
        return
    seen = "the number of candidates that this test set has evaluated is unknown"
    if count is not None:
        seen = f"candidates that this test set has evaluated: {count}, this one included"
    detail = f"{seen}; at most {bound} are allowed, then draw a fresh test set (prepare.test_fold)"
    yield Check("test_set", count is not None and count <= bound, count, bound, detail)


def protocol(policy: Gate, evidence: Evidence) -> Found:
    """The evaluation's protocol meets the policy."""
    confidence, resamples = evidence.confidence, number(evidence.protocol.get("bootstrap"))
    low, high = policy.min_confidence, MAX_CONFIDENCE
    seen = "not known" if confidence is None else f"{confidence:g}"
    detail = f"the level of the intervals is {seen}, expected {low:g} to {high:g}"
    parts: list[Part] = [
        (confidence is not None and low <= confidence <= high, confidence, high if (confidence or 0) > high else low,
         detail),
    ]  # fmt: skip
    bound = policy.min_resamples
    seen = "an unknown number of" if resamples is None else f"{resamples:,.0f}"
    detail = f"they rest on {seen} resamples, expected at least {bound:,}"
    parts.append((resamples is not None and resamples >= bound, resamples, bound, detail))
    sliced = evidence.metrics.get("slices", {})
    if evidence.rival is not None and policy.slices and "rows" in sliced:  # where they are missing, `slices` says so
        least, bound = number(sliced.get("min_queries")), policy.max_slice_queries
        seen = "an unknown number of queries" if least is None else f"{least:g} queries"
        detail = f"slices are compared from {seen} on, expected at most {bound}"
        parts.append((least is not None and least <= bound, least, bound, detail))
    yield from _joint("protocol", parts)


def near_duplicates(policy: Gate, evidence: Evidence) -> Found:
    """Few test queries are near duplicates of queries that teacher and student learned from."""
    share, bound = number(evidence.protocol.get("near_duplicates")), policy.max_near_duplicates
    rule = f"at most {100 * bound:g} % may" if bound < 1 else "no limit is set"
    if share is None:
        detail = f"how many test queries have a near duplicate among the train queries is not known; {rule}"
        yield Check("near_duplicates", bound == 1, None, bound, detail)
        return
    detail = f"{100 * share:.3g} % of the test queries have a near duplicate among the train queries; {rule}"
    yield Check("near_duplicates", share <= bound, share, bound, detail)


# How well the student ranks ---------------------------------------------------------------------------------------


def minimum(policy: Gate, evidence: Evidence) -> Found:
    """Single metrics reach their minimum."""
    for metric, bound in policy.min_metrics.model_dump().items():
        if not bound:
            continue
        name, label, value = f"minimum_{metric}", metric_label(metric), evidence.value("student", metric)
        if value is None:
            detail = f"the evaluation has no {label} of the student, so this cannot pass"
            yield Check(name, False, None, bound, detail)
            continue
        detail = f"student {label} is {format_plain(value, _places(value, bound))}; it must be at least {bound:g}"
        yield Check(name, value >= bound, value, bound, detail)


def above_chance(policy: Gate, evidence: Evidence) -> Found:
    """Where nothing but minimums is asked of the student's relevance, whether random order fails one of them."""
    if policy.lift_over_bm25 > -1 or policy.lift_over_random > -1 or policy.teacher_margin < 1:
        return
    asked = {metric: bound for metric, bound in policy.min_metrics.model_dump().items() if bound}
    random = {metric: evidence.value("random", metric) for metric in asked}
    known = {metric: asked[metric] - value for metric, value in random.items() if value is not None}
    if not known:
        detail = "what random ordering reaches of the measures with a minimum is not known, so this cannot pass"
        yield Check("above_chance", False, None, 0, detail)
        return
    metric = max(known, key=lambda name: known[name])
    seen, bound = random[metric] or 0.0, asked[metric]
    detail = (
        f"random ordering has {metric_label(metric)} {format_plain(seen, _places(seen, bound))}, and the minimum is "
        f"{bound:g}; one minimum at least must be above what random ordering reaches, or lift_over_bm25, "
        "lift_over_random or teacher_margin set"
    )
    yield Check("above_chance", known[metric] > 0, known[metric], 0, detail)


def lift_over_bm25(policy: Gate, evidence: Evidence) -> Found:
    """Better than BM25."""
    if policy.lift_over_bm25 > -1:
        yield _difference(policy, evidence, "lift_over_bm25", "bm25", policy.lift_over_bm25, strictly=True)


def lift_over_random(policy: Gate, evidence: Evidence) -> Found:
    """Better than random order, which scores high on short lists."""
    if policy.lift_over_random > -1:
        yield _difference(policy, evidence, "lift_over_random", "random", policy.lift_over_random, strictly=True)


def teacher_margin(policy: Gate, evidence: Evidence) -> Found:
    """Not far behind its teacher."""
    if policy.teacher_margin < 1:
        yield _difference(policy, evidence, "teacher_margin", "teacher", -policy.teacher_margin, strictly=False)


def against_champion(policy: Gate, evidence: Evidence) -> Found:
    """Not inferior, or superior, to the champion that it would replace."""
    if evidence.rival is None:
        return
    if policy.champion == "superior":
        bound = policy.lift_over_champion
        yield _difference(policy, evidence, "superior_to_champion", "champion", bound, strictly=True)
    else:
        bound = -policy.champion_margin
        yield _difference(policy, evidence, "not_inferior_to_champion", "champion", bound, strictly=False)


def against_anchor(policy: Gate, evidence: Evidence) -> Found:
    """Not worse than the fixed version: small losses, each within the champion's margin, would add up."""
    if evidence.anchor is not None and policy.anchor_margin < 1:
        name, bound = "not_inferior_to_anchor", -policy.anchor_margin
        yield _difference(policy, evidence, name, "anchor", bound, strictly=False)


def slices(policy: Gate, evidence: Evidence) -> Found:
    """No slice is significantly worse than the champion's; the tests form a family, so Holm's correction applies."""
    if evidence.rival is None or not policy.slices:
        return
    metric = policy.metric if policy.metric in SLICED else SLICED[0]
    label, found = metric_label(metric), evidence.metrics.get("slices", {})
    rows = found.get("rows")
    compared = [
        (row, comparison)
        for row in rows or []
        for comparison in row.get("comparisons", [])
        if comparison["baseline"] == "champion" and comparison["metric"] == metric
    ]
    known = all(number(one.get(key)) is not None for _, one in compared for key in ("delta", "p_holm"))
    if rows is None or len(compared) < len(rows) or not known or evidence.confidence is None:
        detail = f"the evaluation does not compare every slice with the champion by {label}, so this cannot pass"
        yield Check("slices", False, None, 0, detail)
        return
    names = {name for row, _ in compared for name in (row["column"], f"{row['column']}={row['value']}")}
    missing = [name for name in policy.required_slices if name not in names]
    if missing:
        detail = f"{_untested(missing[0], found)}, but gate.required_slices asks for it, so this cannot pass"
        yield Check("slices", False, None, 0, detail)
        return
    if not compared:
        thin = found.get("left_out")
        detail = f"none of the slices has the {found.get('min_queries')} queries that it takes to test it"
        yield Check("slices", bool(thin), None, 0, detail if thin else "the evaluation has no slices (evaluate.slices)")
        return
    alpha = 1 - evidence.confidence
    worse = sorted(
        ((row, one) for row, one in compared if one["delta"] < 0 and one["p_holm"] < alpha),
        key=lambda pair: pair[1]["delta"],
    )
    thin = found.get("left_out")
    untested = f"; slices of fewer than {found.get('min_queries')} queries are not tested" if thin else ""
    among = f"{len(compared)} slices by {label} (Holm, {100 * alpha:.3g} %)"
    if worse:
        named = ", ".join(
            f"{row['column']} {row['value']} by {format_plain(-one['delta'], 3)} on {row['queries']} queries"
            for row, one in worse[:SHOWN]
        )
        more = f" and {len(worse) - SHOWN} more" if len(worse) > SHOWN else ""
        detail = f"significantly worse than the champion on {len(worse)} of {among}: {named}{more}; none may be"
    else:
        detail = f"significantly worse than the champion on none of {among}"
    yield Check("slices", not worse, len(worse), 0, detail + untested)


def _untested(name: str, found: Mapping[str, Any]) -> str:
    """Return why a slice, or a whole column of slices, was not compared."""
    column, _, value = name.partition("=")
    sizes = [
        row["queries"] for row in found.get("left_out", []) if row["column"] == column and value in ("", row["value"])
    ]
    if not sizes or not value:
        return f"no slice {name} of at least {found.get('min_queries')} test queries was compared with the champion"
    return (
        f"the slice {name} has {max(sizes)} test queries, fewer than the {found.get('min_queries')} that are compared"
    )


def _difference(policy: Gate, evidence: Evidence, name: str, baseline: str, bound: float, *, strictly: bool) -> Check:
    """Whether the lower end of the interval of student minus baseline is above the bound, or not below it."""
    bound += 0.0  # no negative zero
    metric, theirs = metric_label(policy.metric), BASELINES[baseline]
    row = evidence.comparisons(policy.metric).get(baseline, {})
    delta, low, high = (number(row.get(key)) for key in ("delta", "ci_low", "ci_high"))
    if delta is None or low is None or high is None:
        detail = f"the evaluation does not compare the student with {theirs} by {metric}, so this cannot pass"
        return Check(name, False, None, bound, detail)
    passed = low > bound if strictly else low >= bound
    places = _places(low, bound)
    seen, other = (_value_text(evidence.value(system, policy.metric)) for system in ("student", baseline))
    verb = "beats" if delta > 0 else "trails" if delta < 0 else "equals"
    by = f" by {format_plain(delta, 3)}" if delta > 0 else f" by {format_plain(-delta, 3)}" if delta < 0 else ""
    rule, failing = ("must exceed", "but does not") if strictly else ("must not be below", "but is")
    queries = f" on {row['queries']} queries" if "queries" in row else ""
    interval = "interval" if evidence.confidence is None else f"{100 * evidence.confidence:g} % CI"
    detail = (
        f"student {metric}{seen} {verb} {theirs}{other}{by}, {interval} "
        f"{format_plain_interval(low, high, places)}{queries}; "
        f"the lower end {rule} {bound:g}{'' if passed else f', {failing}'}"
    )
    return Check(name, passed, low, bound, detail)


# Whether it can be served -----------------------------------------------------------------------------------------


def calibration(policy: Gate, evidence: Evidence) -> Found:
    """Its probabilities are calibrated."""
    value, bound = evidence.value("student", "ece"), policy.max_ece
    rule = f"it may be {bound:g} at most" if bound < 1 else "no limit is set"
    if value is None:
        detail = f"the evaluation has no calibration error (ECE) of the student; {rule}"
        yield Check("calibration", bound == 1, None, bound, detail)
        return
    detail = f"student calibration error (ECE) is {format_plain(value, _places(value, bound))}; {rule}"
    yield Check("calibration", value <= bound, value, bound, detail)


def score_collapse(policy: Gate, evidence: Evidence) -> Found:
    """Its scores distinguish products."""
    found = (evidence.metrics.get("distribution") or {}).get("student") or {}
    spread, distinct = number(found.get("within_query")), number(found.get("distinct"))
    parts: list[Part] = []
    if bound := policy.min_score_spread:
        seen = "is not known" if spread is None else f"is {spread:.3g}"
        detail = f"the standard deviation of the student's scores within a query {seen}, expected at least {bound:g}"
        parts.append((spread is not None and spread >= bound, spread, bound, detail))
    if bound := policy.min_distinct_scores:
        seen = "is not known" if distinct is None else f"is {100 * distinct:.3g} %"
        detail = f"the share of distinct scores {seen}, expected at least {100 * bound:g} %"
        parts.append((distinct is not None and distinct >= bound, distinct, bound, detail))
    yield from _joint("score_collapse", parts)


def onnx_parity(policy: Gate, evidence: Evidence) -> Found:
    """Its ONNX files rank as the student in torch does."""
    if evidence.parity is None:
        return
    losses = {name: number(found.get("ndcg_loss")) for name, found in evidence.parity.get("files", {}).items()}
    bound = policy.max_onnx_loss
    rule = f"at most {bound:g} may be lost" if bound < 1 else "no limit is set"
    unknown = [name for name, loss in losses.items() if loss is None]
    if unknown or not losses:
        detail = f"how far {unknown[0] if unknown else 'any ONNX file'} is from torch is not known; {rule}"
        yield Check("onnx_parity", bound == 1, None, bound, detail)
        return
    worst = max(losses, key=lambda name: losses[name] or 0.0)
    loss = losses[worst] or 0.0
    lost = f"{format_plain(loss)} of dev nDCG@10"
    detail = f"{worst} loses {lost} to torch, the most of {len(losses)} ONNX files; {rule}"
    yield Check("onnx_parity", loss <= bound, loss, bound, detail)


def latency(policy: Gate, evidence: Evidence) -> Found:
    """About as fast as the champion, timed alternately on the same requests."""
    timed = evidence.metrics.get("latency") or {}
    times = {
        system: {key: number((timed.get(system) or {}).get(f"{key}_ms")) for key in ("p50", "p95")}
        for system in ("student", "champion")
    }
    parts: list[Part] = []
    if (bound := policy.max_latency_ratio) and evidence.rival is not None:
        for key in ("p50", "p95"):
            ours, theirs = times["student"][key], times["champion"][key]
            if ours is None or not theirs:
                parts.append((False, None, bound, f"{key} of student and champion was not timed in this run"))
                continue
            ratio = ours / theirs
            detail = f"{key} of a request is {ours:.1f} ms, {ratio:.2f} times the champion's {theirs:.1f} ms"
            parts.append((ratio <= bound, ratio, bound, f"{detail}; at most {bound:g} times"))
    if bound := policy.max_p95_ms:
        ours = times["student"]["p95"]
        seen = "was not timed" if ours is None else f"is {ours:.1f} ms"
        parts.append((ours is not None and ours <= bound, ours, bound, f"p95 {seen}, at most {bound:g} ms"))
    yield from _joint("latency", parts)


def new(policy: Gate, evidence: Evidence) -> Found:
    """Differs from the champion and from students that were rolled back."""
    ours, champion, back = evidence.candidate["id"], evidence.champion, evidence.candidate.get("rolled_back")
    if back:
        why = f": {back['reason']}" if back["reason"] else ""
        detail = (
            f"candidate {ours} was the champion and {back['by']} rolled it back on {back['since'][:10]}{why}; "
            f"`distilrank registry promote {ours} --reason ...` is the way to put it back"
        )
        yield Check("new", False, ours, None, detail)
        return
    if champion is None:
        yield Check("new", True, ours, None, f"there is no champion yet, so candidate {ours} is new")
        return
    if ours == champion["id"]:
        by = f" (promoted by the run {champion['run']})" if champion.get("run") else ""
        detail = f"candidate {ours} is the champion itself, byte for byte{by}, so there is nothing to promote"
    else:
        detail = f"candidate {ours} differs from the champion, {champion['id']}"
    yield Check("new", ours != champion["id"], ours, champion["id"], detail)


# Whether it learned from today's traffic --------------------------------------------------------------------------


def drift(policy: Gate, evidence: Evidence) -> Found:
    """Few columns have drifted."""
    found, bound = evidence.drift.get("candidate") or {}, policy.max_drift_share
    share = number(found.get("share")) if found.get("comparable", True) else None
    rule = f"at most {100 * bound:g} % may" if bound < 1 else "no limit is set"
    if share is None:
        detail = f"how far the newest traffic has drifted from the training window is not known; {rule}"
        yield Check("drift", bound == 1, None, bound, detail)
        return
    names = [column["name"] for column in found.get("columns", []) if column["drifted"]]
    which = f" ({', '.join(names)})" if names else ""
    detail = f"{100 * share:.3g} % of the columns{which} have drifted from training window to newest traffic; {rule}"
    yield Check("drift", share <= bound, share, bound, detail)


def embedding_drift(policy: Gate, evidence: Evidence) -> Found:
    """A classifier of embeddings hardly separates the newest traffic from the training window."""
    part, bound = evidence.drift.get("candidate") or {}, policy.max_embedding_auc
    found = part.get("embedding") or {}
    auc, low, high = (number(found.get(key)) for key in ("auc", "ci_low", "ci_high"))
    rule = f"the lower end may be {bound:g} at most" if bound < 1 else "no limit is set"
    if auc is None or low is None or high is None:
        why = f" ({part['note'].rstrip('.')})" if part.get("note") else ""
        detail = f"how far the newest traffic's embeddings are from the training window's is not known{why}; {rule}"
        yield Check("embedding_drift", bound == 1, None, bound, detail)
        return
    detail = (
        "a classifier tells newest traffic from training window by embeddings with a ROC-AUC of "
        f"{format_plain(auc, 3)}, interval {format_plain_interval(low, high, _places(low, bound))}; {rule}"
    )
    yield Check("embedding_drift", low <= bound, low, bound, detail)


def freshness(policy: Gate, evidence: Evidence) -> Found:
    """The newest traffic is recent."""
    bound = policy.max_traffic_age_days
    if not bound:
        return
    rule = f"at most {bound:g} are allowed"
    if not evidence.newest_end:
        detail = f"the log has no times, so it is not known how many days old the newest traffic is; {rule}"
        yield Check("freshness", False, None, bound, detail)
        return
    end = datetime.fromisoformat(evidence.newest_end)
    end = end if end.tzinfo else end.replace(tzinfo=UTC)
    days = max((evidence.now - end).total_seconds(), 0) / 86_400
    detail = f"the newest traffic ends {end.astimezone(UTC):%Y-%m-%d}, {days:.1f} days before this decision; {rule}"
    yield Check("freshness", days <= bound, round(days, 3), bound, detail)


RULES: tuple[Callable[[Gate, Evidence], Found], ...] = (
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


# Words ------------------------------------------------------------------------------------------------------------


def _joint(name: str, parts: list[Part]) -> Found:
    """One check of several conditions, with value and bound of an unknown one, else one that fails, else the first."""
    if parts:
        failed = [part for part in parts if not part[0]]
        unknown = [part for part in failed if part[1] is None]  # which no override excuses
        passed, value, bound, _ = [*unknown, *failed, *parts][0]
        yield Check(name, passed, value, bound, "; ".join(part[-1] for part in parts))


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None: what is not a number never passes a check."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _value_text(value: float | None) -> str:
    """The value after a space; empty where it is not known."""
    return "" if value is None else f" {format_plain(value, 3)}"


def _places(value: float, bound: float) -> int:
    """Decimals, at least 3, that show on which side of the bound the value is."""
    return next((places for places in range(3, 9) if value == bound or round(value, places) != round(bound, places)), 9)
