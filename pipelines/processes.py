"""Processes of stages on this machine: KFP's subprocess runner, with stages that end when the run's process does."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
from collections.abc import Iterator

from kfp import local

from distilrank.training import launch

EXECUTOR = "_KFP_RUNTIME=true "
"""Prefix of the last command of a stage's shell script (kubeflow/pipelines 2.17.0, kfp/dsl/component_factory.py)."""


@contextlib.contextmanager
def runner() -> Iterator[local.SubprocessRunner]:
    """Yield KFP's subprocess runner, with its function that starts processes replaced by `start`.

    KFP starts a stage by a plain `Popen`, so the stage survives if the run is killed by SIGKILL, e.g. out of memory.
    """
    from kfp.local import subprocess_task_handler

    original = subprocess_task_handler.run_local_subprocess
    subprocess_task_handler.run_local_subprocess = start
    try:
        yield local.SubprocessRunner(use_venv=False)
    finally:
        subprocess_task_handler.run_local_subprocess = original


def start(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
    """Run one stage to its end, forward its output, and return its exit status; KFP calls this from its threads.

    On Linux the kernel kills the stage when this process dies. That applies to the started process but not to its
    children, so the shell must `exec` the stage's Python.
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
