"""Folders of local runs: one process at a time, killed runs, complete and incomplete folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distilrank.core import artifacts
from distilrank.core.errors import InputError
from pipelines import run_folder

HOLD = """
import sys, time
from pathlib import Path
from pipelines import run_folder
with run_folder.reserve(Path(sys.argv[1]), "nightly") as folder:
    (folder / "run.log").write_text("at work")
    print("started", flush=True)
    time.sleep(60)
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_second_run_of_a_name_is_refused_while_the_first_is_alive(tmp_path: Path) -> None:
    first = python(HOLD, tmp_path)
    try:
        assert first.stdout is not None and first.stdout.readline() == "started\n"
        message = f"{tmp_path / 'nightly'}: a run of this name is in progress (process {first.pid}); wait for it, or"
        with pytest.raises(InputError, match="^" + message.replace("(", r"\(").replace(")", r"\)")) as error:
            run_folder.reserve(tmp_path, "nightly").__enter__()
        assert "\n" not in str(error.value)
        assert (tmp_path / "nightly" / "run.log").read_text() == "at work"
        with run_folder.reserve(tmp_path, "another") as folder:
            assert folder.is_dir()
    finally:
        first.kill()
        first.communicate()
    with run_folder.reserve(tmp_path, "nightly") as folder:  # the kernel has dropped the dead one's lock
        assert list(folder.iterdir()) == []
    assert not list(tmp_path.glob(".*.lock"))


def test_a_run_on_another_machine_is_named_with_it(tmp_path: Path) -> None:
    with run_folder.reserve(tmp_path, "nightly"):
        (tmp_path / ".nightly.lock").write_text(json.dumps([7, "node-2"]))
        with pytest.raises(InputError, match=r"in progress \(process 7 on node-2\)"):
            run_folder.reserve(tmp_path, "nightly").__enter__()
        (tmp_path / ".nightly.lock").write_text("")  # locked, its owner not written yet
        with pytest.raises(InputError, match=r"in progress; wait for it"):
            run_folder.reserve(tmp_path, "nightly").__enter__()


def test_a_lock_is_taken_by_one_of_many(tmp_path: Path) -> None:
    """Owners remove the file while others open it: never do two hold the name at a time."""
    code = """
import os, sys, time
from pathlib import Path
from pipelines import run_folder
from distilrank.core.errors import InputError
runs, mark = Path(sys.argv[1]), Path(sys.argv[1]) / "mark"
until, taken = time.monotonic() + 3, 0
while time.monotonic() < until:
    try:
        descriptor = run_folder._lock(runs / ".x.lock")
    except BlockingIOError:
        continue
    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    mark.unlink()
    (runs / ".x.lock").unlink()
    os.close(descriptor)
    taken += 1
print(taken)
"""
    racers = [python(code, tmp_path) for _ in range(3)]
    outputs = [racer.communicate(timeout=120) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 3, outputs
    assert sum(int(output) for output, _ in outputs) > 50


def test_a_run_continues_where_the_file_system_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_folder.fcntl, "flock", refuse)
    with run_folder.reserve(tmp_path, "nightly") as folder:
        assert folder.is_dir()


def kfp_outputs(root: Path) -> Path:
    """What the stages of a finished run leave, of the least that is gathered."""
    files = {
        "drift": ("drift.json", "drift.html"),
        "evaluation": ("metrics.json",),
        "verdict": ("verdict.json",),
        "teacher": ("quality.json", "disagreements.csv"),
        "profile": ("profile.json", "profile.html"),
        "student": ("model.safetensors",),
        "judgements": ("judgements.parquet",),
        "labels": ("manifest.json",),
    }
    for name, contents in files.items():
        for file in contents:
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / file).write_text("{}")
        artifacts.seal(root / name)
    report = root / "render-report" / "report"
    report.mkdir(parents=True)
    (report / "report.html").write_text("<p>")
    artifacts.write_json(report / "inputs.json", {name: [str(root / name)] for name in files})
    artifacts.seal(report)
    return root


def test_the_verdict_is_gathered_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while its results are copied leaves a folder that a second attempt replaces."""
    made = kfp_outputs(tmp_path / "made")
    monkeypatch.setattr(run_folder.label_manifest, "combine", lambda folders: {})
    copies = ("copyfile", "copytree")
    count = 0

    def killed_after(limit: int) -> None:
        def counting(copy: object) -> object:
            def call(*arguments: object, **others: object) -> object:
                nonlocal count
                count += 1
                if count > limit:
                    raise KeyboardInterrupt
                return copy(*arguments, **others)  # type: ignore[operator]

            return call

        with monkeypatch.context() as patch:
            for name in copies:
                patch.setattr(run_folder.shutil, name, counting(getattr(run_folder.shutil, name)))
            with run_folder.reserve(tmp_path, "nightly") as folder:
                (folder / "run.log").touch()
                run_folder.collect_results(made, folder, 1.0, 1.0)

    for limit in range(100):
        count = 0
        try:
            killed_after(limit)
            break
        except KeyboardInterrupt:
            assert not run_folder.is_complete(tmp_path / "nightly"), limit
    assert limit > 8
    names = {path.name for path in (tmp_path / "nightly").iterdir()}
    assert {"verdict.json", "student", "evaluation", "judgements", "labels", "timings.json"} <= names
    with pytest.raises(InputError, match="a run of this name exists already"):
        run_folder.reserve(tmp_path, "nightly").__enter__()


def test_a_monitor_folder_is_complete_with_its_own_file(tmp_path: Path) -> None:
    """The run that answers an alarm leaves a verdict, and monitor.json comes after it."""
    (tmp_path / "monitor").mkdir()
    (tmp_path / "verdict.json").touch()
    assert not run_folder.is_complete(tmp_path)
    (tmp_path / "monitor.json").touch()
    assert run_folder.is_complete(tmp_path)
