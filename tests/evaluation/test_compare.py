"""`distilrank evaluate`: several students on one judged split."""

from __future__ import annotations

import json

import numpy as np
import pytest

from distilrank import cli
from distilrank.config import Text
from distilrank.core import artifacts, schemas
from distilrank.evaluation import metrics
from distilrank.evaluation.compare import summarize_spread
from distilrank.modeling.scorer import Scorer
from tests.judged_samples import CPU, judged_table, judgements, some_rows, trained
from tests.tiny_models import WORDS

SET = [
    part
    for key in ("bootstrap=100", "cluster_bootstrap=50", "slice_queries=5")
    for part in ("--set", f"evaluate.{key}")
]


@pytest.fixture(scope="module")
def root(tmp_path_factory, models):
    """A judgements folder, and two students that differ by their seed."""
    root, rng = tmp_path_factory.mktemp("stability"), np.random.default_rng(3)
    rows = some_rows(12, rng)
    texts = {"query": [f"{WORDS[int(row[0][1:])]} lamp" for row in rows]}
    texts["title"] = [" ".join(rng.choice(WORDS, 4)) for _ in rows]
    judgements(root / "judgements", judged_table(rows, **texts))
    platt = {"method": "platt", "slope": 0.5, "intercept": -0.25}
    for seed in (1, 2):
        trained(models / "encoder", root / f"seed-{seed}", seed, "encoder", Text(max_tokens=32), platt)
    return root


@pytest.fixture
def run(root, capsys, monkeypatch):
    monkeypatch.chdir(root)

    def call(*arguments):
        with pytest.raises(SystemExit) as exit:
            cli.main(["evaluate", *map(str, arguments)])
        captured = capsys.readouterr()
        return exit.value.code or 0, captured.out, captured.err

    return call


def test_students_are_measured_beside_the_baselines_and_each_other(run, root, tmp_path):
    names = ["seed-1", "seed-2"]
    status, out, err = run(
        "--model", names[0], "--model", names[1], "--judgements", "judgements", "--output", tmp_path / "out",
        "--json", *SET,
    )  # fmt: skip
    assert status == 0, err
    results = json.loads(out)
    assert artifacts.read_json(tmp_path / "out" / "metrics.json") == results
    assert list(results["systems"]) == ["random", "bm25", *names]
    test = schemas.read(root / "judgements" / "test.parquet", schemas.JUDGED)
    per_query = schemas.read(tmp_path / "out" / "per_query.parquet", schemas.PER_QUERY).to_pandas()
    for name in names:
        score = Scorer.load(root / name, CPU).score(test)
        columns = (test[column].to_pylist() for column in ("query_id", "product_id", "target"))
        assert results["systems"][name]["ndcg_at_10"] == pytest.approx(metrics.mean_ndcg(*columns, score), abs=1e-6)
        means = per_query[per_query.system == name][list(metrics.PER_QUERY)].mean()
        assert all(means[metric] == pytest.approx(results["systems"][name][metric]) for metric in metrics.PER_QUERY)
    versus = {(row["system"], row["baseline"]) for row in results["comparisons"]}
    assert versus == {*((name, other) for name in names for other in ("bm25", "random")), tuple(names)}
    spread = results["stability"]["metrics"]
    values = [results["systems"][name]["roc_auc"] for name in names]
    assert spread["roc_auc"]["mean"] == pytest.approx(np.mean(values))
    assert spread["roc_auc"]["standard_deviation"] == pytest.approx(abs(values[0] - values[1]) / np.sqrt(2))
    assert results["examples"]["baseline"] == "seed-2" and results["agreement"] is None
    sliced = {(row["system"], row["baseline"]) for part in results["slices"]["rows"] for row in part["comparisons"]}
    assert sliced == {*((name, "bm25") for name in names), tuple(names)}


def test_one_student_is_printed_as_tables(run):
    status, out, err = run("--model", "seed-1", "--judgements", "judgements/test.parquet", *SET)
    assert status == 0, err
    for words in ("nDCG@10", "seed-1", "95% CI", "wins, ties, losses", "ranked of 12 queries"):
        assert words in out
    assert "students" not in out, "one has no spread"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "seed-1", "--model", "seed-1"], "--model: 'seed-1' is named twice"),
        (["--model", "bm25"], "--model bm25: is the name of a baseline"),
        (["--model", "nowhere"], "--model nowhere: no such folder, and"),
        (["--model", "seed-1", "--set", "gate.min_queries=3"], "--set gate: expected evaluate.KEY=VALUE"),
        (["--model", "seed-1", "--set", "evaluate.bootstrap=3"], "bootstrap"),
        (["--model", "seed-1", "--set", "evaluate.slices=[hue]"], "evaluate.slices: 'hue' is not a column"),
        (["--model", "seed-1", "--judgements", "seed-1"], "seed-1/test.parquet: no such file"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(run, tmp_path, arguments, words):
    options = arguments if "--judgements" in arguments else [*arguments, "--judgements", "judgements"]
    status, out, err = run(*options, "--output", tmp_path / "out")
    assert (status, out) == (2, "") and words in err
    assert len(err.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_metric_that_a_student_lacks_has_no_spread():
    figures = {"one": {"a": 0.1, "b": None}, "two": {"a": 0.3, "b": 0.5}, "three": {"a": 0.2, "b": 0.5}}
    spread = summarize_spread(figures)
    assert list(spread["metrics"]) == ["a"] and spread["models"] == list(figures)
    expected = {"mean": 0.2, "standard_deviation": 0.1, "lowest": 0.1, "highest": 0.3, "range": 0.2}
    assert spread["metrics"]["a"] == pytest.approx(expected)
    assert summarize_spread({"one": {"a": 0.1}}) is None
