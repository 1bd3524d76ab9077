"""Runs a training stage in several processes: by torchrun on this machine, or by a TrainJob on several.

    torchrun --nproc-per-node 4 -m distilrank.training.launch TASK.json

The processes find one another by torchrun's environment, which accelerate reads.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilrank import config as configuration
from distilrank.config import Compute, Section
from distilrank.core import artifacts, hardware
from distilrank.core.errors import InputError, RunStopped
from distilrank.training.trainjob import heartbeat, manifest, runner

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
HEARTBEAT = "heartbeat"
Folders = Path | list[Path]
ENDS: dict[str, type[Exception]] = {"InputError": InputError, "RunStopped": RunStopped}
STAGES = {"teacher": ("distilrank.teacher.train", "Teacher"), "student": ("distilrank.student.train", "Student")}
"""Stages that may train in several processes: their modules, and their sections of the configuration."""


def processes(compute: Compute) -> int:
    """Number of processes of this machine that train together."""
    if compute.processes or compute.device == "cpu":
        return compute.processes or 1
    return max(_gpus(), 1)


def _gpus() -> int:
    import torch  # only if there may be a GPU

    return torch.cuda.device_count()


def die_with_parent(parent: int) -> None:
    """Make the kernel terminate this process when `parent`, which has just forked it, ends; Linux only.

    It runs between fork and exec, where locks of other threads may stay locked, so it loads no library.
    """
    with contextlib.suppress(AttributeError):
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent ended before the call
            os._exit(128 + signal.SIGTERM)


def is_worker() -> bool:
    """Whether this process is one of several that were launched to train together."""
    return "WORLD_SIZE" in os.environ


def is_main() -> bool:
    """Whether this process writes the output: the first of those that train together, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def is_distributed(compute: Compute) -> bool:
    """Whether a stage must be launched in several processes."""
    return not is_worker() and (compute.nodes > 1 or processes(compute) > 1)


def run(
    stage: str, config: Section, compute: Compute, *, folders: dict[str, Folders], values: dict[str, Any], output: Path
) -> dict[str, Any]:
    """Run `stage` in several processes and return its result as a dictionary.

    Args:
        stage: one of STAGES.
        config: its section.
        compute: number of processes and nodes.
        folders: the stage's input folders, by the name of its argument.
        values: its other arguments.
        output: folder for the stage's output.

    Raises:
        InputError, RunStopped: as the stage raised them.
        RuntimeError: a process failed otherwise; its output has the reason.
    """
    if compute.nodes > 1:
        manifest.check(compute)
        contents = {name: [_content(folder) for folder in _several(paths)] for name, paths in folders.items()}
        settings = compute.model_dump(
            mode="json", exclude={"checkpoint_dir", "trainjob", "price_per_hour", "checkpoint_seconds"}
        )
        decides = [stage, config.model_dump(mode="json"), contents, values, settings, artifacts.code_digest()]
        key = artifacts.digest_json(decides)[:16]
        # pods share only the volume
        workspace = Path(compute.checkpoint_dir) / f"{stage}-nodes-{key}"
        folders = {name: _copied(paths, workspace / name) for name, paths in folders.items()}
        task = _Task(stage, config, compute, folders, values, output=workspace / "output", folder=workspace)
        if not task.is_done():  # an earlier attempt may have finished
            command = ["torchrun", "-m", "distilrank.training.launch", str(task.write())]
            try:
                runner.run(manifest.job_name(stage, key), command, compute, stage, heartbeat=workspace / HEARTBEAT)
            except RunStopped:
                if task.outcome.exists():  # the stage's own error says more than that a pod has failed
                    task.result()
                raise
        result = task.result()
        artifacts.copy_tree(workspace / "output", output)
        artifacts.verify(output)  # before the only other copy is deleted
        shutil.rmtree(workspace, ignore_errors=True)  # network volumes keep open files
        return result
    count = processes(compute)
    if compute.device != "cpu" and 0 < _gpus() < count:
        raise InputError(f"compute.processes is {count}, expected at most {_gpus()}, one per GPU of this machine")
    threads = compute.threads or max(hardware.cores() // count, 1)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    with tempfile.TemporaryDirectory() as scratch:
        task = _Task(stage, config, compute, folders, values, output=output, folder=Path(scratch))
        command = [*torchrun, "-m", "distilrank.training.launch", str(task.write())]
        # Two trainings must not write to the same folder.
        die = functools.partial(die_with_parent, os.getpid())
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=False, preexec_fn=die)
        return task.result()


