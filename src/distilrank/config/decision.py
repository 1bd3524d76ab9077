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
    """Marks a setting that promotions depend on, and says in which direction it is stricter."""

    upward: bool
    off: float | None = None
    """Value that switches the setting off, which is its loosest value."""

    def is_looser(self, value: Any, default: Any) -> bool:
        """Whether `value` is less strict than `default`; a tuple is, if it lacks one of the default's items."""
        if isinstance(default, tuple):
            return not set(default) <= set(value)
        return self._rank(value) < self._rank(default)

    def _rank(self, value: float) -> float:
        return -math.inf if value == self.off else value if self.upward else -value


FLOOR, CEILING, CEILING_OR_OFF = Strictness(upward=True), Strictness(upward=False), Strictness(upward=False, off=0)


class Evaluate(Section):
    """Evaluation protocol."""

    bootstrap: Annotated[int, Field(ge=100), FLOOR] = Field(
        2000, description="Bootstrap resamples of queries for per-query metrics; at least `gate.min_resamples`."
    )
    cluster_bootstrap: Annotated[int, Field(ge=50), FLOOR] = Field(
        200, description="Bootstrap resamples of queries for ROC-AUC, PR-AUC and other metrics over all pairs."
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1), FLOOR] = Field(
        0.95, description="Confidence level of the intervals, from `gate.min_confidence` to 0.99."
    )
    interval: Literal["percentile", "bca"] = Field(
        "percentile",
        description="Bootstrap interval of per-query metrics; bca (bias-corrected and accelerated) suits few "
        "queries or skewed differences.",
    )
    slices: Annotated[tuple[str, ...], FLOOR] = Field(
        ("stratum", "query_words", "product_type"),
        description="Columns that test queries are sliced by: query_words, query_characters, script, or a column "
        "of the judged rows such as locale, by its most frequent value among the query's relevant "
        "products.",
    )
    slice_queries: Annotated[int, Field(ge=2), CEILING] = Field(
        20,
        description="Fewest ranked queries of a slice; smaller slices are listed but not compared. At most "
        "`gate.max_slice_queries`.",
    )
    bins: Annotated[int, Field(ge=2), FLOOR] = Field(
        10, description="Equal-width bins of ECE and the reliability diagram."
    )
    seed: Count = Field(23, description="Seed of the resampling and of the random baseline.")
    latency_pairs: Annotated[Positive, FLOOR] = Field(256, description="Pairs used to time the student's scoring.")

    @model_validator(mode="after")
    def _check_slices(self) -> Self:
        repeated = [name for index, name in enumerate(self.slices) if name in self.slices[:index]]
        if repeated:
            raise ValueError(f"slices: {repeated[0]!r} is named more than once, expected each column once")
        return self


class Drift(Section):
    """Drift limits per column, and which columns raise the alarm (docs/drift.md explains the defaults)."""

    numeric: Annotated[float, Field(gt=0), CEILING] = Field(
        0.15, description="Normalized Wasserstein distance from which a numeric column has drifted."
    )
    categorical: Annotated[float, Field(gt=0), CEILING] = Field(
        0.15, description="Jensen-Shannon distance from which a categorical column has drifted."
    )
    score: Annotated[float, Field(gt=0), CEILING] = Field(
        0.15, description="Normalized Wasserstein distance from which the student's scores have drifted."
    )
    chance: Annotated[float, Field(gt=0, le=1), FLOOR] = Field(
        0.05,
        description="Significance level: exchanging whole queries between the two samples must reach the "
        "distance, in any column, less often than this. 1: no test.",
    )
    embedding: Annotated[float, Field(ge=0.5, le=1)] = Field(
        0.55,
        description="ROC-AUC of a classifier of the two windows on embeddings of query and title from which the "
        "embeddings have drifted, compared with the lower end of its interval; 0.5 is chance.",
    )
    embedding_rows: Count = Field(1000, description="Rows of each sample to embed; 0: none.")
    encoder: str = Field(
        "student",
        min_length=1,
        description="Encoder of the embeddings: student (the BERT encoder of the model under test) or a model "
        "reference.",
    )
    alarm: tuple[Literal["query", "product", "clicks", "score", "embedding"], ...] = Field(
        ("query", "product", "score", "embedding"),
        description="Column groups in which one drifted column means that the traffic as a whole has drifted.",
    )
    share: Share = Field(
        0.5, description="Share of drifted columns, over all groups, above which the traffic as a whole has drifted."
    )
    page_rows: Positive = Field(
        20_000, description="Most rows of each sample on Evidently's pages; the statistics use all rows."
    )
    workspace: str = Field(
        "",
        description="Evidently workspace that collects the snapshot of every run: a local folder, or the http(s) "
        "URL of an Evidently service with its secret in EVIDENTLY_SECRET; empty: none.",
    )


CHANCE = {"pair_accuracy": 0.5, "roc_auc": 0.5}
"""Value of random order for metrics where it does not depend on the test set."""
LEAST_MINIMUM = 0.01
"""Smallest useful minimum of any other metric; below it no student could fail."""


