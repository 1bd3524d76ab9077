"""The Dockerfile and the build script of the images; benchmarks/containers.py has what needs a Docker engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from images import build
from pipelines.containers import HOME

ROOT = Path(__file__).parents[2]
NOWHERE = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines put together."""
    text = re.sub(r"(?m)^#.*\n", "", build.DOCKERFILE.read_text())
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line]  # type: ignore[misc]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each build stage by its name; the first of each is its FROM."""
    by_stage: dict[str, list[tuple[str, str]]] = {}
    for name, argument in instructions():
        if name == "FROM":
            current = by_stage.setdefault(argument.split(" AS ")[1], [])
        elif not by_stage:
            continue
        current.append((name, argument))
    return by_stage


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
    (pairs,) = (argument for name, argument in stages()["runtime"] if name == "ENV")
    variables = dict(pair.split("=", 1) for pair in pairs.split())
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
    wheel_folder, offered = tmp_path / "kept", tmp_path / "offered"
    for folder, names in (
        (wheel_folder, ["numpy-1-any.whl"]),
        (offered, ["torch-2-any.whl", "numpy-1-any.whl", "own-1-any.whl"]),
    ):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    monkeypatch.setattr(build, "WHEELS", wheel_folder)
    with pytest.raises(KeyboardInterrupt), build._offering_wheels(str(offered)) as offered_names:
        assert offered_names == ["numpy-1-any.whl", "torch-2-any.whl"]  # what the constraints do not name stays away
        raise KeyboardInterrupt
    assert [path.name for path in wheel_folder.iterdir()] == ["numpy-1-any.whl"]