@dataclass(frozen=True)
class _Task:
    """A stage to run in several processes: its arguments in task.json, its result or error in outcome.json."""

    stage: str
    config: Section
    compute: Compute
    folders: dict[str, Folders]
    values: dict[str, Any]
    output: Path
    folder: Path

    @property
    def outcome(self) -> Path:
        return self.folder / "outcome.json"

    def write(self) -> Path:
        self.outcome.unlink(missing_ok=True)
        paths = {
            name: [str(folder) for folder in paths] if isinstance(paths, list) else str(paths)
            for name, paths in self.folders.items()
        }
        path = self.folder / "task.json"
        artifacts.write_json(
            path,
            {
                "stage": self.stage,
                "config": self.config.model_dump(mode="json"),
                "compute": self.compute.model_dump(mode="json"),
                "folders": paths,
                "values": self.values,
                "output": str(self.output),
                "outcome": str(self.outcome),
            },
        )
        return path

    def is_done(self) -> bool:
        return self.outcome.exists() and not artifacts.read_json(self.outcome)["error"]

    def result(self) -> dict[str, Any]:
        if not self.outcome.exists():
            raise RuntimeError(f"{self.stage}: the processes ended without a result; their output has the reason")
        outcome = artifacts.read_json(self.outcome)
        if outcome["error"]:
            raise ENDS.get(outcome["error"], RuntimeError)(outcome["message"])
        return outcome["result"]


def _several(folders: Folders) -> list[Path]:
    return folders if isinstance(folders, list) else [folders]


def _content(folder: Path) -> str:
    """Digest of a folder that a stage has finished: that of its seal, or of its manifest."""
    sealed = folder / artifacts.SEAL
    return artifacts.digest_file(sealed if sealed.exists() else folder / artifacts.MANIFEST)


def _copied(folders: Folders, target: Path) -> Folders:
    if not isinstance(folders, list):
        if not target.exists():  # copies are atomic
            artifacts.copy_tree(folders, target)
        return target
    for number, folder in enumerate(folders):
        _copied(folder, target / f"{number:05d}")
    return [target / f"{number:05d}" for number in range(len(folders))]


def work(path: Path) -> None:
    """Run the stage that the task in `path` describes, as one of the processes of torchrun."""
    task = artifacts.read_json(path)
    module, section_name = STAGES[task["stage"]]
    stage, section = importlib.import_module(module), getattr(configuration, section_name)
    compute = Compute(**task["compute"])
    if not compute.threads:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        compute = compute.model_copy(update={"threads": max(hardware.cores() // local, 1)})
    folders: dict[str, Folders] = {
        name: [Path(folder) for folder in paths] if isinstance(paths, list) else Path(paths)
        for name, paths in task["folders"].items()
    }
    if compute.nodes > 1 and is_main():
        heartbeat.end_when_orphaned(path.parent / HEARTBEAT, compute.trainjob.orphan_minutes, task["stage"])
    report: dict[str, Any] = {"error": "", "message": "", "result": {}}
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(task["output"]) if is_main() else Path(scratch)
        if not is_main():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - since all processes print the same lines
        try:
            result = stage.train(section(**task["config"]), compute, **folders, **task["values"], output=output)
            report["result"] = result._asdict()
        except Exception as error:
            report |= {"error": type(error).__name__, "message": str(error)}
            print(
                f"process {os.environ.get('RANK', '0')}: {type(error).__name__}: {error}", file=sys.stderr, flush=True
            )
            raise
        finally:
            outcome = Path(task["outcome"])
            cause = report["error"] in ENDS  # rather than the broken connections that it causes in other processes
            if (is_main() or cause) and (cause or not outcome.exists()):
                with artifacts.replacing(outcome) as handle:
                    handle.write(json.dumps(report).encode())


def main() -> None:
    """Run a task; a stage that ends on purpose reports an outcome instead of a traceback."""
    try:
        work(Path(sys.argv[1]))
    except (InputError, RunStopped):
        raise SystemExit(1) from None
    finally:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