class MinMetrics(Section):
    """Lowest values of the student's metrics on the test queries; 0: none."""

    ndcg_at_5: Share = Field(0.0, description="nDCG@5.")
    ndcg_at_10: Share = Field(0.0, description="nDCG@10.")
    mrr: Share = Field(0.0, description="Mean reciprocal rank of the first relevant product.")
    pair_accuracy: Share = Field(0.0, description="Share of a query's product pairs in the right order.")
    roc_auc: Share = Field(0.0, description="Area under the ROC curve, over all pairs.")
    pr_auc: Share = Field(0.0, description="Average precision, over all pairs.")
    recall_at_precision_95: Share = Field(0.0, description="Recall at 95 % precision.")

    @model_validator(mode="after")
    def _check_reachable(self) -> MinMetrics:
        for name in MinMetrics.model_fields:
            value, lowest = getattr(self, name), CHANCE.get(name, LEAST_MINIMUM)
            if 0 < value < lowest:
                why = "which random order reaches" if name in CHANCE else "which any student reaches"
                raise ValueError(f"{name} is {value:g}, {why}; expected 0 (none) or at least {lowest:g}")
        return self


OVERRIDE_DAYS = 90
"""Most days ahead that an override may last; after a season somebody has to take responsibility again."""


class Override(Section):
    """Promotes despite failed checks, on one person's responsibility; set all three keys or none."""

    by: Words = Field("", description="Person who takes responsibility; empty: no override.")
    reason: Words = Field("", description="Reason for the override, in a sentence.")
    until: Day = Field(
        "",
        description=f"Last day of the override (UTC), such as 2026-03-31; at most {OVERRIDE_DAYS} days ahead.",
    )

    @model_validator(mode="after")
    def _check_complete(self) -> Override:
        min_lengths = {"by": 2, "reason": 15}
        values = {name: getattr(self, name) for name in Override.model_fields}
        if not any(values.values()):
            return self
        for name, value in values.items():
            if not value:
                raise ValueError(f"{name} is missing, expected by, reason and until")
        for name, length in min_lengths.items():
            if len(values[name]) < length:
                raise ValueError(f"{name} is {values[name]!r}, expected at least {length} characters")
        try:
            date.fromisoformat(self.until)
        except ValueError:
            raise ValueError(f"until is {self.until!r}, expected a day such as 2026-03-31") from None
        return self

    @property
    def last_day(self) -> date | None:
        """Last day of the override; None if there is no override."""
        return date.fromisoformat(self.until) if self.until else None


MAX_CONFIDENCE = 0.99
"""Highest confidence level of a decision; at a higher one, hardly any slice could be found significantly worse."""


