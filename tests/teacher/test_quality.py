"""What is said of a teacher is what a reader would work out from the judgements by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from distilrank.core import schemas
from distilrank.evaluation import metrics
from distilrank.modeling import calibration
from distilrank.teacher import quality


def a_dev_split(queries: int = 60, per_query: int = 8, seed: int = 0, **columns: list) -> pa.Table:
    """Judgements of three raters; the frequent queries come first."""
    rng = np.random.default_rng(seed)
    rows = queries * per_query
    number = np.repeat(np.arange(queries), per_query)
    target = rng.choice([0, 1 / 3, 2 / 3, 1], rows)
    values = {
        "query_id": [f"q{query:03d}" for query in number],
        "query": [f"words {query}" for query in number],
        "product_id": [f"p{row % per_query}" for row in range(rows)],
        **{name: [None] * rows for name in schemas.PRODUCT_FIELDS},
        "title": [f"title {row}" for row in range(rows)],
        "target": target,
        "gain": target,
        "raters": [3] * rows,
        "locale": [None] * rows,
        "stratum": [("head", "torso", "tail")[min(query // 5, 2)] for query in number],
        "bm25": 3 * target + rng.normal(size=rows),
        **columns,
    }
    return schemas.conform(pa.table(values), schemas.JUDGED, "dev")


def teacher_logits(dev: pa.Table, noise: float = 1.0, seed: int = 1) -> np.ndarray:
    target = dev["target"].to_numpy()
    return (4 * (target - 0.5) + np.random.default_rng(seed).normal(0, noise, len(target))).astype(np.float32)


def assessed(dev: pa.Table, logits: np.ndarray, method: str = "auto", **options) -> quality.Quality:
    fitted = calibration.fit(method, logits, dev["target"].to_numpy(), dev["query_id"].to_numpy())
    return quality.assess(dev, logits, fitted, relevant_from=0.5, **options)


# The whole ------------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_metrics() -> None:
    dev = a_dev_split()
    logits = teacher_logits(dev)
    figures = assessed(dev, logits, seed=3).figures
    target, queries = dev["target"].to_numpy(), dev["query_id"].to_numpy()
    probabilities = calibration.out_of_fold(figures["calibration"]["method"], logits, target, queries)
    assert figures["calibration"]["reliability"] == metrics.reliability(probabilities, target, 10)
    assert figures["calibration"]["ece"] == metrics.ece(figures["calibration"]["reliability"])
    assert figures["calibration"]["brier"] == pytest.approx(np.mean((probabilities - target) ** 2))
    expected = metrics.mean_ndcg(queries, dev["product_id"].to_numpy(), dev["gain"].to_numpy(), logits)
    whole = figures["agreement"]["all"]
    assert whole["ndcg_at_10"]["teacher"] == pytest.approx(expected)
    assert whole["mean_probability"] == pytest.approx(probabilities.mean())
    assert figures["roc_auc"]["teacher"] == pytest.approx(sklearn.metrics.roc_auc_score(target >= 0.5, logits))
    assert figures["rank_correlation"]["teacher"] > figures["rank_correlation"]["bm25"] > 0.3
    assert abs(figures["rank_correlation"]["random"]) < 0.2
    assert (figures["pairs"], figures["queries"]) == (480, 60)


def test_figures_are_json_and_the_same_every_time(tmp_path: Path) -> None:
    dev = a_dev_split()
    logits = teacher_logits(dev)
    for name in ("one", "two"):
        assessed(dev, logits).write(tmp_path / name)
    files = [
        [(tmp_path / name / file).read_bytes() for file in ("quality.json", "disagreements.csv")]
        for name in ("one", "two")
    ]
    assert files[0] == files[1]
    assert json.loads(files[0][0]) == assessed(dev, logits).figures


@pytest.mark.parametrize("method", ["none", "platt", "isotonic"])
def test_any_calibration_can_be_assessed(method: str) -> None:
    dev = a_dev_split(12)
    logits = teacher_logits(dev)
    figures = assessed(dev, logits, method).figures["calibration"]
    assert figures["method"] == method and 0 <= figures["ece"] <= 1
    if method == "none":
        assert figures["brier"] == pytest.approx(metrics.brier(expit(logits.astype(float)), dev["target"].to_numpy()))


def test_judgements_that_are_all_equal_have_no_metrics() -> None:
    dev = a_dev_split(4, target=[1.0] * 32, gain=[1.0] * 32)
    figures = assessed(dev, teacher_logits(dev)).figures
    assert figures["roc_auc"]["teacher"] is None and figures["rank_correlation"]["teacher"] is None
    assert figures["agreement"]["all"]["ndcg_at_10"]["teacher"] is None
    json.dumps(figures, allow_nan=False)


# Agreement ------------------------------------------------------------------------------------------------------------


def test_agreement_by_stratum_is_that_of_its_queries_alone() -> None:
    dev = a_dev_split()
    logits = teacher_logits(dev)
    agreement = assessed(dev, logits, seed=5).figures["agreement"]
    assert list(agreement) == ["all", "head", "tail", "torso"]
    assert [agreement[name]["queries"] for name in agreement] == [60, 5, 50, 5]
    stratum = dev["stratum"].to_numpy()
    for name in ("head", "torso", "tail"):
        rows = np.flatnonzero(stratum == name)
        alone = dev.take(pa.array(rows))
        expected = metrics.mean_ndcg(
            alone["query_id"].to_numpy(), alone["product_id"].to_numpy(), alone["gain"].to_numpy(), logits[rows]
        )
        assert agreement[name]["ndcg_at_10"]["teacher"] == pytest.approx(expected)
        assert agreement[name]["mean_target"] == pytest.approx(alone["target"].to_numpy().mean())
        assert agreement[name]["pairs"] == len(rows)


def test_queries_whose_products_are_equally_good_are_counted_but_not_ranked() -> None:
    target = np.tile([0.0, 1.0], 40)
    target[:8] = 1 / 3
    dev = a_dev_split(10, target=target, gain=target)
    agreement = assessed(dev, teacher_logits(dev, 0.1)).figures["agreement"]["all"]
    assert (agreement["queries"], agreement["ranked_queries"]) == (10, 9)
    assert agreement["pair_accuracy"]["teacher"] == 1


# Disagreements --------------------------------------------------------------------------------------------------------

FLAT = {"probability": [0.0, 1.0], "error": [0.1, 0.1]}


def test_the_surest_contradictions_come_first() -> None:
    dev = a_dev_split()
    logits = teacher_logits(dev, 0.5)
    target = dev["target"].to_numpy()
    wrong = np.flatnonzero(target == 0)[[3, 30, 60]]
    logits[wrong] = [3, 9, 6]
    rows = assessed(dev, logits, "platt", count=3).disagreements
    assert rows["title"].to_pylist() == [f"title {row}" for row in wrong[[1, 2, 0]]]
    assert rows["gap"].to_numpy().min() > 0.8
    assert np.allclose(rows["gap"].to_numpy(), rows["probability"].to_numpy() - rows["target"].to_numpy(), atol=1e-3)
    assert rows.column_names == ["query", "product_id", "title", "target", "raters", "probability", "gap", "stratum"]


def test_a_gap_weighs_more_where_the_teacher_is_mostly_right() -> None:
    dev = a_dev_split(2, 2, target=[0.0, 0.0, 0.0, 0.0])
    curve = {"probability": [0.4, 0.6], "error": [0.01, 0.25]}
    rows = quality.disagreements(dev, np.array([0.4, 0.6, 0.1, 0.1]), 10, curve)
    assert rows["probability"].to_pylist() == [0.4, 0.6]


def test_no_query_fills_the_list_and_small_gaps_are_none() -> None:
    dev = a_dev_split(3, 8, target=[0.0] * 24)
    probability = np.concatenate([np.linspace(0.99, 0.92, 8), np.full(8, 0.5), np.full(8, 0.3)])
    rows = quality.disagreements(dev, probability, 100, FLAT)
    assert rows["query"].to_pylist() == ["words 0"] * 3 + ["words 1"] * 3
    assert rows["probability"].to_pylist()[:3] == [0.99, 0.98, 0.97]
    assert quality.disagreements(dev, probability, 2, FLAT).num_rows == 2
    assert quality.disagreements(dev, probability, 0, FLAT).num_rows == 0


def test_a_spreadsheet_runs_no_formula_and_garbles_no_script(tmp_path: Path) -> None:
    titles = ['=HYPERLINK("http://x")', "+1 drill", "-5 bit", "@home", "\tcell", "plain, with comma", "größe 北京", ""]
    dev = a_dev_split(8, 1, target=[1.0] * 8, title=titles, query=["=query"] * 8)
    path = tmp_path / "disagreements.csv"
    quality.write_csv(quality.disagreements(dev, np.zeros(8), 8, FLAT), path)
    raw = path.read_bytes()
    assert raw.startswith("\ufeff".encode()) and b"\r" not in raw
    with path.open(encoding="utf-8-sig", newline="") as handle:
        rows = {row["product_id"] + row["title"].removeprefix("'"): row for row in csv.DictReader(handle)}
    assert len(rows) == 8
    for title in titles:
        row = rows[f"p0{title}"]
        assert row["title"] == (f"'{title}" if title in titles[:5] else title)
        assert row["query"] == "'=query"
        assert float(row["gap"]) == -1 and float(row["target"]) == 1


# Confidence -----------------------------------------------------------------------------------------------------------


def noisy_in_the_middle(rows: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and targets whose deviation from them is .05 below .4 and .3 above."""
    rng = np.random.default_rng(seed)
    probability = rng.random(rows)
    return probability, probability + rng.choice([-1, 1], rows) * np.where(probability < 0.4, 0.05, 0.3)


