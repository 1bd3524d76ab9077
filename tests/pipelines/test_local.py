"""Runs on this machine by their processes and folders: locks, ends by SIGKILL, what marks a folder as complete."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from distilrank.core import artifacts
from distilrank.core.errors import InputError
from pipelines import __main__, local

HOLD = """
import sys, time
from pathlib import Path
from pipelines import local
with local._reserving(Path(sys.argv[1]), "nightly") as folder:
    (folder / "run.log").write_text("at work")
    print("started", flush=True)
    time.sleep(60)
"""
PIPELINE = """
import sys
from kfp import dsl, local
from pipelines import processes

@dsl.component(base_image="python:3.11", install_kfp_package=False)
def sleep(path: str):
    import os, time
    with open(path + ".partial", "w") as handle:
        handle.write(str(os.getpid()))
    os.rename(path + ".partial", path)
    time.sleep(120)

@dsl.pipeline
def sleepers(first: str):
    sleep(path=first)

with processes.runner() as runner:
    local.init(runner, pipeline_root=sys.argv[1] + "/root", enable_caching=False)
    sleepers(first=sys.argv[1] + "/first") if sys.argv[2] == "pipeline" else sleep(path=sys.argv[1] + "/first")
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> str:
    until = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, f"{path.name} did not appear"
        time.sleep(0.05)
    return path.read_text()


def is_at_work(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # whoever adopts orphans may leave them unreaped
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("kind", ["component", "pipeline"])
def test_a_stage_ends_when_the_run_is_killed(tmp_path: Path, kind: str) -> None:
    """A component on its own is started by the main thread, the tasks of a pipeline by others."""
    (tmp_path / "sleepers.py").write_text(PIPELINE)  # KFP reads the source of components
    run = python("import runpy, sys; runpy.run_path(sys.argv[1] + '/sleepers.py', run_name='x')", tmp_path, kind)
    try:
        stage = psutil.Process(int(wait_for(tmp_path / "first", run)))
        processes = psutil.Process(run.pid).children(recursive=True)
        assert stage in processes
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    until = time.monotonic() + 1
    while alive := [process for process in processes if is_at_work(process)]:
        assert time.monotonic() < until, alive
        time.sleep(0.02)


def test_a_second_run_of_a_name_is_refused_while_the_first_is_alive(tmp_path: Path) -> None:
    first = python(HOLD, tmp_path)
    try:
        assert first.stdout is not None and first.stdout.readline() == "started\n"
        message = f"{tmp_path / 'nightly'}: a run of this name is in progress (process {first.pid}); wait for it, or"
        with pytest.raises(InputError, match="^" + message.replace("(", r"\(").replace(")", r"\)")) as error:
            local._reserving(tmp_path, "nightly").__enter__()
        assert "\n" not in str(error.value)
        assert (tmp_path / "nightly" / "run.log").read_text() == "at work"
        with local._reserving(tmp_path, "another") as folder:
            assert folder.is_dir()
    finally:
        first.kill()
        first.communicate()
    with local._reserving(tmp_path, "nightly") as folder:  # the kernel has dropped the dead one's lock
        assert list(folder.iterdir()) == []
    assert not list(tmp_path.glob(".*.lock"))


def test_a_run_on_another_machine_is_named_with_it(tmp_path: Path) -> None:
    with local._reserving(tmp_path, "nightly"):
        (tmp_path / ".nightly.lock").write_text(json.dumps([7, "node-2"]))
        with pytest.raises(InputError, match=r"in progress \(process 7 on node-2\)"):
            local._reserving(tmp_path, "nightly").__enter__()
        (tmp_path / ".nightly.lock").write_text("")  # locked, its owner not written yet
        with pytest.raises(InputError, match=r"in progress; wait for it"):
            local._reserving(tmp_path, "nightly").__enter__()


def test_a_lock_is_taken_by_one_of_many(tmp_path: Path) -> None:
    """Owners remove the file while others open it: never do two hold the name at a time."""
    code = """
import os, sys, time
from pathlib import Path
from pipelines import local
from distilrank.core.errors import InputError
runs, mark = Path(sys.argv[1]), Path(sys.argv[1]) / "mark"
until, taken = time.monotonic() + 3, 0
while time.monotonic() < until:
    try:
        descriptor = local._lock(runs / ".x.lock")
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


def test_a_run_goes_on_where_the_file_system_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(local.fcntl, "flock", refuse)
    with local._reserving(tmp_path, "nightly") as folder:
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
    monkeypatch.setattr(local.label_manifest, "combine", lambda folders: {})
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
                patch.setattr(local.shutil, name, counting(getattr(local.shutil, name)))
            with local._reserving(tmp_path, "nightly") as folder:
                (folder / "run.log").touch()
                local._gather(made, folder, 1.0, 1.0)

    for limit in range(100):
        count = 0
        try:
            killed_after(limit)
            break
        except KeyboardInterrupt:
            assert not local._is_complete(tmp_path / "nightly"), limit
    assert limit > 8
    names = {path.name for path in (tmp_path / "nightly").iterdir()}
    assert {"verdict.json", "student", "evaluation", "judgements", "labels", "timings.json"} <= names
    with pytest.raises(InputError, match="a run of this name is there already"):
        local._reserving(tmp_path, "nightly").__enter__()


def test_a_monitor_folder_is_complete_with_its_own_file(tmp_path: Path) -> None:
    """The run that answers an alarm leaves a verdict, and monitor.json comes after it."""
    (tmp_path / "monitor").mkdir()
    (tmp_path / "verdict.json").touch()
    assert not local._is_complete(tmp_path)
    (tmp_path / "monitor.json").touch()
    assert local._is_complete(tmp_path)


@pytest.mark.parametrize(
    ("run", "by"), [("nightly", "an earlier attempt of this run promoted it"), ("weekly", "the run weekly promoted it")]
)
def test_a_repeated_run_that_had_promoted_says_so(tmp_path: Path, run: str, by: str) -> None:
    """A run that was killed after its promotion meets its own student as the champion."""
    folder = tmp_path / "nightly"
    artifacts.write_json(folder / "metrics.json", {"systems": {"student": dict.fromkeys(__main__.SHOWN, 0.5)}})
    artifacts.write_json(folder / "timings.json", {"seconds": 1, "peak_memory_mib": 1})
    verdict = {"outcome": "unchanged", "checks": [], "champion": {"id": "v0123456789ab", "run": run}}
    shown = io.StringIO()
    __main__._summarize(Console(file=shown, width=200), folder, verdict)
    assert f"v0123456789ab is the champion already ({by}): there is nothing to promote" in shown.getvalue()
    assert "refused" not in shown.getvalue()
