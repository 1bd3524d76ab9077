"""Sealed folders and records of stages: what is read is what was written, or one line says that it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

import distilrank
from distilrank import cli
from distilrank.config import Gate
from distilrank.core import artifacts, progress
from distilrank.core.artifacts import seals
from distilrank.core.errors import InputError, RunStopped
from distilrank.evaluation.judged import Judged

DEEP = "[" * 200_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    artifacts.write_text(made / "large.bin", "weights")
    artifacts.write_text(made / "deeper" / "small.json", "{}")
    artifacts.seal(made)
    return made


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed, those that were just written being taken for settled."""
    names: list[str] = []
    digest_file = artifacts.digest_file
    monkeypatch.setattr(seals, "SETTLED_SECONDS", -60.0)
    monkeypatch.setattr(seals, "digest_file", lambda path: names.append(path.name) or digest_file(path))
    return names


# Bytes ------------------------------------------------------------------------------------------------------------


def test_bytes_are_verified_once_in_a_process_while_they_stay(folder: Path, hashed: list[str]) -> None:
    digest = artifacts.verify(folder)
    assert sorted(hashed) == ["large.bin", "small.json"]
    assert artifacts.verify(folder) == artifacts.verify(folder, ["large.bin"]) == digest and len(hashed) == 2
    assert artifacts.verify(folder, again=True) == digest and len(hashed) == 4
    status = (folder / "large.bin").stat()
    (folder / "large.bin").write_text("Weights")
    os.utime(folder / "large.bin", ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time
    with pytest.raises(InputError, match=r"large\.bin: digest .* differs from the recorded .*; the file is corrupt"):
        artifacts.verify(folder)


def test_a_file_that_was_changed_a_moment_ago_is_hashed_each_time(folder: Path, hashed: list[str]) -> None:
    seals.SETTLED_SECONDS = 3600.0  # the fixture restores it
    artifacts.verify(folder)
    artifacts.verify(folder)
    assert len(hashed) == 4


def test_silent_disk_damage_is_detected_by_verifying_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seals, "SETTLED_SECONDS", -60.0)
    artifacts.verify(folder)
    monkeypatch.setattr(seals, "digest_file", lambda path: "0" * 64)
    artifacts.verify(folder)
    with pytest.raises(InputError, match="differs from the recorded"):
        artifacts.verify(folder, again=True)


@pytest.mark.parametrize("only", [None, ["large.bin"]])
def test_a_seal_whose_list_was_changed_along_with_a_file_is_refused(folder: Path, only: list[str] | None) -> None:
    artifacts.write_text(folder / "large.bin", "other")
    sealed = artifacts.read_json(folder / artifacts.SEAL)
    sealed["files"]["large.bin"] = artifacts.digest_file(folder / "large.bin")
    artifacts.write_json(folder / artifacts.SEAL, sealed)
    with pytest.raises(InputError, match=r"digest\.json: its digest does not match its own list of files"):
        artifacts.verify(folder, only)


# Stages -----------------------------------------------------------------------------------------------------------


def test_a_stage_begins_with_the_bytes_of_its_inputs(folder: Path, tmp_path: Path) -> None:
    (folder / "large.bin").write_text("Weights")
    inputs: artifacts.Inputs = {"several": [folder], "one": folder}
    for only in (None, {"several": ["deeper/small.json"]}):
        with (
            pytest.raises(InputError, match=rf"input {'one' if only else 'several'}: .*large\.bin: digest"),
            artifacts.stage("gate", tmp_path / "out", config=Gate(), inputs=inputs, only=only),
        ):
            pytest.fail("the body runs on damaged inputs")
    assert not (tmp_path / "out").exists()
    with artifacts.stage("gate", tmp_path / "out", config=Gate(), inputs={"one": folder}, only={"one": []}):
        pass


def test_an_attempt_that_fails_leaves_no_seal_of_the_one_before(folder: Path) -> None:
    with pytest.raises(RunStopped), artifacts.stage("gate", folder, config=Gate()):
        raise RunStopped("later")
    assert not artifacts.is_sealed(folder)


