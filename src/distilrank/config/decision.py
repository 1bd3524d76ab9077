"""Sections on decisions: evaluation, drift limits, the promotion policy (gate) and monitoring."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from distilrank.config.base import Count, Day, Lift, Positive, Section, Share, Words


@dataclass(frozen=True)
class Strictness:
    """Marks a setting that decides on promotions with the direction in which it is stricter."""

    upward: bool
    off: float | None = None
    """The value that switches it off, the loosest of all."""

    def is_looser(self, value: Any, default: Any) -> bool:
        """Whether `value` asks for less than `default`; of names, whether it lacks one."""
        if isinstance(default, tuple):
            return not set(default) <= set(value)
        return self._rank(value) < self._rank(default)

    def _rank(self, value: float) -> float:
        return -math.inf if value == self.off else value if self.upward else -value


FLOOR, CEILING, CEILING_OR_OFF = Strictness(upward=True), Strictness(upward=False), Strictness(upward=False, off=0)


class Evaluate(Section):
    """The protocol's free choices."""

    bootstrap: Annotated[int, Field(ge=100), FLOOR] = Field(
        2000, description="Resamples of queries for per-query measures; `gate.min_resamples` at least where it decides."
    )
    cluster_bootstrap: Annotated[int, Field(ge=50), FLOOR] = Field(
        200, description="Resamples of queries for AUC-like measures."
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1), FLOOR] = Field(
        0.95, description="Level of the intervals; from `gate.min_confidence` to 0.99 where it decides."
    )
    interval: Literal["percentile", "bca"] = Field(
        "percentile",
        description="Bootstrap interval of per-query measures; bca: bias-corrected and accelerated, for few queries or "
        "skewed differences.",
    )
    slices: Annotated[tuple[str, ...], FLOOR] = Field(
        ("stratum", "query_words", "product_type"),
        description="What test queries are sliced by: query_words, query_characters, script, or a column of the judged "
        "rows (locale, say), of which the most frequent value among the query's relevant products counts.",
    )
    slice_queries: Annotated[int, Field(ge=2), CEILING] = Field(
        20,
        description="Fewest ranked queries of a slice; thinner ones are named and left out. `gate.max_slice_queries` "
        "at most where it decides.",
    )
    bins: Annotated[int, Field(ge=2), FLOOR] = Field(
        10, description="Equal-width bins of ECE and the reliability diagram."
    )
    seed: Count = Field(23, description="Seed of resampling and of the random ordering.")
    latency_pairs: Annotated[Positive, FLOOR] = Field(256, description="Pairs on which the student's scoring is timed.")

    @model_validator(mode="after")
    def _sliced_once(self) -> Self:
        twice = [name for at, name in enumerate(self.slices) if name in self.slices[:at]]
        if twice:
            raise ValueError(f"slices: {twice[0]!r} is named more than once, expected each column once")
        return self


class Drift(Section):
    """When a column counts as drifted, and which of them raise the alarm; docs/drift.md has what this was chosen by."""

    numeric: Annotated[float, Field(gt=0), CEILING] = Field(
        0.15, description="Normalized Wasserstein distance from which it has."
    )
    categorical: Annotated[float, Field(gt=0), CEILING] = Field(
        0.15, description="Jensen-Shannon distance from which it has."
    )
    score: Annotated[float, Field(gt=0), CEILING] = Field(
        0.15, description="Likewise for the student's scores (Wasserstein)."
    )
    chance: Annotated[float, Field(gt=0, le=1), FLOOR] = Field(
        0.05,
        description="Small samples differ by chance alone: a distance must also be one that exchanging whole queries "
        "between the two samples reaches, in any column at all, less often than this; 1: no such bar.",
    )
    embedding: Annotated[float, Field(ge=0.5, le=1)] = Field(
        0.55,
        description="ROC-AUC of a classifier of the window, on embeddings of query and title, that the lower end of "
        "its interval must exceed; 0.5: told apart by chance.",
    )
    embedding_rows: Count = Field(1000, description="Rows of each sample that are embedded; 0: none are.")
    encoder: str = Field(
        "student",
        min_length=1,
        description="What embeds them: student (the BERT encoder of the model in question), or a model reference.",
    )
    alarm: tuple[Literal["query", "product", "clicks", "score", "embedding"], ...] = Field(
        ("query", "product", "score", "embedding"),
        description="Groups of columns of which a single drifted one means that the traffic as a whole has drifted.",
    )
    share: Share = Field(0.5, description="Share of drifted columns, of all groups, above which it has, too.")
    page_rows: Positive = Field(20_000, description="Most rows of each sample on Evidently's pages alone.")
    workspace: str = Field(
        "",
        description="Evidently workspace that keeps every run's snapshot: a local folder or the http(s) address of "
        "Evidently's service, whose secret is in EVIDENTLY_SECRET; empty: none.",
    )


CHANCE = {"pair_accuracy": 0.5, "roc_auc": 0.5}
"""What random order reaches of a measure whatever the data; of the others that depends on the test set."""
LEAST_MINIMUM = 0.01
"""A lower minimum of any other measure could not fail: it is a slip, or there for show."""