def test_the_curve_is_the_squared_error_at_each_probability() -> None:
    probability, target = noisy_in_the_middle()
    curve = quality.confidence(probability, target)
    low, high = quality.expected_error(curve, np.array([0.15, 0.8]))
    assert low == pytest.approx(0.05**2 + 0.006, abs=0.006) and high == pytest.approx(0.09, abs=0.01)
    weights = quality.weights(curve, np.array([0.1, 0.8]), "probability")
    assert weights[0] > 2 and weights[1] < 0.5 and weights.dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**31), st.sampled_from(["probability", "logit"]))
def test_weights_are_1_on_average_and_within_bounds(rows: int, seed: int, scale: str) -> None:
    rng = np.random.default_rng(seed)
    probability = np.round(rng.beta(0.5, 0.5, rows), rng.integers(1, 6))
    curve = quality.confidence(probability, rng.choice([0, 0.5, 1], rows))
    weights = quality.weights(curve, probability, scale)
    assert weights.mean() == pytest.approx(1, abs=1e-4)
    assert weights.min() >= 1 / 3 - 1e-6 and weights.max() <= 3 + 1e-6
    assert np.all(np.diff(curve["probability"]) > 0) and min(curve["error"]) > 0
    json.dumps(curve, allow_nan=False)


def test_few_judgements_weigh_all_labels_alike() -> None:
    probability, target = noisy_in_the_middle(60)
    weights = quality.weights(quality.confidence(probability, target), np.linspace(0, 1, 11), "probability")
    assert weights == pytest.approx(np.ones(11))


def test_small_bins_lean_on_the_mean() -> None:
    spreads = [np.ptp(quality.confidence(*noisy_in_the_middle(rows))["error"]) for rows in (500, 4000)]
    assert 0 < spreads[0] < spreads[1]


def test_a_teacher_that_is_never_wrong_weighs_all_labels_alike() -> None:
    probability = np.linspace(0.1, 0.9, 400)
    curve = quality.confidence(probability, probability)
    assert quality.weights(curve, probability, "probability") == pytest.approx(np.ones(400))


def test_on_the_scale_of_logits_the_ends_are_uncertain() -> None:
    probability = np.random.default_rng(0).random(4000)
    target = (np.random.default_rng(1).random(4000) < probability).astype(float)  # error p (1 - p)
    curve = quality.confidence(probability, target)
    middle_and_end = np.array([0.5, 0.95])
    by_probability = quality.weights(curve, middle_and_end, "probability")
    by_logit = quality.weights(curve, middle_and_end, "logit")
    assert by_probability[0] < by_probability[1] and by_logit[0] > by_logit[1]
