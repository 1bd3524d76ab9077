"""The `distilrank` command, run as people run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilrank import cli, config, registry
from distilrank.config import reference
from distilrank.core import artifacts
from distilrank.core.errors import RunStopped

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "evidently", "pandas", "pyarrow", "numpy", "scipy", "sklearn", "kfp", "matplotlib"}


class Ran:
    """What one run of the command left: exit status, standard output, standard error."""

    def __init__(self, status: Any, out: str, err: str) -> None:
        self.status, self.out, self.err = status or 0, out, err

    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as exit:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(exit.value.code, captured.out, captured.err)

    return call


def complains(ran: Ran, *words: str, status: int = 2) -> None:
    """The run failed with `status` and one line on standard error that has all `words`."""
    assert ran.status == status
    assert len(ran.err.strip().splitlines()) == 1 and ran.err.startswith("distilrank: "), ran.err
    for word in words:
        assert word in ran.err, ran.err


# The command itself -----------------------------------------------------------------------------------------------


def test_help_and_registry_answer_without_anything_heavy(tmp_path: Path) -> None:
    script = f"""
import sys
from distilrank import cli
for arguments in (["--help"], ["config"], ["registry", "list"], ["registry", "verify"]):
    try:
        cli.main(arguments)
    except SystemExit as exit:
        assert not exit.code, exit.code
loaded = {{name.split(".")[0] for name in sys.modules}} & {HEAVY!r}
assert not loaded, loaded
"""
    (tmp_path / "registry" / "versions").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_module_runs_as_the_command_and_errors_have_no_traceback(tmp_path: Path) -> None:
    def module(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "distilrank", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert module("--version").stdout.strip() == "0.2.0"
    failed = module("registry", "list", "--registry", "s3://shop/models")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == (
        "distilrank: registry 's3://shop/models': no backend for s3://, expected a local folder (a path, or file://) "
        "or gs://BUCKET/PREFIX\n"
    )
    assert module("registry", "burn").returncode == 2


def test_help_teaches_by_example(run: Any) -> None:
    text = run("--help").out
    for example in (
        "distilrank demo-data --output shop",
        "distilrank preflight --config configs/demo.yaml",
        "distilrank score --model champion --input pairs.csv --output out.parquet",
        "distilrank registry rollback --reason",
        "Exit status: 0 done, 2 bad input or configuration, 1 a failure.",
    ):
        assert example in text
    assert run().status == 2  # no command


def test_a_stopped_run_and_a_refusing_disk_exit_as_documented(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: Exception) -> Ran:
        def connect(section: config.Registry) -> None:
            raise error

        monkeypatch.setattr(registry, "connect", connect)
        return run("registry", "list")

    complains(fails(RunStopped("the teacher is\nnot worth it")), "the teacher is not worth it", status=1)
    complains(fails(PermissionError(13, "Permission denied", "/x")), "/x: cannot be used (Permission denied)")
    with pytest.raises(OSError, match="Too many"):  # a failure of ours keeps its traceback
        fails(OSError(24, "Too many open files"))


# Configuration ----------------------------------------------------------------------------------------------------


def keys(model: type, path: str = "") -> set[str]:
    """Keys of all settings, derived in another way: from the JSON schema's references."""
    schema = model.model_json_schema()  # type: ignore[attr-defined]

    def walk(node: dict[str, Any], path: str) -> set[str]:
        names = set()
        for name, field in node.get("properties", {}).items():
            options = [field, *field.get("oneOf", [])]
            targets = [option["$ref"].rsplit("/", 1)[1] for option in options if "$ref" in option]
            key = f"{path}.{name}" if path else name
            inner = [walk(schema["$defs"][target], key) for target in targets]
            names |= set().union(*inner) if inner else {key}
        return names

    return walk(schema, path)


def test_every_setting_is_printed_once_with_its_default(run: Any) -> None:
    page = run("config", "--markdown").out
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    within = {key for key in listed if "[]" in key}
    assert set(listed) - within == keys(config.Config)
    assert {key.partition("[]")[0] for key in within} == {  # an item's keys stand where the first list of them does
        "cluster.ops.tolerations",
        "cluster.volumes",
        "cluster.secrets",
    }
    assert "cluster.secrets[].name" in within
    assert [key for key in set(listed) if listed.count(key) > 1 and not key.startswith("data.")] == []
    lines = page.splitlines()
    assert (
        "| `gate.min_queries` | whole number | `30` | ≥ 3 | Fewest test queries for a decision; "
        "one or two queries have no interval. |" in lines
    )
    assert '| `teacher.text.separator` | text | `" \\| "` |' in page
    assert "| `data.path` | text | required |" in page
    assert all(line.count(" | ") + line.count("|  |") >= 4 for line in lines if line.startswith("| `"))