class Gate(Section):
    """Promotion policy. It may be a file of its own: `gate: strict.yaml`."""

    metric: Literal["ndcg_at_5", "ndcg_at_10", "mrr", "pair_accuracy"] = Field(
        "ndcg_at_10", description="Metric by which systems are compared."
    )
    min_queries: Annotated[int, Field(ge=3), FLOOR] = Field(
        30, description="Fewest test queries for a decision; one or two queries have no interval."
    )
    min_judgements: Annotated[Count, FLOOR] = Field(
        100, description="Fewest judged pairs over train, dev and test; 0: any."
    )
    min_confidence: Annotated[float, Field(ge=0.9, le=MAX_CONFIDENCE), FLOOR] = Field(
        0.9, description="Lowest confidence level of the evaluation's intervals."
    )
    min_resamples: Annotated[int, Field(ge=100), FLOOR] = Field(
        1000,
        description="Fewest bootstrap resamples; with few, the intervals depend on `evaluate.seed`.",
    )
    max_near_duplicates: Annotated[Share, CEILING] = Field(
        0.1,
        description="Largest share of test queries with a near duplicate among the train queries (other word "
        "order, number or spacing); 1: any.",
    )
    min_metrics: MinMetrics = Field(MinMetrics(), description="Lowest values of the student's metrics.")
    lift_over_bm25: Annotated[Lift, FLOOR] = Field(
        0.0, description="Bound that the lower end of the interval of student minus BM25 must exceed; -1: any."
    )
    lift_over_random: Annotated[Lift, FLOOR] = Field(
        0.0, description="Bound that the lower end of the interval of student minus random order must exceed; -1: any."
    )
    teacher_margin: Annotated[Share, CEILING] = Field(
        0.1,
        description="Largest loss against the teacher, at the lower end of the interval of student minus teacher;"
        " 1: any.",
    )
    champion: Literal["not_inferior", "superior"] = Field(
        "not_inferior",
        description="Test against the champion, which is scored again on the same queries: non-inferiority or "
        "superiority.",
    )
    champion_margin: Annotated[Share, CEILING] = Field(
        0.005,
        description="not_inferior: largest loss against the champion, at the lower end of the interval of student"
        " minus champion.",
    )
    lift_over_champion: Annotated[Share, FLOOR] = Field(
        0.0, description="superior: bound that the lower end of the interval of student minus champion must exceed."
    )
    anchor_margin: Annotated[Share, CEILING] = Field(
        0.01,
        description="Largest loss against the anchor (the first champion, or a named version) at the lower end of"
        " the interval, so that small losses cannot add up; 1: any.",
    )
    slices: Annotated[bool, FLOOR] = Field(
        True, description="Refuse a student that is significantly worse than the champion on a slice (Holm-corrected)."
    )
    required_slices: tuple[Annotated[str, Field(pattern=r"^[a-z_]+(=.+)?$")], ...] = Field(
        (),
        description="Slices that must have been compared with the champion: `stratum=tail` for one value, "
        "`stratum` for at least one value of the column. A missing or too small slice refuses the "
        "student.",
    )
    max_slice_queries: Annotated[int, Field(ge=2), CEILING] = Field(
        50,
        description="Largest `evaluate.slice_queries`; a higher value leaves fewer slices to test.",
    )
    max_ece: Annotated[Share, CEILING] = Field(
        0.2, description="Largest expected calibration error of the student; 1: any."
    )
    min_score_spread: Annotated[float, Field(ge=0), FLOOR] = Field(
        0.01, description="Smallest average standard deviation of the student's scores within a query; 0: any."
    )
    min_distinct_scores: Annotated[Share, FLOOR] = Field(
        0.1, description="Smallest share of distinct scores among the test pairs; 0: any."
    )
    max_onnx_loss: Annotated[Share, CEILING] = Field(
        0.002, description="Largest loss of dev nDCG@10 of an exported ONNX file against torch; 1: any."
    )
    max_latency_ratio: Annotated[float, Field(ge=0), CEILING_OR_OFF] = Field(
        2.0,
        description="Largest ratio of the student's p50 and p95 latency to the champion's, timed in alternation; "
        "0: any.",
    )
    max_p95_ms: Annotated[float, Field(ge=0), CEILING_OR_OFF] = Field(
        0.0, description="Largest p95 latency of a request in milliseconds, on the machine that evaluates; 0: any."
    )
    max_drift_share: Annotated[Share, CEILING] = Field(
        0.25, description="Largest share of drifted columns between the training window and the newest traffic; 1: any."
    )
    max_embedding_auc: Annotated[float, Field(ge=0.5, le=1), CEILING] = Field(
        0.8,
        description="Largest ROC-AUC at which a classifier of the embeddings may separate the newest traffic from"
        " the training window, at the lower end of its interval; 1: any.",
    )
    max_traffic_age_days: Annotated[float, Field(ge=0), CEILING_OR_OFF] = Field(
        0.0, description="Largest age in days of the end of the newest traffic at the time of the decision; 0: any."
    )
    warn_after_test_evaluations: Annotated[Count, CEILING_OR_OFF] = Field(
        9,
        description="Candidates that may be tested on one test set without a warning, including the current one. A"
        " test set that shares a quarter of the queries counts as the same; 0: no warning.",
    )
    max_test_evaluations: Annotated[Count, CEILING_OR_OFF] = Field(
        0, description="Most candidates that one test set may decide on; the next is refused; 0: any number."
    )
    override: Override = Field(Override(), description="Promotion despite failed checks, for a limited time.")

    @model_validator(mode="after")
    def _check_relevance_limits(self) -> Gate:
        # The other limits bound the evidence or the circumstances, or do not hold for the first champion.
        lifts = self.lift_over_bm25 > -1 or self.lift_over_random > -1
        if not (any(self.min_metrics.model_dump().values()) or lifts or self.teacher_margin < 1):
            raise ValueError(
                "nothing is asked of the student's relevance, expected at least one of min_metrics, lift_over_bm25, "
                "lift_over_random, teacher_margin"
            )
        return self

    @model_validator(mode="after")
    def _check_consistency(self) -> Gate:
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
        if 0 < self.max_test_evaluations < self.warn_after_test_evaluations:
            raise ValueError(
                f"warn_after_test_evaluations is {self.warn_after_test_evaluations}, expected at most "
                f"max_test_evaluations ({self.max_test_evaluations})"
            )
        return self


class Monitor(Section):
    """Monitoring of the champion between runs; it needs no judgements."""

    teacher: str = Field(
        "",
        description="Folder of the teacher that the champion was trained from, to compare their scores; empty: no"
        " comparison.",
    )
    pairs: Positive = Field(300, description="Impressions of each window that both teacher and champion score.")
    max_disagreement: Share = Field(
        0.05,
        description="Largest increase of their mean absolute difference in probability since the promotion, at "
        "the lower end of its interval; 1: any.",
    )
    retrain: Literal["never", "on_alarm"] = Field(
        "never", description="Whether an alarm starts `distill` in the same run."
    )
    seed: Count = Field(31, description="Seed of the random draws.")
