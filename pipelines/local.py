"""Run `distill` on this machine: KFP's local runner, a process or a container a stage, the results in one folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil
import yaml
from kfp import components, local
from rich.console import Console

from distilrank.config import Config, parameters
from distilrank.core import artifacts, hardware
from distilrank.core.errors import InputError, RunStopped
from distilrank.teacher import label_manifest
from pipelines import compiling, processes
from pipelines.console import RunDisplay
from pipelines.containers import Engine

ESTIMATE = "estimate.json"
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
CONCURRENT_LABELS = 2  # KFP's local runner runs at most two tasks of a ParallelFor at a time


class _MemoryWatch:
    """Samples the memory of this process, its children and its containers, for the peak of the run as a whole."""

    def __init__(self, containers_mib: Callable[[], float] | None) -> None:
        self.peak_mib = 0.0
        self._containers_mib = containers_mib
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.5):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
            elsewhere = self._containers_mib() if self._containers_mib else 0.0
            self.peak_mib = max(self.peak_mib, total / 2**20 + elsewhere)


def _fitted(config: Config, runs: Path) -> Config:
    """The configuration with what only this machine can know: threads of concurrent tasks, where progress is kept."""
    label = config.label
    if not label.threads and not config.compute.threads and config.prepare.shards > 1:
        label = label.model_copy(update={"threads": max(hardware.cores() // CONCURRENT_LABELS, 1)})
    compute = config.compute
    if not compute.checkpoint_dir:
        compute = compute.model_copy(update={"checkpoint_dir": str((runs / ".progress").resolve())})
    prepare = config.prepare
    if not prepare.log_cache_dir:
        prepare = prepare.model_copy(update={"log_cache_dir": str((runs / ".log").resolve())})
    drift = config.drift
    if not drift.workspace:
        drift = drift.model_copy(update={"workspace": str((runs / ".evidently").resolve())})
    return config.model_copy(update={"compute": compute, "label": label, "prepare": prepare, "drift": drift})


@contextlib.contextmanager
def _reserving(runs: Path, name: str) -> Iterator[Path]:
    """A new, empty folder for the run `name`, which no other process can start as long as this one works on it.

    The lock lies on a file beside the folder, and the kernel drops it when the process ends, however it ends. Where the
    file system has no locks, the folder is not protected.

    Raises:
        InputError: the run goes on in another process or is finished, or the folder cannot be made.
    """
    if NAME.fullmatch(name) is None or name == "latest":
        raise InputError(f"--name {name}: expected lower-case letters, digits and hyphens, and not latest")
    path = runs / f".{name}.lock"
    with contextlib.ExitStack() as stack:
        try:
            runs.mkdir(parents=True, exist_ok=True)
            descriptor = _lock(path)
            stack.callback(os.close, descriptor)
        except BlockingIOError:
            raise InputError(
                f"{runs / name}: a run of this name is in progress{_describe_owner(path)}; wait for it, or choose "
                "another --name"
            ) from None
        except OSError as error:
            raise InputError(
                f"{runs / name}: cannot be made ({error.strerror}), expected a writable folder for --runs"
            ) from None
        stack.callback(path.unlink, missing_ok=True)  # before it is closed, so while it is locked
        yield _new_folder(runs, name)


def _lock(path: Path) -> int:
    """Descriptor of the file `path`, locked for this process alone and holding its id.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # no locks on this file system
                pass
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps([os.getpid(), socket.gethostname()]).encode(), 0)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last owner removed it before it was locked here


def _describe_owner(path: Path) -> str:
    try:
        process, host = json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):  # not written yet, or removed just now
        return ""
    return f" (process {process}{'' if host == socket.gethostname() else f' on {host}'})"


