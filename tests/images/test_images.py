"""The images' recipe, and how `--containers` starts them; what needs a Docker engine is in benchmarks/containers.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from distilrank.config import Config, load
from distilrank.core import artifacts
from distilrank.core.errors import InputError
from images import build
from pipelines.containers import HOME, arguments, mounts

ROOT = Path(__file__).parents[2]
NOWHERE = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines put together."""
    text = re.sub(r"(?m)^#.*\n", "", build.DOCKERFILE.read_text())
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line]  # type: ignore[misc]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each build stage by its name; the first of each is its FROM."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, argument in instructions():
        if name == "FROM":
            current = found.setdefault(argument.split(" AS ")[1], [])
        elif not found:
            continue
        current.append((name, argument))
    return found


def lineage(stage: str) -> list[tuple[str, str]]:
    """The instructions of a stage and all that it is made from."""
    own = stages()[stage]
    parent = own[0][1].split()[0]
    return [*(lineage(parent) if parent in stages() else []), *own]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)


def test_hadolint_has_nothing_to_say() -> None:
    result = run([str(Path(sys.executable).parent / "hadolint"), str(build.DOCKERFILE)])
    assert result.returncode == 0, result.stdout + result.stderr


def test_everything_comes_from_one_base_by_digest() -> None:
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", build.default_base())
    parents = {argument.split()[0] for name, argument in instructions() if name == "FROM"}
    assert parents <= {"${BASE}", *stages()}
    outside = [argument for name, argument in instructions() if name == "COPY" and "--from=" in argument]
    assert all(re.search(r"--from=(\S+)", argument)[1] in stages() for argument in outside)  # type: ignore[index]


@pytest.mark.parametrize("target", build.TARGETS)
def test_an_image_installs_nothing_and_runs_as_nobody_in_particular(target: str) -> None:
    made = lineage(target)
    assert [argument for name, argument in made if name == "USER"][-1] == "10001:10001"
    after = [name for name, argument in made[made.index(("USER", "10001:10001")) :]]
    assert "RUN" not in after and "ADD" not in after
    assert not any("pip" in argument.split() or "install.sh" in argument for name, argument in made if name == "RUN")
    labels = next(argument for name, argument in made if name == "LABEL")
    for label in ("title", "description", "licenses", "version", "revision", "source"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert f"HOME={HOME}" in " ".join(argument for name, argument in made if name == "ENV")


def test_no_library_in_an_image_reports_to_its_makers() -> None:
    (given,) = (argument for name, argument in stages()["runtime"] if name == "ENV")
    variables = dict(pair.split("=", 1) for pair in given.split())
    program = (
        "import distilrank, os\n"
        "from evidently.telemetry import event_logger\n"
        "from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY\n"
        "print(event_logger.is_enabled(), HF_HUB_DISABLE_TELEMETRY, os.environ['ORT_DISABLE_TELEMETRY'])\n"
    )
    result = run([sys.executable, "-c", program], **{name: variables[name] for name in variables if name != "PATH"})
    assert result.stdout.split() == ["False", "True", "1"], result.stderr


def test_each_image_gets_the_requirements_of_its_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for target in build.TARGETS:
        printed = run([sys.executable, "images/requirements.py", target])
        assert printed.stdout.splitlines() == project["dependencies"] + project["optional-dependencies"][target]
    assert not any(name.startswith("torch") for name in project["optional-dependencies"]["ops"])
    assert not {"torch", "transformers"} & set(project["optional-dependencies"]["serve"])


def test_what_nobody_pinned_fails_the_build(tmp_path: Path) -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("pydantic==")]
    (tmp_path / "constraints.txt").write_text("\n".join([*pins, "pydantic==0.1"]))
    result = run([sys.executable, "images/pinned.py", str(tmp_path / "constraints.txt")])
    assert result.returncode == 1 and re.search(r"does not pin .*pydantic==\d", result.stderr), result.stderr


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


def test_what_needs_a_network_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("options", [[], ["--base-image"]])
def test_images_are_not_built_without_an_engine(options: list[str], tmp_path: Path) -> None:
    docker = tmp_path / "docker"  # this test is of what happens beyond the client, where there is none too
    docker.write_text("#!/bin/sh\nexit 1\n")
    docker.chmod(0o755)
    result = run([sys.executable, "images/build.py", *options], PATH=f"{tmp_path}:{os.environ['PATH']}", **NOWHERE)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert "no Docker engine responds" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["server"], "server: no such image, expected one of ops, train, serve"),
        (["--ca", "/nowhere/ca.crt"], "--ca /nowhere/ca.crt: no such file"),
        (["--wheels", "/nowhere"], "--wheels /nowhere: no such folder"),
        (["--version", "a/b"], "--version a/b: not a tag"),
        (["--repository", "example.org/Search"], "--repository example.org/Search: expected"),
    ],
)
def test_an_option_that_no_build_could_use_is_one_line(options: list[str], message: str) -> None:
    result = run([sys.executable, "images/build.py", *options], PIP_CERT="", **NOWHERE)
    assert result.returncode == 2 and result.stderr.startswith(f"error: {message}"), result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_offered_wheels_are_there_during_the_build_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, offered = tmp_path / "kept", tmp_path / "offered"
    for folder, names in (
        (kept, ["numpy-1-any.whl"]),
        (offered, ["torch-2-any.whl", "numpy-1-any.whl", "own-1-any.whl"]),
    ):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    monkeypatch.setattr(build, "WHEELS", kept)
    with pytest.raises(KeyboardInterrupt), build._offering_wheels(str(offered)) as found:
        assert found == ["numpy-1-any.whl", "torch-2-any.whl"]  # what the constraints do not name stays away
        raise KeyboardInterrupt
    assert [path.name for path in kept.iterdir()] == ["numpy-1-any.whl"]


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