def test_a_record_belongs_to_the_results_that_it_was_written_with(folder: Path, tmp_path: Path) -> None:
    artifacts.write_record(folder, {"inputs": {"student": "a" * 64}})
    artifacts.check_made_of(folder, {"student": "a" * 64})
    with pytest.raises(InputError, match=r"made: made with student a{13}, expected b{13}"):
        artifacts.check_made_of(folder, {"student": "b" * 64})
    with pytest.raises(InputError, match=r"made with teacher that its record does not tell, expected b{13}"):
        artifacts.check_made_of(folder, {"teacher": "b" * 64})
    artifacts.write_text(folder / "large.bin", "other")
    artifacts.seal(folder)
    with pytest.raises(InputError, match=r"stage\.json: is the record of other results \(\w{12}\), expected that of"):
        artifacts.read_record(folder)
    (folder / artifacts.SEAL).unlink()
    with pytest.raises(InputError, match="expected that of no seal"):
        artifacts.read_record(folder)


def test_judgements_that_were_changed_after_they_were_sealed_are_not_read(tmp_path: Path) -> None:
    for name in ("test.parquet", "protocol.json"):
        artifacts.write_text(tmp_path / name, "{}")
    artifacts.seal(tmp_path)
    for name in ("protocol.json", "test.parquet"):
        (tmp_path / name).write_text("[]")
        with pytest.raises(InputError, match=rf"{name}: digest .* differs"):
            Judged.read(tmp_path / "test.parquet")


# JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEEP, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "not JSON"),
        ("[1, 2]", r"holds \[1, 2\], expected a JSON object"),
    ],
)
def test_what_is_no_json_object_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(InputError, match=rf"file\.json: .*{message}") as caught:
        artifacts.read_json(tmp_path / "file.json")
    assert len(str(caught.value)) < 400


# A full disk ------------------------------------------------------------------------------------------------------


def fill_a_file() -> None:
    duckdb.sql("COPY (SELECT range FROM range(9)) TO '/dev/full' (FORMAT csv)")


def fill_temporary_files() -> None:
    connection = duckdb.connect()
    connection.execute("SET memory_limit = '4MiB'; SET threads = 1; SET max_temp_directory_size = '0KiB'")
    connection.execute("CREATE TABLE t AS SELECT md5(range::VARCHAR) AS m FROM range(300000)")


def fill_by_python() -> None:
    with open("/dev/full", "w") as handle:
        handle.write("x")


FULL = pytest.mark.parametrize("fill", [fill_a_file, fill_temporary_files, fill_by_python])


@FULL
def test_a_full_disk_ends_a_stage_as_bad_input(fill: object, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with (
        pytest.raises(InputError, match=r"cannot be used \(.*(No space left on device|failed to offload data block)"),
        artifacts.stage("prepare", tmp_path, config=Gate()),
    ):
        fill()  # type: ignore[operator]
    lines = [event for line in capsys.readouterr().out.splitlines() if (event := progress.parse(line))]
    assert [event.event for event in lines] == ["started", "bad input"] and "\n" not in lines[1].text


@FULL
def test_a_full_disk_ends_a_command_with_status_2_and_a_line(
    fill: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cli, "app", lambda args: fill())  # type: ignore[operator]
    with pytest.raises(SystemExit) as exit:
        cli.main([])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1 and "cannot be used" in error


def test_another_failure_stays_a_failure(tmp_path: Path) -> None:
    with pytest.raises(duckdb.BinderException), artifacts.stage("prepare", tmp_path, config=Gate()):
        duckdb.sql("SELECT absent FROM range(1)")


@pytest.mark.parametrize(
    "name",
    ["__init__.py", "core/errors.py", "modeling/scorer.py", "data/sources/esci.py", "rendering/templates/style.css.j2"],
)
def test_the_digest_of_the_code_is_of_every_package(tmp_path: Path, name: str, code: tuple[Path, str]) -> None:
    package, digest = code
    changed = tmp_path / "distilrank"
    shutil.copytree(package, changed)
    with (changed / name).open("a") as file:
        file.write("\n")
    assert digest_of_code(tmp_path) != digest


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the package, and its digest."""
    folder = tmp_path_factory.mktemp("code")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(distilrank.__file__).parent, folder / "distilrank", ignore=ignored)
    assert digest_of_code(folder) == artifacts.code_digest()
    return folder / "distilrank", digest_of_code(folder)


def digest_of_code(folder: Path) -> str:
    """What the package in `folder` says of itself."""
    program = "from distilrank.core import artifacts; print(artifacts.code_digest())"
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()