def test_defaults_are_those_that_a_run_gets() -> None:
    values = config.Config(data={"source": "demo_shop"}).model_dump(mode="json")  # type: ignore[arg-type]
    for group in reference.groups():
        for setting in group.settings:
            if setting.default == "required" or group.source not in ("", "source: demo_shop") or "[]" in setting.key:
                continue
            value = values
            for part in setting.key.split("."):
                value = value[part]
            assert json.loads(setting.default) == value, setting.key


def test_a_section_alone_is_a_table(run: Any) -> None:
    text = run("config", "teacher").out
    assert "teacher.lora.rank" in text and "student.model" not in text
    assert '"all-linear"' in text
    complains(run("config", "teach"), "no section 'teach'", "teacher.lora")


# Around a run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def student(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed student of random weights."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from distilrank.modeling import scorer

    folder = tmp_path_factory.mktemp("student")
    AutoModelForSequenceClassification.from_pretrained(models / "encoder", num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(models / "encoder").save_pretrained(folder)
    encoder = scorer.load_encoder(folder, config.Text())
    scorer.describe(folder, role="student", encoder=encoder, text=config.Text(), tokens=512, base="encoder")
    artifacts.seal(folder)
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    lines = [
        "query,title,brand,note",
        "red sofa,red leather couch,acme,1",
        'drill,"bit, steel",,2',
        "red sofa,lamp,acme,3",
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "pairs.csv"


def test_score_by_folder_and_by_alias(run: Any, student: Path, pairs: Path, tmp_path: Path) -> None:
    ran = run("score", "--model", student, "--input", pairs, "--output", "scores.parquet", "--precision", "fp32")
    assert (ran.status, ran.out) == (0, "scores.parquet: 3 rows\n")
    assert "distilrank | score" in ran.err
    table = pq.read_table("scores.parquet")
    assert table["note"].to_pylist() == ["1", "2", "3"]
    scores = table["score"].to_numpy()
    assert np.isfinite(scores).all() and len(set(scores.tolist())) == 3

    backend = registry.open("registry")
    name = registry.version_id(artifacts.sealed_digest(student))
    artifacts.write_json(tmp_path / "version" / "manifest.json", {"id": name})
    (tmp_path / "version" / "student").symlink_to(student)
    backend.publish(tmp_path / "version", name)
    backend.move(registry.CHAMPION, name, "")
    assert run("score", "--model", "champion", "--input", pairs, "--output", "a.csv", "--precision", "fp32").status == 0
    again = pa.csv.read_csv("a.csv")["score"].to_numpy()
    np.testing.assert_allclose(again, scores, atol=1e-5)


def test_score_adds_the_probability(run: Any, student: Path, pairs: Path, tmp_path: Path) -> None:
    calibrated = shutil.copytree(student, tmp_path / "calibrated")
    path = calibrated / "distilrank.json"
    calibration = {"method": "platt", "slope": 2.0, "intercept": -1.0}
    artifacts.write_json(path, artifacts.read_json(path) | {"calibration": calibration})
    artifacts.seal(calibrated)
    ran = run("score", "--model", calibrated, "--input", pairs, "--output", "a.csv", "--probability", "--threads", "1")
    assert ran.status == 0, ran.err
    table = pa.csv.read_csv("a.csv")
    assert table.column_names == ["query", "title", "brand", "note", "score", "probability"]
    expected = 1 / (1 + np.exp(1 - 2 * table["score"].to_numpy()))
    np.testing.assert_allclose(table["probability"].to_numpy(), expected, atol=1e-6)


def test_score_checks_the_seal_of_a_folder(run: Any, student: Path, pairs: Path, tmp_path: Path) -> None:
    def score() -> Ran:
        return run("score", "--model", folder, "--input", pairs, "--output", "a.csv", "--precision", "fp32")

    folder = shutil.copytree(student, tmp_path / "student")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    complains(score(), f"{weights}: digest", "the file is corrupt")
    assert not (tmp_path / "a.csv").exists()
    (folder / artifacts.SEAL).unlink()  # a person's own folder, or one that a killed run has left
    ran = score()
    assert ran.status == 0 and (tmp_path / "a.csv").exists()
    assert f"{folder}: has no digest.json, so its files are used without a check" in ran.err
    shutil.copyfile(student / artifacts.SEAL, folder / artifacts.SEAL)
    shutil.copyfile(student / "model.safetensors", weights)
    assert "unchecked" not in score().err


def test_score_names_what_is_wrong(run: Any, student: Path, pairs: Path, tmp_path: Path) -> None:
    def score(model: object = student, source: object = pairs, output: str = "scores.csv", *more: str) -> Ran:
        return run("score", "--model", model, "--input", source, "--output", output, *more)

    complains(score(model="champion"), "champion", "no such")
    complains(score(source="absent.csv"), "absent.csv: no such file")
    complains(score(output="scores.txt"), "scores.txt: expected a .csv or .parquet file")
    complains(score(student, pairs, "scores.csv", "--precision", "fp8"), "precision", "'bf16' or 'fp32'", "'fp8'")
    complains(score(student, pairs, "scores.csv", "--backend", "jax"), "backend 'jax'", "onnx-int8")
    complains(score(student, pairs, "scores.csv", "--backend", "onnx"), "onnx/model.onnx: no such file")
    complains(score(student, pairs, "scores.csv", "--probability"), f"{student}: is not calibrated")
    assert not (tmp_path / "scores.csv").exists()
    assert run("score", "--model", student).status == 2


def settings(folder: Path, models: Path, **more: Any) -> Path:
    shop = {"source": "demo_shop", "products": 200, "queries": 40, "judged_queries": 20, "searches": 300}
    values = {
        "data": shop,
        "teacher": {"model": str(models / "decoder")},
        "student": {"model": str(models / "encoder"), "export": {"onnx": False}},
    }
    artifacts.write_json(folder / "run.yaml", {**values, **more})  # JSON is YAML
    return folder / "run.yaml"


def test_preflight_prints_what_a_run_would_use(run: Any, models: Path, tmp_path: Path) -> None:
    path = settings(tmp_path, models)
    resolved = run("preflight", "--config", path, "--json").json()
    assert len(resolved["data_digest"]) == 64 and resolved["champion"] == ""
    narrower = run("preflight", "--config", path, "--json", "--set", "window.newest_days=3").json()
    assert narrower["newest_start"] > resolved["newest_start"]
    ran = run("preflight", "--config", path)
    assert ran.status == 0 and resolved["data_digest"] in ran.out and "ready to run" in ran.out
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["registry", "run.yaml"]


def test_preflight_names_what_is_wrong(run: Any, models: Path, tmp_path: Path) -> None:
    path = settings(tmp_path, models)
    complains(run("preflight", "--config", "absent.yaml"), "absent.yaml: no such configuration file")
    complains(run("preflight", "--config", path, "--set", "gate.max_ec=1"), "unknown key 'gate.max_ec'", "'max_ece'")
    complains(run("preflight", "--config", path, "--set", "student.model=nowhere"), "'nowhere'", "no such folder")
    complains(run("preflight", "--config", path, "--set", "registry.uri=gs://x"), "gs://")
    layers = ("--set", "student.layers=9")
    complains(run("preflight", "--config", path, *layers), "student.model", "student.layers: 9, but the model has 2")


def test_demo_data_writes_files_that_preflight_accepts(run: Any, models: Path, tmp_path: Path) -> None:
    ran = run("demo-data", "--output", "shop", "--config", settings(tmp_path, models))
    assert ran.status == 0, ran.err
    assert ran.out.startswith("shop/config.yaml: ")
    chosen = ("--set", f"teacher.model={models / 'decoder'}", "--set", f"student.model={models / 'encoder'}")
    resolved = run("preflight", "--config", "shop/config.yaml", "--json", *chosen).json()
    assert {Path(file).name for file in resolved["files"]} == {"judgements.csv", "catalogue.csv"}
    assert [Path(file).name for file in resolved["log"]] == ["logs.csv"]
    other = settings(tmp_path, models, data={"source": "home_depot", "path": "train.csv"})
    complains(run("demo-data", "--output", "shop", "--config", other), "data.source is 'home_depot'", "'demo_shop'")
