from __future__ import annotations

from distilrank.evaluation import metrics
from distilrank.rendering.labels import METRICS, metric_label


def test_within_queries_is_what_the_evaluation_measures_by_query() -> None:
    assert tuple(key for key, metric in METRICS.items() if metric.is_within_queries) == metrics.PER_QUERY


def test_an_unknown_metric_is_shown_by_its_key() -> None:
    assert metric_label("ndcg_at_10") == "nDCG@10" and metric_label("hit_rate") == "hit rate"