def _new_folder(runs: Path, name: str) -> Path:
    folder = runs / name
    failed = (folder / "run.log").is_file() and not _is_complete(folder)
    if folder.exists() and not failed:  # another run, or no run at all: a registry, say
        raise InputError(f"{folder}: a run of this name is there already; choose another --name")
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that did not come to a verdict
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror}), expected a writable folder for --runs"
        ) from None
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether a run came to its end: the file that says so is the last that is written."""
    if (folder / "monitor").is_dir():
        return (folder / "monitor.json").exists()
    return any((folder / name).exists() for name in ("verdict.json", ESTIMATE))


def _complete(source: Path, target: Path) -> None:
    """Copy the file that marks a folder as complete, which appears whole."""
    with artifacts.replacing(target) as handle:
        handle.write(source.read_bytes())


def _stop_with(engine: Engine | None) -> None:
    """On SIGTERM, end the stages too: a stage whose parent is gone would work on for nobody.

    So on Ctrl-C with containers, for they are not in the terminal's group of processes.
    """

    def stop(signum: int, frame: object) -> NoReturn:
        if engine:
            engine.stop()
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.terminate()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    if engine:
        signal.signal(signal.SIGINT, stop)


def _engine(
    runnable: Any, config: Config, name: str, runs: Path, network: str | None, console: Console
) -> Engine | None:
    """The Docker engine for the stages of `runnable`, with all their images; None: no containers are wanted."""
    if network is None:
        return None
    engine = Engine.connect(name, config, runs, network, _images(runnable))
    if others := engine.with_other_code():
        console.print(f"  note         {others}", style="dim", markup=False, highlight=False, soft_wrap=True)
    return engine


def _images(runnable: Any) -> set[str]:
    executors = runnable.pipeline_spec.deployment_spec["executors"]
    return {executors[name]["container"]["image"] for name in executors}


def run(
    config: Config,
    *,
    name: str,
    runs: Path,
    cache: bool,
    pipeline: Path | None,
    console: Console,
    network: str | None = None,
) -> Path:
    """Run the pipeline to its end and return the folder with its results.

    Args:
        config: validated configuration.
        name: folder below `runs` that the results go to; it must not exist.
        runs: holds all local runs; `runs/latest` points at the last one that finished.
        cache: take over results of earlier runs whose stage, inputs and configuration are the same.
        pipeline: a compiled `distill` to run in place of the one defined here.
        console: where progress is shown.
        network: run the stages in their images, on this network of the Docker engine (`none`: on no network); None: run
            them as processes.

    Raises:
        InputError: bad input, found by any stage; no Docker engine, or none of its images.
        RunStopped: a stage that ended the run on purpose.
        RuntimeError: a stage that failed; the log tells.
    """
    config = _fitted(config, runs)
    runnable = _compiled(pipeline) if pipeline else compiling.build("distill", config, cluster=False)
    engine = _engine(runnable, config, name, runs, network, console)
    with _reserving(runs, name) as folder:
        _keep(config, folder)
        made, seconds, peak_mib = _execute(runnable, config, folder, runs, cache, console, engine)
        _gather(made, folder, seconds, peak_mib)
        _point(runs / "latest", folder)
        return folder


def _compiled(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"--pipeline {path}: no such file; `python -m pipelines compile` writes one")
    try:
        found = components.load_component_from_file(str(path))
    except Exception as error:  # KFP and its YAML reader raise all kinds
        raise InputError(
            f"--pipeline {path}: no compiled pipeline ({' '.join(str(error).split())[:150]}); `python -m pipelines "
            "compile` writes one"
        ) from None
    if found.name != "distill":
        raise InputError(f"--pipeline {path}: holds pipeline {found.name!r}, expected distill")
    differing = set(found.component_spec.inputs) ^ set(compiling.pipeline("distill").component_spec.inputs)
    if differing:
        raise InputError(
            f"--pipeline {path}: of another version, its parameters differ by {', '.join(sorted(differing))}; compile "
            "it again with this version"
        )
    return found


def estimate(
    config: Config, *, name: str, runs: Path, cache: bool, console: Console, network: str | None = None
) -> dict[str, Any]:
    """Run the stages before the teacher, time a sample, and return what `distilrank.teacher.estimate` says.

    What is prepared is kept: a run with the same configuration takes it over. Arguments and errors as for `run`.
    """
    config = _fitted(config, runs)
    runnable = compiling.build("estimate", config, cluster=False)
    engine = _engine(runnable, config, name, runs, network, console)
    with _reserving(runs, name) as folder:
        made, _, _ = _execute(runnable, config, folder, runs, cache, console, engine)
        spend = made / "estimate-spend" / "spend"
        artifacts.verify(spend)
        _complete(spend / ESTIMATE, folder / ESTIMATE)
        return artifacts.read_json(folder / ESTIMATE)


def monitor(
    config: Config, *, name: str, runs: Path, cache: bool, console: Console, network: str | None = None
) -> Path:
    """Hold the newest traffic against the champion's, and where the configuration says so answer an alarm by `distill`.

    Arguments and errors as for `run`. The folder has `monitor.json`, and `monitor/` with the metrics and the pages on
    drift; after an alarm that was answered also what `run` leaves, and `runs/latest` points at it.
    """
    config = _fitted(config, runs)
    runnable = compiling.build("monitor", config, cluster=False)
    engine = _engine(runnable, config, name, runs, network, console)
    with _reserving(runs, name) as folder:
        _keep(config, folder)
        attempts = runs / ".kfp" / folder.name
        earlier = set(attempts.glob("monitor-*"))
        try:
            made, seconds, peak_mib = _execute(runnable, config, folder, runs, cache, console, engine)
        except BaseException:  # an alarm must be told of even if the run that answers it fails
            for attempt in set(attempts.glob("monitor-*")) - earlier:
                watched = attempt / "watch-champion" / "watched"
                if (watched / artifacts.SEAL).exists():
                    artifacts.copy_tree(watched, folder / "monitor")
                    _complete(watched / "monitor.json", folder / "monitor.json")
            raise
        watched = made / "watch-champion" / "watched"
        artifacts.verify(watched)
        artifacts.copy_tree(watched, folder / "monitor")
        if (made / "render-report").is_dir():
            _gather(made, folder, seconds, peak_mib)
            _point(runs / "latest", folder)
        _complete(watched / "monitor.json", folder / "monitor.json")
        return folder


def _keep(config: Config, folder: Path) -> None:
    artifacts.write_text(
        folder / "config.yaml", yaml.safe_dump(parameters(config), sort_keys=False, allow_unicode=True)
    )


def _execute(
    pipeline: Any,
    config: Config,
    folder: Path,
    runs: Path,
    cache: bool,
    console: Console,
    engine: Engine | None,
) -> tuple[Path, float, float]:
    """Run a pipeline, and return KFP's folder of the run, its seconds, and the peak of its memory in MiB."""
    given = parameters(config) | {"name": folder.name}
    arguments = {key: value for key, value in given.items() if key in pipeline.component_spec.inputs}
    root = runs / ".kfp" / folder.name
    before = set(root.glob(f"{pipeline.name}-*"))
    started = time.monotonic()
    groups = [pipeline.pipeline_spec.root, *pipeline.pipeline_spec.components.values()]
    stages = {name: task.task_info.name for group in groups for name, task in group.dag.tasks.items()}
    _stop_with(engine)
    warnings.filterwarnings("ignore", module=r"kfp\.local")  # settings that only a cluster heeds
    logging.getLogger().setLevel(logging.INFO)
    with (
        _MemoryWatch(engine.memory_mib if engine else None) as memory,
        RunDisplay(folder / "run.log", console, stages) as display,
        engine.runner() if engine else processes.runner() as runner,
    ):
        local.init(
            runner,
            pipeline_root=str(root),
            enable_caching=cache,
            # locally the image's name says nothing about the code, so a digest of what is in it has to
            cache_root=str(runs / ".kfp" / f"cache-{engine.content if engine else artifacts.code_digest()[:16]}"),
        )
        handler = logging.StreamHandler(display)
        logging.getLogger().addHandler(handler)
        try:
            with contextlib.redirect_stdout(display):
                pipeline(**arguments)
        except RuntimeError:
            _raise_failure(display, folder)
        finally:
            logging.getLogger().removeHandler(handler)
    made = set(root.glob(f"{pipeline.name}-*")) - before
    if len(made) != 1:
        raise RuntimeError(f"{root}: expected one new run folder, found {len(made)}")
    return made.pop(), time.monotonic() - started, memory.peak_mib


