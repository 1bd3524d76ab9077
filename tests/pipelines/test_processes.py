"""Processes of stages end with the run that started them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

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
        return process.status() != psutil.STATUS_ZOMBIE  # the process that adopts orphans may leave them unreaped
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
