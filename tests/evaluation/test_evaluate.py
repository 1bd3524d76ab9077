"""The `evaluate` stage on small real models."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distilrank import registry
from distilrank.config import Registry, TeacherText, Text
from distilrank.core import artifacts, schemas
from distilrank.core.errors import InputError
from distilrank.evaluation import metrics
from distilrank.evaluation.evaluate import evaluate
from distilrank.modeling.scorer import Scorer
from tests.judged_samples import CPU, SMALL, judged_table, judgements, some_rows, trained
from tests.tiny_models import WORDS


def traffic_table(rng, rows):
    def words(count):
        return [" ".join(rng.choice(WORDS, 3)) for _ in range(count)]

    values = {
        **{name: [None] * rows for name in schemas.PRODUCT_FIELDS},
        "query_id": [f"q{row % 5}" for row in range(rows)],
        "query": words(rows),
        "product_id": [f"p{row}" for row in range(rows)],
        "title": words(rows),
        **{name: [1] * rows for name in ("query_words", "query_characters", "query_tokens", "title_words")},
        "script": ["latin"] * rows,
        "position": [None] * rows,
        "clicked": [None] * rows,
        "unseen_words": [0.0] * rows,
        "bm25": [1.0] * rows,
    }
    return schemas.conform(pa.table(values), schemas.TRAFFIC, "traffic")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, models):
    """Everything that the stage reads, small and real."""
    root, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(14)
    rows = some_rows(12, rng)
    texts = {"query": [f"{WORDS[int(row[0][1:])]} lamp" for row in rows]}
    texts["title"] = [" ".join(rng.choice(WORDS, 4)) for _ in rows]
    judgements(root / "judgements", judged_table(rows, **texts))
    for name, size in (("reference", 30), ("current", 20)):
        schemas.write(traffic_table(rng, size), root / "traffic" / f"{name}.parquet", schemas.TRAFFIC)
    artifacts.seal(root / "traffic")
    platt = {"method": "platt", "slope": 0.5, "intercept": -0.25}
    trained(models / "decoder", root / "teacher", 1, "decoder", TeacherText(max_tokens=64), platt)
    trained(models / "encoder", root / "student", 2, "encoder", Text(max_tokens=32), platt)
    (root / "version").mkdir()
    trained(models / "encoder", root / "version" / "student", 3, "encoder", Text(max_tokens=32), {"method": "none"})
    return root


def run_stage(root, output, champion="", uri="unused", anchor="", config=SMALL):
    return evaluate(
        config,
        CPU,
        Registry(uri=str(uri)),
        judgements=root / "judgements",
        traffic=root / "traffic",
        teacher=root / "teacher",
        student=root / "student",
        champion=champion,
        anchor=anchor,
        output=output,
    )


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_stage_writes_a_sealed_folder_of_everything(inputs, tmp_path):
    output = tmp_path / "evaluation"
    evaluation = run_stage(inputs, output)
    runs = {f"runs/{name}.run" for name in ("random", "bm25", "teacher", "student")}
    scores = {"traffic_scores/reference.parquet", "traffic_scores/current.parquet"}
    tables = {"metrics.json", "per_query.parquet", "pair_scores.parquet", "qrels.txt", "digest.json", "stage.json"}
    assert files(output) == runs | scores | tables
    artifacts.verify(output)

    results = artifacts.read_json(output / "metrics.json")
    student = results["systems"]["student"]
    assert evaluation.ndcg_at_10 == student["ndcg_at_10"]
    assert evaluation.lift_over_bm25 == pytest.approx(student["ndcg_at_10"] - results["systems"]["bm25"]["ndcg_at_10"])
    assert set(results["latency"]) == {"student"}
    student_latency = results["latency"]["student"]
    assert (
        0 < student_latency["p50_ms"] <= student_latency["p95_ms"] <= student_latency["p99_ms"]
        and student_latency["pairs_per_second"] > 0
        and student_latency["pairs_per_request"] >= 2
    )

    pairs = schemas.read(output / "pair_scores.parquet", schemas.PAIR_SCORES).to_pandas()
    scorer = Scorer.load(inputs / "student", CPU)
    test = schemas.read(inputs / "judgements" / "test.parquet", schemas.JUDGED)
    expected = scorer.score(test)
    student_pairs = pairs[pairs.system == "student"]
    assert np.allclose(student_pairs.score, expected, atol=1e-5)
    assert student_pairs.score.nunique() > len(student_pairs) / 2
    assert np.allclose(student_pairs.probability, scorer.probability(expected), atol=1e-5)
    assert pairs[pairs.system == "bm25"].probability.isna().all()
    per_query = schemas.read(output / "per_query.parquet", schemas.PER_QUERY).to_pandas()
    for name, values in results["systems"].items():
        means = per_query[per_query.system == name][list(metrics.PER_QUERY)].mean()
        assert all(means[metric] == pytest.approx(values[metric]) for metric in metrics.PER_QUERY)

    traffic = schemas.read(inputs / "traffic" / "current.parquet", schemas.TRAFFIC)
    traffic_scores = schemas.read(output / "traffic_scores" / "current.parquet", schemas.TRAFFIC_SCORES)
    assert np.allclose(traffic_scores.column("score"), scorer.probability(scorer.score(traffic)), atol=1e-5)


def test_the_stage_repeats_itself_but_for_the_timings(inputs, tmp_path):
    for name in ("one", "two"):
        run_stage(inputs, tmp_path / name)
    digests = [artifacts.read_json(tmp_path / name / "digest.json")["files"] for name in ("one", "two")]
    results = [artifacts.read_json(tmp_path / name / "metrics.json") for name in ("one", "two")]
    for digest, values in zip(digests, results, strict=True):
        del digest["metrics.json"], values["latency"]
    assert digests[0] == digests[1] and results[0] == results[1]


def publish(inputs, folder, seed=0):
    """Publish a version in the registry of `folder` and return its id; another `seed` gives another student."""
    version_folder = folder / f"version-{seed}"
    artifacts.copy_tree(inputs / "version", version_folder)
    if seed:
        shutil.rmtree(version_folder / "student")
        artifacts.copy_tree(inputs / "student", version_folder / "student")
    artifacts.seal(version_folder)
    version = "v" + artifacts.sealed_digest(version_folder / "student")[:12]
    registry.open(str(folder / "registry")).publish(version_folder, version)
    return version


def test_the_champion_is_scored_again_on_the_same_rows(inputs, tmp_path):
    version = publish(inputs, tmp_path)
    output = tmp_path / "evaluation"
    run_stage(inputs, output, version, tmp_path / "registry")
    results = artifacts.read_json(output / "metrics.json")
    assert list(results["systems"]) == ["random", "bm25", "teacher", "student", "champion"]
    assert results["systems"]["champion"]["ece"] is None, "it was not calibrated"
    assert results["examples"]["baseline"] == "champion"
    assert set(results["latency"]) == {"student", "champion"}
    pairs = schemas.read(output / "pair_scores.parquet", schemas.PAIR_SCORES).to_pandas()
    scorer = Scorer.load(inputs / "version" / "student", CPU)
    test = schemas.read(inputs / "judgements" / "test.parquet", schemas.JUDGED)
    assert np.allclose(pairs[pairs.system == "champion"].score, scorer.score(test), atol=1e-5)
    traffic = schemas.read(inputs / "traffic" / "current.parquet", schemas.TRAFFIC)
    traffic_scores = schemas.read(output / "traffic_scores" / "champion_current.parquet", schemas.TRAFFIC_SCORES)
    assert np.allclose(traffic_scores.column("score"), 1 / (1 + np.exp(-scorer.score(traffic))), atol=1e-5)

    run_stage(inputs, output)  # into the same folder, without a champion: nothing of it may stay
    assert not {name for name in files(output) if "champion" in name}


def test_an_anchor_is_a_separate_system_unless_it_is_the_champion(inputs, tmp_path):
    champion, anchor = publish(inputs, tmp_path), publish(inputs, tmp_path, seed=1)
    run_stage(inputs, tmp_path / "two", champion, tmp_path / "registry", anchor)
    different = artifacts.read_json(tmp_path / "two" / "metrics.json")
    assert different["systems"]["anchor"] == different["systems"]["student"] != different["systems"]["champion"], (
        "the same weights"
    )
    assert set(different["latency"]) == {"student", "champion", "anchor"}
    run_stage(inputs, tmp_path / "one", champion, tmp_path / "registry", champion)
    same = artifacts.read_json(tmp_path / "one" / "metrics.json")
    assert same["systems"]["anchor"] == same["systems"]["champion"] == different["systems"]["champion"]
    assert set(same["latency"]) == {"student", "champion", "anchor"}
    by_baseline = {
        name: [entry | {"baseline": ""} for entry in same["comparisons"] if entry["baseline"] == name]
        for name in ("champion", "anchor")
    }
    assert len(by_baseline["anchor"]) == 6
    assert by_baseline["anchor"] == by_baseline["champion"]
    assert {entry["baseline"] for row in same["slices"]["rows"] for entry in row["comparisons"]} <= {
        "bm25",
        "champion",
        "anchor",
    }


def test_a_champion_that_cannot_be_loaded_is_named_before_anything_is_scored(inputs, tmp_path):
    root = tmp_path / "inputs"
    for name in ("traffic", "teacher", "student"):
        artifacts.copy_tree(inputs / name, root / name)
    rows = [("q", "a", 0.0), ("q", "b", 1.0)]
    judgements(root / "judgements", judged_table(rows, query=[" ", " "]))  # no model scores an empty query
    with pytest.raises(InputError, match="row 1: query is empty"):
        run_stage(root, tmp_path / "evaluation")
    version = publish(inputs, tmp_path)
    weights = next((tmp_path / "registry").rglob(f"*{version}*/student/model.safetensors"))
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-8] + b"damaged.")
    with pytest.raises(InputError, match=rf"the champion {version} of registry .* cannot be loaded: .*safetensors"):
        run_stage(root, tmp_path / "evaluation", version, tmp_path / "registry")
    with pytest.raises(InputError, match=r"the anchor v0123456789ab of registry .* cannot be loaded"):
        run_stage(root, tmp_path / "evaluation", "", tmp_path / "registry", "v0123456789ab")


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("judgements", "test.parquet"),
        ("traffic", "current.parquet"),
        ("teacher", "model.safetensors"),
        ("student", "model.safetensors"),
    ],
)
def test_what_was_changed_after_it_was_sealed_is_not_measured(inputs, tmp_path, part, file):
    """The digests are checked before a model is loaded: the folders of the other models hold none."""
    for name in ("judgements", "traffic", "teacher", "student"):
        if name in ("teacher", "student") and name != part:
            artifacts.write_json(tmp_path / name / "distilrank.json", {})
            artifacts.seal(tmp_path / name)
        else:
            artifacts.copy_tree(inputs / name, tmp_path / name)
    path = tmp_path / part / file
    if part == "judgements":  # as good as the student's order: nDCG would be 1
        table = schemas.read(path, schemas.JUDGED)
        score = Scorer.load(inputs / "student", CPU).score(table)
        target = pa.array((np.argsort(np.argsort(score)) / len(score)).astype(np.float32))
        for name in ("target", "gain"):
            table = table.set_column(table.schema.get_field_index(name), schemas.JUDGED.field(name), target)
        schemas.write(table, path, schemas.JUDGED)
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"input {part}: {path}: digest \w+ differs from the recorded"):
        run_stage(tmp_path, tmp_path / "evaluation")
    assert not (tmp_path / "evaluation").exists()


def test_an_unknown_slice_column_is_named_before_a_model_is_loaded(inputs, tmp_path):
    config = SMALL.model_copy(update={"slices": ("stratum", "hue")})
    with pytest.raises(
        InputError, match=r"evaluate\.slices: 'hue' is not a column .* expected some of query_words, .*color"
    ):
        run_stage(inputs, tmp_path / "evaluation", champion="v-unknown", config=config)


def test_an_empty_test_split_ends_the_stage(inputs, tmp_path):
    root = tmp_path / "inputs"
    for name in ("traffic", "teacher", "student"):
        artifacts.copy_tree(inputs / name, root / name)
    judgements(root / "judgements", judged_table([]))
    with pytest.raises(InputError, match=r"test\.parquet: no rows"):
        run_stage(root, tmp_path / "evaluation")
    assert not (tmp_path / "evaluation" / "digest.json").exists()