def _raise_failure(display: RunDisplay, folder: Path) -> None:
    for event in display.failures:
        if event.event == "bad input":
            raise InputError(event.text) from None
        raise RunStopped(event.text) from None
    reason = f": {display.last_error}" if display.last_error else ""
    raise RuntimeError(f"a stage failed{reason}; the log is {folder / 'run.log'}") from None


def _gather(made: Path, folder: Path, seconds: float, peak_mib: float) -> None:
    """Copy what people and the next tools need from KFP's folders to the run's own, the verdict last.

    A folder without it is one of a run that did not finish, which a second attempt may replace.
    """
    report = made / "render-report" / "report"
    if not (report / "report.html").is_file():
        raise RuntimeError(f"{report}: the report stage left no report.html")
    artifacts.verify(report)
    inputs = {
        name: [Path(path) for path in paths] for name, paths in artifacts.read_json(report / "inputs.json").items()
    }
    copied = {"teacher": ["quality.json", "disagreements.csv"], "labels": [artifacts.MANIFEST]}
    artifacts.require(inputs, copied)
    single = {name: paths[0] for name, paths in inputs.items()}
    shutil.copyfile(report / "report.html", folder / "report.html")
    for page in sorted(single["drift"].glob("*.html")):
        shutil.copyfile(page, folder / page.name)
    shutil.copyfile(single["drift"] / "drift.json", folder / "drift.json")
    shutil.copyfile(single["evaluation"] / "metrics.json", folder / "metrics.json")
    shutil.copyfile(single["teacher"] / "quality.json", folder / "quality.json")
    shutil.copyfile(single["teacher"] / "disagreements.csv", folder / "disagreements.csv")
    for name in ("profile.json", "profile.html"):
        shutil.copyfile(single["profile"] / name, folder / name)
    artifacts.copy_tree(single["student"], folder / "student")
    artifacts.copy_tree(single["evaluation"], folder / "evaluation")
    artifacts.copy_tree(single["judgements"], folder / "judgements")
    artifacts.write_json(folder / "labels" / "manifest.json", label_manifest.combine(inputs["labels"]))
    records = [artifacts.read_record(path.parent) for path in made.rglob(artifacts.RECORD)]
    known = {record["stage"] for record in records}
    for paths in inputs.values():
        for record in (artifacts.read_record(path) for path in paths if (path / artifacts.RECORD).exists()):
            if record["stage"] not in known:
                records.append(record | {"cached": True})
    artifacts.write_json(
        folder / "timings.json",
        {
            "seconds": round(seconds, 1),
            "peak_memory_mib": round(peak_mib, 1),
            "stages": {
                record["stage"]: {
                    "seconds": record["seconds"],
                    "peak_memory_mib": record["peak_memory_mib"],
                    "cached": record.get("cached", False),
                }
                for record in sorted(records, key=lambda record: record["started"])
            },
        },
    )
    _complete(single["verdict"] / "verdict.json", folder / "verdict.json")


def _point(link: Path, folder: Path) -> None:
    """Let `link` point at `folder`, in one step."""
    partial = artifacts.temporary_name(link)
    try:
        partial.symlink_to(folder.name)
        partial.replace(link)
    finally:
        partial.unlink(missing_ok=True)
