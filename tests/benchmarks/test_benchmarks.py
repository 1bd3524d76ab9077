from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks import damage, labels, prepare, student
from benchmarks.machine import measure
from distilrank.core import artifacts, schemas
from tests import label_victims
from tests.tiny_models import WORDS

ROOT = Path(__file__).parents[2]
TINY = replace(
    prepare.QUICK,
    queries=200,
    products=300,
    judged_queries=20,
    esci_examples=3000,
    esci_products=4000,
    esci_queries=150,
)


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): artifacts.digest_file(path) for path in files}


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("*.ndjson")) for line in path.read_text().splitlines()]


def test_a_generated_log_has_the_asked_events_and_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepare.write_shop(str(tmp_path / name), 2000, TINY)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")
    shop = tmp_path / "one"
    events, queries = _lines(shop / "events"), {row["query_id"]: row for row in _lines(shop / "queries")}
    assert len(events) == 2000
    assert len(_lines(shop / "later" / "events")) == 2000 // prepare.DAYS
    assert {path.stem for path in (shop / "events").iterdir()} == {row["timestamp"][:10] for row in events}
    shown = set()
    for row in events:
        search, attributes = queries[row["query_id"]], row["event_attributes"]
        pair = row["query_id"], attributes["object"]["object_id"], attributes["position"]["ordinal"]
        assert (row["client_id"], row["timestamp"][:10]) == (search["client_id"], search["timestamp"][:10])
        assert pair[1] in search["query_response_hit_ids"]
        # What is clicked has been shown.
        assert row["action_name"] == ("click" if pair in shown else "impression")
        shown.add(pair)
    products = pq.read_table(shop / "catalogue.parquet")["product_id"]
    judged = pq.read_table(shop / "judgements.parquet")
    assert len(products) == len(pc.unique(products)) == TINY.products
    assert pc.all(pc.is_in(judged["product_id"], value_set=products.combine_chunks())).as_py()
    assert len(judged.group_by(["query", "product_id"]).aggregate([])) == len(judged)


def test_generated_esci_files_have_the_asked_rows_and_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepare.write_esci(str(tmp_path / name), TINY)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")
    examples, products = (pq.read_table(tmp_path / "one" / f"{name}.parquet") for name in ("examples", "products"))
    assert (len(examples), len(products)) == (TINY.esci_examples, TINY.esci_products)
    assert set(examples["esci_label"].to_pylist()) == set("ESCI")
    key = ["product_locale", "product_id"]
    assert len(products.group_by(key).aggregate([])) == len(products)
    assert len(examples.group_by(["query", *key]).aggregate([])) == len(examples)
    assert len(examples.join(products.select(key), keys=key, join_type="inner")) == len(examples)


def test_generated_esci_files_have_the_columns_of_the_real_ones(tmp_path: Path) -> None:
    real = ROOT.parent / "shared/data/esci-sample/examples.parquet"
    if not real.exists():
        pytest.skip(f"{real} is not there")
    prepare.write_esci(str(tmp_path), TINY)
    fields = {field.name: field.type for field in pq.read_schema(real) if not field.name.startswith("__")}
    assert {field.name: field.type for field in pq.read_schema(tmp_path / "examples.parquet")} == fields


