"""Labels of metrics and systems on every page, figure and table, and in messages."""

from __future__ import annotations

from dataclasses import dataclass

from distilrank.rendering.formatting import readable_name


@dataclass(frozen=True)
class Metric:
    """How a metric is presented."""

    label: str
    meaning: str
    """Explanation in one line."""
    is_within_queries: bool
    """True for a mean over queries; False for a metric of all pairs, which compares products across queries."""
    higher_is_better: bool = True


METRICS = {
    "ndcg_at_5": Metric("nDCG@5", "Gain of the first 5 products, relative to the best order", is_within_queries=True),
    "ndcg_at_10": Metric(
        "nDCG@10", "Gain of the first 10 products, relative to the best order", is_within_queries=True
    ),
    "mrr": Metric("MRR", "Mean reciprocal rank of the first relevant product", is_within_queries=True),
    "pair_accuracy": Metric(
        "pair accuracy", "Share of pairs of products that are in the order of their judgements", is_within_queries=True
    ),
    "roc_auc": Metric(
        "ROC-AUC", "Probability that a relevant pair scores above an irrelevant one", is_within_queries=False
    ),
    "pr_auc": Metric("PR-AUC", "Area under the precision-recall curve", is_within_queries=False),
    "recall_at_precision_95": Metric(
        "recall at 95 % precision", "Highest recall of a threshold whose precision is at least 95 %",
        is_within_queries=False,
    ),
    "ece": Metric(
        "ECE", "Expected calibration error: mean gap between probability and judgement", is_within_queries=False,
        higher_is_better=False,
    ),
    "brier": Metric(
        "Brier score", "Mean squared difference between probability and judgement", is_within_queries=False,
        higher_is_better=False,
    ),
}  # fmt: skip
"""Every metric of metrics.json by its key, those within queries first."""

SYSTEMS = {
    "random": "Random",
    "bm25": "BM25",
    "teacher": "Teacher",
    "anchor": "Anchor",
    "champion": "Champion",
    "student": "Student",
}
"""Headings of the systems that a run compares, in table order."""

BASELINES = {
    "random": "random order",
    "bm25": "BM25",
    "teacher": "its teacher",
    "anchor": "the anchor",
    "champion": "the champion",
}
"""Names of the baselines in sentences about the student."""


def metric_label(key: str) -> str:
    """Return the label of a metric; if METRICS lacks it, its key as words."""
    return METRICS[key].label if key in METRICS else readable_name(key)
