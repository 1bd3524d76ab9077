"""The whole pipeline on this machine with tiny models: one run that promotes, and runs that must not."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import yaml

from distilrank.core import artifacts, progress
from tests.listener import Listener
from tests.warm import Python

ROOT = Path(__file__).parents[2]
PROMISED = (
    "report.html",
    "drift.html",
    "metrics.json",
    "verdict.json",
    "labels/manifest.json",
    "summary.html",
    "timings.json",
    "student",
)
STAGES = {
    "preflight",
    "prepare",
    "rehearse",
    "teacher",
    "label-00000",
    "label-00001",
    "student",
    "evaluate",
    "drift",
    "gate",
    "report",
    "promote",
}


class Shop:
    """A folder with a configuration, in which `python -m pipelines` is called as a user would."""

    def __init__(self, folder: Path, models: Path, python: Python) -> None:
        self.python = python
        self.folder, self.runs, self.registry = folder, folder / "runs", folder / "registry"
        self.config = folder / "tiny.yaml"
        values = {
            "name": "tiny",
            "data": {"source": "demo_shop", "products": 300, "queries": 90, "judged_queries": 70, "searches": 500},
            "compute": {"device": "cpu", "precision": "fp32", "threads": 1},
            "prepare": {"traffic_sample": 200, "from_impressions": 3, "from_bm25": 2, "from_random": 1},
            "registry": {"uri": str(self.registry)},
            "teacher": {
                "model": str(models / "decoder"),
                "lift_over_bm25": -1,  # random weights cannot beat it
                "lora": {"rank": 4},
                "min_deviation": 0,
                "optimizer": {"epochs": 1, "evaluations": 1},
            },
            "label": {"min_deviation": 0},
            "student": {"model": str(models / "encoder"), "optimizer": {"epochs": 1, "evaluations": 1}},
            "drift": {"embedding_rows": 100},
            "evaluate": {"bootstrap": 200, "cluster_bootstrap": 50, "latency_pairs": 32},
            "gate": {
                "lift_over_bm25": -1,
                "lift_over_random": -0.99,
                "teacher_margin": 1,
                "max_ece": 1,
                "min_queries": 3,
                "min_resamples": 200,
                "min_score_spread": 0,
                "max_latency_ratio": 0,  # of four requests of a millisecond each: noise
            },
        }
        self.config.write_text(yaml.safe_dump(values))
        self.first_output = ""

    def __call__(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python.executable, "-m", "pipelines", command, "--config", str(self.config), *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | self.python.environment | {"COLUMNS": "200"},
        )

    def run(self, name: str, *settings: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        overrides = [part for setting in settings for part in ("--set", setting)]
        return self("run", "--runs", str(self.runs), "--name", name, *overrides, *options)


@pytest.fixture(scope="module")
def shop(models: Path, tmp_path_factory: pytest.TempPathFactory, warm_python: Python) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"), models, warm_python)


@pytest.fixture(scope="module")
def promoted(shop: Shop) -> Path:
    result = shop.run("first")
    log = shop.runs / "first" / "run.log"
    assert result.returncode == 0, result.stdout + result.stderr + (log.read_text()[-3000:] if log.exists() else "")
    shop.first_output = result.stdout
    return shop.runs / "first"


def test_a_run_leaves_what_it_promises_and_promotes(promoted: Path, shop: Shop) -> None:
    assert not [name for name in PROMISED if not (promoted / name).exists()]
    assert (shop.runs / "latest").resolve() == promoted
    verdict = json.loads((promoted / "verdict.json").read_text())
    assert verdict["outcome"] == "cold_start" and verdict["promoted"] and verdict["champion"] is None
    assert all(set(check) == {"name", "passed", "value", "bound", "detail"} for check in verdict["checks"])
    alias = json.loads((shop.registry / "aliases" / "champion.json").read_text())
    assert alias["version"] == verdict["candidate"]["id"]
    version = shop.registry / "versions" / alias["version"]
    assert artifacts.verify(version / "student") == artifacts.verify(promoted / "student")
    metrics = json.loads((promoted / "metrics.json").read_text())
    assert set(metrics["systems"]) == {"random", "bm25", "teacher", "student"}
    timings = json.loads((promoted / "timings.json").read_text())
    assert set(timings["stages"]) == STAGES and timings["peak_memory_mib"] > 100
    manifest = json.loads((promoted / "labels" / "manifest.json").read_text())
    profile = json.loads((promoted / "profile.json").read_text())
    assert manifest["rows"] == profile["candidates"]["pairs"] == sum(shard["rows"] for shard in manifest["shards"])


def test_the_next_steps_of_a_run_can_be_pasted(promoted: Path, shop: Shop, tmp_path: Path) -> None:
    lines = shop.first_output.split("Next:\n")[1].splitlines()
    steps = {line[:22].strip(): shlex.split(line[22:]) for line in lines if line.startswith("  ")}
    assert list(steps) == ["score pairs", "serve the champion", "use your own data"]
    assert steps["serve the champion"][1:] == ["serve", "--registry", str(shop.registry)]
    for purpose, result in (("score pairs", "scores.csv"), ("use your own data", "my-shop")):
        command = [shop.python.executable, "-m", "distilrank", *steps[purpose][1:]]
        environment = os.environ | shop.python.environment
        step = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert step.returncode == 0 and (tmp_path / result).exists(), step.stdout + step.stderr
    scores = pa_csv.read_csv(tmp_path / "scores.csv")
    assert scores.num_rows == pq.read_metadata(promoted / "judgements" / "test.parquet").num_rows


def test_ir_measures_on_the_files_gives_the_figures_of_the_run(promoted: Path) -> None:
    import ir_measures
    from ir_measures import RR, nDCG

    metrics = json.loads((promoted / "metrics.json").read_text())
    relevant = metrics["protocol"]["relevant_grade"]
    evaluation = promoted / "evaluation"
    qrels = list(ir_measures.read_trec_qrels(str(evaluation / "qrels.txt")))
    for system, values in metrics["systems"].items():
        run = list(ir_measures.read_trec_run(str(evaluation / "runs" / f"{system}.run")))
        measured = ir_measures.calc_aggregate([nDCG @ 5, nDCG @ 10, RR(rel=relevant)], qrels, run)
        for measure, name in ((nDCG @ 5, "ndcg_at_5"), (nDCG @ 10, "ndcg_at_10"), (RR(rel=relevant), "mrr")):
            assert measured[measure] == pytest.approx(values[name], abs=1e-6), (system, name)


def test_the_compiled_pipeline_meets_the_champion_that_it_makes_again(promoted: Path, shop: Shop) -> None:
    alias = (shop.registry / "aliases" / "champion.json").read_bytes()
    compiled = shop.folder / "compiled.yaml"
    policy = ("--set", "gate.min_metrics.ndcg_at_10=0.999")
    with Listener() as listener:
        setting = f"cluster.notify.webhook={listener.url}"
        assert shop("compile", "--output", str(compiled), "--set", setting).returncode == 0
        result = shop.run("second", options=("--pipeline", str(compiled), "--fail-on-refusal", *policy))
    assert result.returncode == 0, result.stdout + result.stderr
    assert [(post["name"], post["state"], post["promoted"]) for post in listener.posts] == [
        ("second", "SUCCEEDED", None)
    ]
    verdict = json.loads((shop.runs / "second" / "verdict.json").read_text())
    failed = [check["name"] for check in verdict["checks"] if not check["passed"]]
    assert (verdict["outcome"], verdict["promoted"]) == ("unchanged", False)
    assert sorted(failed) == ["minimum_ndcg_at_10", "new"]
    version = verdict["champion"]["id"]
    assert (version, verdict["champion"]["run"]) == (verdict["candidate"]["id"], "first")
    assert (
        f"{version} is the champion already (the run first promoted it): there is nothing to promote" in result.stdout
    )
    assert "! minimum_ndcg_at_10" in result.stdout and "✗" not in result.stdout and "! new" not in result.stdout
    log = (shop.runs / "second" / "run.log").read_text()
    (event,) = (event for line in log.splitlines() if (event := progress.parse(line)) and event.event == "outcome")
    assert (event.stage, json.loads(event.text)) == (
        "gate",
        {"outcome": "unchanged", "candidate": version, "champion": version, "failed": ["minimum_ndcg_at_10"]},
    )
    assert '"outcome":' not in result.stdout, "programs read the log; people read the notes"
    assert (shop.registry / "aliases" / "champion.json").read_bytes() == alias
    metrics = json.loads((shop.runs / "second" / "metrics.json").read_text())
    assert metrics["systems"]["champion"]["ndcg_at_10"] == metrics["systems"]["student"]["ndcg_at_10"]
    timings = json.loads((shop.runs / "second" / "timings.json").read_text())["stages"]
    assert {name for name, stage in timings.items() if stage["cached"]} == {
        "prepare", "teacher", "label-00000", "label-00001", "student",
    }  # fmt: skip
    assert "promote" not in timings and "unchanged in" in result.stdout and "refused" not in result.stdout
    assert not [name for name in PROMISED if not (shop.runs / "second" / name).exists()]


def test_another_student_that_is_not_good_enough_is_refused(promoted: Path, shop: Shop) -> None:
    alias = (shop.registry / "aliases" / "champion.json").read_bytes()
    settings = ("student.optimizer.seed=99", "gate.min_metrics.ndcg_at_10=0.9999")
    result = shop.run("refused", *settings, options=("--fail-on-refusal",))
    assert result.returncode == 3, result.stdout + result.stderr
    assert "✗ minimum_ndcg_at_10" in result.stdout and "refused in" in result.stdout
    assert json.loads((shop.runs / "refused" / "verdict.json").read_text())["outcome"] == "refused"
    assert (shop.registry / "aliases" / "champion.json").read_bytes() == alias


def test_a_teacher_not_worth_labeling_with_stops_the_run(promoted: Path, shop: Shop) -> None:
    with Listener() as listener:
        result = shop.run("hopeless", "teacher.lift_over_bm25=0.9", f"cluster.notify.webhook={listener.url}")
    assert result.returncode == 1
    assert [(post["name"], post["state"]) for post in listener.posts] == [("hopeless", "FAILED")]
    assert result.stderr.startswith("stopped: teacher: dev nDCG@10") and len(result.stderr.splitlines()) == 1
    assert (shop.runs / "latest").resolve().name != "hopeless"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "teacher.model=models/absent",
            "error: model 'models/absent': no such folder, expected one with safetensors and config.json",
        ),
        ("data.searchs=5", "unknown key 'data.searchs'; did you mean 'searches'?"),
        ("registry.uri=/proc/registry", "/proc/registry"),
        ("prepare.test_share=0.0001", "test"),
    ],
)
def test_bad_input_is_one_line_and_status_2(shop: Shop, setting: str, message: str) -> None:
    result = shop.run(f"bad-{abs(hash(setting))}", setting)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


def watch(shop: Shop, name: str, *settings: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    overrides = [part for setting in settings for part in ("--set", setting)]
    return shop("monitor", "--runs", str(shop.runs), "--name", name, *overrides, *options)


MOVED = ("drift.numeric=0.0001", "drift.chance=1")
"""Any difference counts, so that there is an alarm and all before it is taken over from the first run."""


def test_monitoring_finds_the_champion_where_it_was(promoted: Path, shop: Shop) -> None:
    (teacher,) = shop.runs.glob(".kfp/first/distill-*/train-teacher/teacher")
    latest = (shop.runs / "latest").resolve()
    result = watch(shop, "steady", f"monitor.teacher={teacher}", options=("--fail-on-alarm",))
    outcome = json.loads((shop.runs / "steady" / "monitor.json").read_text())
    assert result.returncode == 0 and not outcome["alarm"], result.stdout + result.stderr
    assert outcome["champion"] == json.loads((promoted / "verdict.json").read_text())["candidate"]["id"]
    assert [check["name"] for check in outcome["checks"]] == ["drift", "disagreement"]
    assert outcome["disagreement"]["ci_low"] <= outcome["disagreement"]["rise"] <= outcome["disagreement"]["ci_high"]
    metrics = (shop.runs / "steady" / "monitor" / "metrics.prom").read_text()
    assert 'distilrank_monitor_alarm{check="drift"} 0.0' in metrics and "distilrank_monitor_time_seconds" in metrics
    assert (shop.runs / "steady" / "monitor" / "summary.html").exists() and (shop.runs / "latest").resolve() == latest


def test_a_finished_monitoring_run_is_not_overwritten(promoted: Path, shop: Shop) -> None:
    before = (shop.runs / "steady" / "monitor.json").read_bytes()
    result = watch(shop, "steady")
    assert result.returncode == 2 and "choose another --name" in result.stderr
    assert (shop.runs / "steady" / "monitor.json").read_bytes() == before


def test_what_is_no_pipeline_is_refused_before_anything_is_made(shop: Shop) -> None:
    result = shop.run("nothing", options=("--pipeline", str(ROOT / "README.md")))
    assert result.returncode == 2 and "README.md: not a compiled pipeline" in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (shop.runs / "nothing").exists()


def test_an_alarm_sets_the_exit_status_and_starts_a_run(promoted: Path, shop: Shop) -> None:
    registry = (shop.registry / "aliases" / "champion.json").read_bytes()
    result = watch(
        shop, "moved", *MOVED, "monitor.retrain=on_alarm", "gate.min_metrics.ndcg_at_10=1", options=("--fail-on-alarm",)
    )
    assert result.returncode == 3, result.stdout + result.stderr
    outcome = json.loads((shop.runs / "moved" / "monitor.json").read_text())
    assert outcome["alarm"] and outcome["disagreement"] is None
    verdict = json.loads((shop.runs / "moved" / "verdict.json").read_text())
    pages = [(shop.runs / "moved" / part / "summary.html").read_text() for part in ("", "monitor")]
    assert "The candidate" in pages[0] and "The candidate" not in pages[1]
    assert verdict["outcome"] == "unchanged" and (shop.registry / "aliases" / "champion.json").read_bytes() == registry
    assert (shop.runs / "latest").resolve().name == "moved"


def test_monitoring_needs_a_champion_and_its_own_teacher(promoted: Path, shop: Shop) -> None:
    for name, setting, message in (
        ("none", f"registry.uri={shop.folder / 'nobody'}", "no champion yet"),
        ("other", f"monitor.teacher={promoted / 'student'}", "but the champion v"),
    ):
        result = watch(shop, name, setting)
        assert result.returncode == 2 and message in result.stderr, result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_run_does_not_overwrite_another(promoted: Path, shop: Shop) -> None:
    before = (promoted / "verdict.json").read_bytes()
    result = shop.run("first")
    assert result.returncode == 2 and "choose another --name" in result.stderr
    assert (promoted / "verdict.json").read_bytes() == before


def test_a_damaged_champion_is_named_before_the_teacher_trains(promoted: Path, shop: Shop) -> None:
    verdict = json.loads((promoted / "verdict.json").read_text())
    weights = shop.registry / "versions" / verdict["candidate"]["id"] / "student" / "model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.chmod(0o644)
        weights.write_bytes(whole[:-1] + b"x")
        result = shop.run("damaged")
    finally:
        weights.write_bytes(whole)
    assert result.returncode == 2 and "model.safetensors: digest" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_split_that_would_test_the_champion_on_its_training_queries_is_refused(promoted: Path, shop: Shop) -> None:
    result = shop.run("resalted", "prepare.salt=other")
    assert result.returncode == 2 and "prepare.salt is 'other', but the champion" in result.stderr, result.stderr


def test_a_run_that_is_stopped_stops_its_stages(shop: Shop) -> None:
    command = [sys.executable, "-m", "pipelines", "run", "--config", str(shop.config), "--runs", str(shop.runs)]
    process = subprocess.Popen(
        [*command, "--name", "stopped", "--no-cache"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "prepare" in line and "started" in line:
            stages = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            break
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in rest
    _, alive = psutil.wait_procs(stages, timeout=10)
    assert stages and not alive
    assert not (shop.runs / "stopped" / "verdict.json").exists()
