"""The Evidently workspace: a folder, and a real service."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from distilrank.config import Drift, Registry
from distilrank.core.errors import InputError
from distilrank.drift.workspace import Workspace, check_workspace, push_to_workspace
from tests.traffic_samples import folders, run_stage, traffic


def test_an_alarm_by_the_share_is_reported_as_one(tmp_path: Path) -> None:
    clicks = traffic(1500, 2, clicked=np.random.default_rng(1).random(1500) < 0.4)
    paths = folders(tmp_path, traffic(1500, 1), clicks)
    part = run_stage(paths, Drift(embedding_rows=0, alarm=(), share=0.0))["candidate"]
    assert part["alarm"] and part["why"] == []
    summary = (paths["output"] / "summary.html").read_text()
    assert "Moved: 1 of 12 columns" in summary and "Nothing moved" not in summary
    config = Drift(workspace=str(tmp_path / "workspace"))
    push_to_workspace(config, Registry(), drift=paths["output"], name="run", newest_end="2026-03-01")
    opened = Workspace.create(config.workspace)
    (project,) = opened.list_projects()
    (run,) = (opened.get_run(project.id, run_id) for run_id in opened.list_runs(project.id))
    assert run.metadata["alarm"] == "1 of 12 columns"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A real Evidently service on a folder."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("evidently")), "ui", "--workspace", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api/version", timeout=5):
                break
            time.sleep(0.25)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("service", [False, True])
def test_a_workspace_gets_each_run_once(tmp_path: Path, service: bool) -> None:
    paths = folders(tmp_path, traffic(60, 1), traffic(60, 2))
    run_stage(paths)
    folder = tmp_path / "workspace"
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(served(folder)) if service else str(folder)
        config, registry = Drift(workspace=address), Registry(uri="registry")
        check_workspace(config)
        for name, end in (("run-1", "2026-03-01"), ("run-1", "2026-03-01"), ("run-2", "2026-03-08")):
            push_to_workspace(config, registry, drift=paths["output"], name=name, newest_end=end)
    opened = Workspace.create(str(folder))
    (project,) = opened.list_projects()
    runs = [opened.get_run(project.id, run_id) for run_id in opened.list_runs(project.id)]
    assert sorted((run.name, run.timestamp.isoformat()[:10]) for run in runs) == [
        ("run-1", "2026-03-01"),
        ("run-2", "2026-03-08"),
    ]
    assert project.name == "distilrank registry" and {run.metadata["share"] for run in runs} == {"0.000"}


def test_an_unreachable_workspace_is_noticed_early_and_loses_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = folders(tmp_path, traffic(40, 1), traffic(40, 2))
    run_stage(paths)
    (tmp_path / "file").write_text("")
    for address in (f"http://127.0.0.1:{free_port()}", str(tmp_path / "file")):
        config = Drift(workspace=address)
        with pytest.raises(InputError, match=f"drift.workspace {address}: cannot be used"):
            check_workspace(config)
        capsys.readouterr()
        push_to_workspace(config, Registry(), drift=paths["output"], name="run", newest_end="")
        (line,) = capsys.readouterr().out.splitlines()
        assert "warning" in line and address in line and "the verdict stands" in line