class Minima(Section):
    """Lowest values of the student's measures on the test queries; 0: none."""

    ndcg_at_5: Share = Field(0.0, description="nDCG@5.")
    ndcg_at_10: Share = Field(0.0, description="nDCG@10.")
    mrr: Share = Field(0.0, description="Mean reciprocal rank of the first relevant product.")
    pair_accuracy: Share = Field(0.0, description="Share of a query's pairs of products in the right order.")
    roc_auc: Share = Field(0.0, description="Area under the ROC curve, over all pairs.")
    pr_auc: Share = Field(0.0, description="Average precision, over all pairs.")
    recall_at_precision_95: Share = Field(0.0, description="Recall where 95 % of what is taken is relevant.")

    @model_validator(mode="after")
    def _can_fail(self) -> Minima:
        for name in Minima.model_fields:
            value, least = getattr(self, name), CHANCE.get(name, LEAST_MINIMUM)
            if 0 < value < least:
                why = "which random order reaches" if name in CHANCE else "which any student reaches"
                raise ValueError(f"{name} is {value:g}, {why}; expected 0 (none) or at least {least:g}")
        return self


OVERRIDE_DAYS = 90
"""How far ahead the last day of an override may lie: a season, after which somebody has to answer for it again."""


class Override(Section):
    """Promote in spite of failed checks: somebody's word, with a reason and a last day; all three or none."""

    by: Words = Field("", description="Who answers for it; empty: no override.")
    reason: Words = Field("", description="Why, in a sentence.")
    until: Day = Field(
        "",
        description=f"The last day on which it holds, as 2026-03-31 (UTC); {OVERRIDE_DAYS} days ahead at most.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Override:
        least = {"by": 2, "reason": 15}
        given = {name: getattr(self, name) for name in Override.model_fields}
        if not any(given.values()):
            return self
        for name, value in given.items():
            if not value:
                raise ValueError(f"{name} is missing, expected by, reason and until")
        for name, length in least.items():
            if len(given[name]) < length:
                raise ValueError(f"{name} is {given[name]!r}, expected at least {length} characters")
        try:
            date.fromisoformat(self.until)
        except ValueError:
            raise ValueError(f"until is {self.until!r}, expected a day such as 2026-03-31") from None
        return self

    @property
    def last_day(self) -> date | None:
        """The last day on which it holds; None: there is no override."""
        return date.fromisoformat(self.until) if self.until else None


MAX_CONFIDENCE = 0.99
"""Highest level that decides: slices are held to it too, and at a higher one hardly any could be found worse."""


class Gate(Section):
    """What a student must show to be promoted: the policy. It may stand in a file of its own: `gate: strict.yaml`."""

    metric: Literal["ndcg_at_5", "ndcg_at_10", "mrr", "pair_accuracy"] = Field(
        "ndcg_at_10", description="The measure by which systems are compared."
    )
    min_queries: Annotated[int, Field(ge=3), FLOOR] = Field(
        30, description="Fewest test queries that a decision may rest on; of one or two, no interval can be had."
    )
    min_judgements: Annotated[Count, FLOOR] = Field(
        100, description="Fewest judged pairs in all: train, dev and test; 0: any."
    )
    min_confidence: Annotated[float, Field(ge=0.9, le=MAX_CONFIDENCE), FLOOR] = Field(
        0.9, description="Lowest level of the intervals by which the evaluation may have compared."
    )
    min_resamples: Annotated[int, Field(ge=100), FLOOR] = Field(
        1000,
        description="Fewest resamples behind these intervals: with few, another `evaluate.seed` moves the ends.",
    )
    max_near_duplicates: Annotated[Share, CEILING] = Field(
        0.1,
        description="Largest share of test queries that have a near duplicate (other order, number or spacing) among "
        "the train queries; 1: any.",
    )
    minima: Minima = Field(Minima(), description="Lowest values of its measures.")
    lift_over_bm25: Annotated[Lift, FLOOR] = Field(
        0.0, description="The lower end of the interval of student minus BM25 must exceed this; -1: any."
    )
    lift_over_random: Annotated[Lift, FLOOR] = Field(0.0, description="Likewise for student minus random; -1: any.")
    teacher_margin: Annotated[Share, CEILING] = Field(
        0.1, description="Student minus teacher may be this much below 0 at the lower end; 1: any."
    )
    champion: Literal["not_inferior", "superior"] = Field(
        "not_inferior", description="What the student must be to the champion, which is scored again beside it."
    )
    champion_margin: Annotated[Share, CEILING] = Field(
        0.005, description="not_inferior: student minus champion may be this much below 0 at the lower end."
    )
    lift_over_champion: Annotated[Share, FLOOR] = Field(
        0.0, description="superior: the lower end of student minus champion must exceed this."
    )
    anchor_margin: Annotated[Share, CEILING] = Field(
        0.01,
        description="Student minus anchor, the first champion or the one named, may be this much below 0 at the lower "
        "end, so that small losses do not add up; 1: any.",
    )
    slices: Annotated[bool, FLOOR] = Field(
        True, description="Refuse a student that is significantly worse than the champion on a slice (Holm)."
    )
    required_slices: tuple[Annotated[str, Field(pattern=r"^[a-z_]+(=.+)?$")], ...] = Field(
        (),
        description="Slices that must have been compared with the champion, as `stratum=tail`, or `stratum` for at "
        "least one of that column: one that is missing or too small refuses the student.",
    )
    max_slice_queries: Annotated[int, Field(ge=2), CEILING] = Field(
        50,
        description="Largest `evaluate.slice_queries`: the higher it is, the fewer slices are large enough for a test.",
    )
    max_ece: Annotated[Share, CEILING] = Field(0.2, description="Largest calibration error of the student; 1: any.")
    min_score_spread: Annotated[float, Field(ge=0), FLOOR] = Field(
        0.01, description="Least standard deviation of the student's scores within a query, on average; 0: any."
    )
    min_distinct_scores: Annotated[Share, FLOOR] = Field(
        0.1, description="Least share of distinct scores among those of the test pairs; 0: any."
    )
    max_onnx_loss: Annotated[Share, CEILING] = Field(
        0.002, description="Largest loss of dev nDCG@10 of an exported ONNX file against torch; 1: any."
    )
    max_latency_ratio: Annotated[float, Field(ge=0), CEILING_OR_OFF] = Field(
        2.0, description="How many times the champion's p50 and p95 the student's may be, timed in turn; 0: any."
    )
    max_p95_ms: Annotated[float, Field(ge=0), CEILING_OR_OFF] = Field(
        0.0, description="Longest p95 of a request, in milliseconds of the machine that evaluates; 0: any."
    )
    max_drift_share: Annotated[Share, CEILING] = Field(
        0.25, description="Largest share of drifted columns between training window and newest traffic; 1: any."
    )
    max_embedding_auc: Annotated[float, Field(ge=0.5, le=1), CEILING] = Field(
        0.8,
        description="How well a classifier may tell the newest traffic from the training window by its embeddings "
        "(lower end of the interval of its ROC-AUC); 1: any.",
    )
    max_traffic_age_days: Annotated[float, Field(ge=0), CEILING_OR_OFF] = Field(
        0.0, description="Oldest that the end of the newest traffic may be when the gate decides; 0: any."
    )
    warn_from_looks: Annotated[Count, CEILING_OR_OFF] = Field(
        10,
        description="Warn from this many candidates that were judged by this test set, or by one that a quarter of its "
        "queries are in too, this one included; 0: never.",
    )
    refuse_from_looks: Annotated[Count, CEILING_OR_OFF] = Field(
        0, description="Refuse a student from this many on; 0: never."
    )
    override: Override = Field(Override(), description="Promote in spite of failed checks, until a day.")

    @model_validator(mode="after")
    def _some_limit(self) -> Gate:
        # The other limits bound the evidence or the circumstances, or do not hold for the first champion.
        lifts = self.lift_over_bm25 > -1 or self.lift_over_random > -1
        if not (any(self.minima.model_dump().values()) or lifts or self.teacher_margin < 1):
            raise ValueError(
                "nothing is asked of the student's relevance, expected at least one of minima, lift_over_bm25, "
                "lift_over_random, teacher_margin"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Gate:
        if self.champion == "not_inferior" and self.lift_over_champion:
            raise ValueError(
                f"lift_over_champion is {self.lift_over_champion:g} while champion is 'not_inferior', expected "
                "champion: superior, or no lift"
            )
        if self.champion == "not_inferior" and self.anchor_margin < self.champion_margin:
            raise ValueError(
                f"anchor_margin is {self.anchor_margin:g}, expected at least champion_margin "
                f"({self.champion_margin:g}): while the champion is the anchor, that one would never decide"
            )
        if self.required_slices and not self.slices:
            raise ValueError(
                f"required_slices is {', '.join(self.required_slices)} while slices is false, expected slices: true, "
                "or no required slices"
            )
        if 0 < self.refuse_from_looks < self.warn_from_looks:
            raise ValueError(
                f"warn_from_looks is {self.warn_from_looks}, expected at most refuse_from_looks "
                f"({self.refuse_from_looks})"
            )
        return self


class Monitor(Section):
    """How the champion is watched between runs; needs no judgements."""

    teacher: str = Field(
        "", description="Folder of the teacher that the champion learned from, to ask it again; empty: it is not asked."
    )
    pairs: Positive = Field(
        300, description="Impressions of each window that teacher and champion both score, to see how they disagree."
    )
    max_disagreement: Share = Field(
        0.05,
        description="Rise of their mean absolute difference in probability since the promotion, at the lower end of "
        "its interval, from which the champion counts as left behind; 1: any.",
    )
    retrain: Literal["never", "on_alarm"] = Field(
        "never", description="Whether an alarm starts `distill` in the same run."
    )
    seed: Count = Field(31, description="Seed of the draws.")
