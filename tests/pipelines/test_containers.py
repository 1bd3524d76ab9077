"""Containers of stages: mounts, network, privileges; benchmarks/containers.py has what needs a Docker engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distilrank.config import Config, load
from distilrank.core import artifacts
from distilrank.core.errors import InputError
from pipelines.containers import HOME, arguments, mounts

ROOT = Path(__file__).parents[2]
NOWHERE = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)


def test_a_stage_sees_what_the_configuration_names_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    config = written(tmp_path)
    shown = mounts(config, Path("runs"), "none")
    assert shown.writable == {
        tmp_path / name for name in ("registry", "runs/.kfp", "runs/.progress", "cache/distilrank")
    }
    blob = tmp_path / "blobs" / "weights"
    assert shown.readable == {tmp_path / "judgements.csv", tmp_path / "catalogue.csv", tmp_path / "encoder", blob}
    described = {mount["Target"]: mount for mount in shown.to_docker()}
    assert (
        described[str(tmp_path / "judgements.csv")]["ReadOnly"]
        and not described[str(tmp_path / "registry")]["ReadOnly"]
    )


def test_a_stage_has_no_rights_no_network_and_nothing_to_write_to_but_its_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.chdir(tmp_path)
    made = arguments(written(tmp_path), Path("runs"), "none")
    assert (made["network_mode"], made["read_only"], made["cap_drop"]) == ("none", True, ["ALL"])
    assert made["user"] == f"{os.getuid()}:{os.getgid()}" and made["working_dir"] == str(tmp_path)
    assert made["environment"]["XDG_CACHE_HOME"] == str(tmp_path / "cache") and "HF_TOKEN" not in made["environment"]
    assert set(made["tmpfs"]) == {"/tmp", HOME}
    assert all(Path(mount["Source"]).exists() for mount in made["mounts"])  # the engine refuses what is not there
    assert arguments(written(tmp_path), Path("runs"), "host")["environment"]["HF_TOKEN"] == "secret"


def test_what_needs_a_network_is_reported_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = written(tmp_path, teacher={"model": "hub:org/name@main"})
    with pytest.raises(InputError, match=r"teacher\.model is 'hub:org/name@main'.* expected --network host"):
        arguments(config, Path("runs"), "none")
    assert not (tmp_path / "runs").exists()
    assert arguments(config, Path("runs"), "host")["environment"]["HF_HOME"]


def test_an_engine_that_is_not_running_is_one_line_and_nothing_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "run", "--config", "configs/demo.yaml", "--containers"]
    result = run(
        [*command, "--runs", str(tmp_path / "runs"), "--name", "none", "--set", f"registry.uri={tmp_path}"], **NOWHERE
    )
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert "no Docker engine responds at unix:///nowhere/docker.sock" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_network_means_nothing_without_containers() -> None:
    result = run([sys.executable, "-m", "pipelines", "run", "--config", "configs/demo.yaml", "--network", "host"])
    assert result.returncode == 2 and "--network host" in result.stderr and "--containers" in result.stderr


def written(folder: Path, **sections: dict[str, str]) -> Config:
    """A configuration with files of its own, a model folder with a link out of it among them."""
    (folder / "encoder").mkdir(exist_ok=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for name in ("judgements.csv", "catalogue.csv", "secret.csv", "blobs/weights"):
        (folder / name).write_text("")
    link = folder / "encoder" / "model.safetensors"
    link.unlink(missing_ok=True)
    link.symlink_to("../blobs/weights")
    values = {
        "data": {
            "source": "tables",
            "judgements": str(folder / "judgements.csv"),
            "catalogue": "catalogue.csv",
            "rating_min": 0,
            "rating_max": 1,
            "relevant_from": 1,
        },
        "student": {"model": str(folder / "encoder")},
        "compute": {"checkpoint_dir": "runs/.progress"},
        "registry": {"uri": "registry"},
        **sections,
    }
    artifacts.write_text(folder / "own.yaml", yaml.safe_dump(values))
    return load(folder / "own.yaml")
