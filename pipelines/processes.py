"""The stages' processes on this machine: KFP's subprocess runner, whose stages end when the run's own process does."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
from collections.abc import Iterator

from kfp import local

from distilrank.training import launch

EXECUTOR = "_KFP_RUNTIME=true "
"""How the last command of a stage's shell script begins (kubeflow/pipelines 2.17.0, kfp/dsl/component_factory.py)."""


@contextlib.contextmanager
def runner() -> Iterator[local.SubprocessRunner]:
    """KFP's runner, whose processes are started here.

    KFP starts a stage by a plain `Popen`, so a run that is killed by SIGKILL (out of memory, say) leaves it at work.
    The one function that starts a process is replaced by `start`.
    """
    from kfp.local import subprocess_task_handler

    original = subprocess_task_handler.run_local_subprocess
    subprocess_task_handler.run_local_subprocess = start
    try:
        yield local.SubprocessRunner(use_venv=False)
    finally:
        subprocess_task_handler.run_local_subprocess = original


def start(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
    """Run one stage to its end, print what it prints, return its exit status; KFP calls it from its threads.

    On Linux the kernel ends the stage when this process is gone. That holds for the process that is started and for no
    child of it, so the shell has to become the stage's Python.
    """
    command = [part.replace(EXECUTOR, f"exec env {EXECUTOR}", 1) if EXECUTOR in part else part for part in full_command]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
        env=os.environ | (env_vars or {}),
        preexec_fn=functools.partial(launch.die_with_parent, os.getpid()),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="")
        print("\n")
        return process.wait()