def test_the_last_line_is_the_result(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.prepare", "--quick", "--only", "scrub", "--work", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["benchmark"] == "prepare" and result["machine"]["cores"] >= 1
    bars = {bar["name"]: bar for bar in result["bars"]}
    assert bars["scrub_found"] == {"name": "scrub_found", "value": 1.0, "bound": 1, "holds": True}
    assert list(tmp_path.iterdir()) == []


def test_generated_candidates_have_the_asked_rows_and_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        labels.write_shard(str(tmp_path / name), 1234, str(ROOT.parent / "shared"))
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")
    table = schemas.read(tmp_path / "one" / f"{labels.SHARD}.parquet", schemas.CANDIDATES)
    assert len(table) == len(pc.unique(table["product_id"])) == 1234
    assert len(pc.unique(table["query_id"])) == -(-1234 // labels.PER_QUERY)
    assert min(map(len, table["description"].to_pylist())) > 10
    other = tmp_path / "without shared data"
    labels.write_shard(str(other), 50, str(other))
    assert len(pq.read_table(other / f"{labels.SHARD}.parquet")) == 50


def test_labeling_is_measured_and_the_last_line_is_the_result() -> None:
    command = [sys.executable, "-m", "benchmarks.labels", "--quick", "--only", "machinery"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["benchmark"] == "labels" and result["figures"]["machinery"]["candidates"] == labels.QUICK.candidates
    bars = {bar["name"]: bar for bar in result["bars"]}
    assert set(bars) == {"machinery_rows_per_second", "machinery_memory_gib"}
    assert bars["machinery_memory_gib"]["holds"] and bars["machinery_rows_per_second"]["value"] > 1000


def test_what_does_not_survive_kills_is_detected(tmp_path: Path) -> None:
    result = measure(label_victims.kill_careless, str(tmp_path), 9, scratch=tmp_path).result
    assert (result["restarting"]["kills"], result["trusting"]["kills"]) == (5, 4)
    assert result["restarting"]["doubled"] > 0 and result["trusting"]["lost"] > 0
    assert result["restarting"]["different"] > 0 and result["trusting"]["different"] > 0


def test_a_kill_before_each_change_is_survived_or_detected(tmp_path: Path) -> None:
    result = measure(label_victims.kill_at_boundaries, str(tmp_path), 12, scratch=tmp_path).result
    careful, careless = result["label"], result["careless"]
    assert careful["kills"] == 12 < careful["changes"] and careless["kills"] == careless["changes"]
    assert (careful["different"], careful["lost"], careful["doubled"]) == (0, 0, 0)
    assert careless["different"] > 0 and careless["lost"] > 0


def test_a_changed_byte_of_a_checkpoint_is_not_used_or_detected(tmp_path: Path) -> None:
    result = measure(label_victims.damage_checkpoints, str(tmp_path), 3, scratch=tmp_path).result
    assert result["label"]["checkpoints"] > 1 and result["label"]["different"] == 0
    assert result["careless"]["different"] == 3


def test_a_changed_byte_of_a_sealed_file_is_refused_and_a_careless_stage_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sealed"
    for name in ("a.json", "deep/b.bin"):
        artifacts.write_text(folder / name, "{}")
    artifacts.seal(folder)
    result = damage.damage_sealed({"sealed": folder}, tmp_path, repeats=4, seed=1)
    assert (result["files"], result["caught"], result["missed"]) == (3, 12, [])
    monkeypatch.setattr(artifacts, "stage", lambda *_, **__: contextlib.nullcontext())  # verifies nothing
    result = damage.damage_sealed({"sealed": folder}, tmp_path, repeats=1, seed=1)
    assert result["caught"] == 0 and result["missed"][0].startswith("sealed/a.json, byte ")


def _lists(queries: int) -> pa.Table:
    """Judged lists of eight products each."""
    rng = np.random.default_rng(7)
    rows = [
        {
            "query_id": f"q{query}",
            "query": WORDS[query],
            "product_id": f"p{product}",
            **dict.fromkeys(schemas.PRODUCT_FIELDS),
            "title": " ".join(rng.choice(WORDS, rng.integers(2, 9))),
            **dict.fromkeys(("target", "gain"), float(rng.integers(0, 3)) / 2),
            "raters": 1,
            "stratum": "head",
            "bm25": 0.0,
        }
        for query in range(queries)
        for product in range(student.PRODUCTS)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.JUDGED)


def test_the_student_is_measured_beside_sentence_transformers(models: Path, tmp_path: Path) -> None:
    table, scale = _lists(16), replace(student.QUICK, rows=8, scored=40, lists=2)
    trained, ours = student.measure_training(scale, models / "encoder", tmp_path, table, table)
    assert trained["pairs"] == 8 * student.PRODUCTS
    peer, mine = (trained[name] for name in ("peer", "ours"))
    assert mine["margins_per_second"] / mine["pairs_per_second"] == pytest.approx(28 / 8, rel=1e-2)
    assert peer["margins_per_second"] / peer["pairs_per_second"] == pytest.approx(7 / 8, rel=1e-2)
    assert trained["times_peer"] == pytest.approx(mine["pairs_per_second"] / peer["pairs_per_second"], rel=0.01)
    ours.save(tmp_path / "student", table)
    scored = student.measure_scoring(scale, tmp_path / "student", table, table)
    assert {"peer", "torch", "onnx", "onnx-int8"} <= set(scored)
    assert scored["onnx"]["largest_difference"] < 1e-4  # the peer scores in fp32 too
    assert scored["onnx"]["dev_ndcg_at_10"] == pytest.approx(scored["peer"]["dev_ndcg_at_10"])
    assert scored["best"] != "peer"
    for latency in scored["latency_ms"].values():
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]


def test_the_peer_gets_whole_lists_of_eight_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student, "ROOT", tmp_path / "nothing" / "here")
    train, dev = student.rows(tmp_path, 0)
    queries = np.array(train["query_id"].to_pylist()).reshape(-1, student.PRODUCTS)
    assert (queries == queries[:, :1]).all() and len(set(queries[:, 0])) == len(queries) > 50
    assert not set(queries[:, 0]) & set(dev["query_id"].to_pylist())


# Distillation ---------------------------------------------------------------------------------------------------------


def test_results_of_a_study_are_named_by_its_settings(tmp_path: Path) -> None:
    """Only the names: the study itself takes hours, and data that not everybody has."""
    from benchmarks.distillation import ARMS, HUMAN_ONLY, TEACHER, Arm, Study

    study, other = Study(tmp_path, 1, []), Study(tmp_path, 1, ["prepare.seed=99"])
    assert study.data == Study(tmp_path, 1, []).data != other.data
    taught = tmp_path / "teacher-0"
    names = [study.student(name, arm, taught) for name, arm in ARMS.items()]
    assert len(set(names)) == len(ARMS)
    assert study.student("4x", ARMS["4x"], taught) != study.student("4x", Arm(4, ["student.pointwise=0.3"]), taught)
    assert study.student("4x", ARMS["4x"], taught) != study.student("4x", ARMS["4x"], tmp_path / "teacher-1")
    assert study.config(TEACHER).teacher != study.config(HUMAN_ONLY).teacher


def test_an_incomplete_study_fails_its_bars() -> None:
    from benchmarks.distillation import bars

    rows = [
        {"system": "16x", "baseline": "teacher", "metric": "ndcg_at_10", "ci_low": 0.001},
        {"system": "16x", "baseline": "human labels only", "metric": "ndcg_at_10", "ci_low": -0.001},
    ]
    held = [bar["holds"] for bar in bars({"comparisons": rows})]
    assert len(held) == 12 and held.count(True) == 1


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_the_evaluation_and_the_plain_loops_give_the_same_figures(tmp_path: Path) -> None:
    from benchmarks import evaluation

    scale = replace(evaluation.QUICK, pairs=900, queries=90, bootstrap=100, cluster_bootstrap=50, plain_resamples=120)
    evaluation.write(tmp_path, scale)
    result = evaluation.plain(str(tmp_path), asdict(scale))
    assert max(result["largest_difference"].values()) < evaluation.EQUAL
    made = evaluation.ours(str(tmp_path), asdict(scale))
    assert 0 < made["ranked_queries"] <= 90 and (made["slices"], made["comparisons"]) == (4, 24)
    assert set(artifacts.read_json(tmp_path / "out" / "metrics.json")["systems"]) == {
        "random",
        "bm25",
        *evaluation.NOISE,
    }
