"""Run `distill`, `monitor` and `estimate` on this machine by KFP's local runner, one process or container per stage."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
import warnings
from pathlib import Path
from typing import Any, NoReturn

import psutil
import yaml
from kfp import components, local
from rich.console import Console

from distilrank.config import Config, parameters
from distilrank.core import artifacts, hardware
from distilrank.core.errors import InputError, RunStopped, one_line
from pipelines import compiling, processes, run_folder
from pipelines.console import RunDisplay
from pipelines.containers import Engine
from pipelines.memory_monitor import MemoryMonitor

CONCURRENT_LABELS = 2  # tasks of a ParallelFor that KFP's local runner runs at a time


def _localize(config: Config, runs: Path) -> Config:
    """Fill in settings that depend on this machine: threads of concurrent tasks, folders for progress and caches."""
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


def _terminate_stages_on_signal(engine: Engine | None) -> None:
    """On SIGTERM, terminate the stages too; otherwise they would keep running without a parent.

    With containers also on SIGINT (Ctrl-C), which the terminal does not send to them.
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


def _connect_engine(
    runnable: Any, config: Config, name: str, runs: Path, network: str | None, console: Console
) -> Engine | None:
    """Connect to the Docker engine and check that it has the images of all stages; None without containers."""
    if network is None:
        return None
    engine = Engine.connect(name, config, runs, network, _images(runnable))
    if warning := engine.code_warning():
        console.print(f"  note         {warning}", style="dim", markup=False, highlight=False, soft_wrap=True)
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
    """Run `distill` to its end and return the folder with its results.

    Args:
        config: validated configuration.
        name: name of the run and of its folder below `runs`, which must not exist.
        runs: folder of all local runs; `runs/latest` links to the last one that completed.
        cache: reuse results of earlier runs whose stage, inputs and configuration are the same.
        pipeline: a compiled `distill` to run instead of the one defined here.
        console: console that shows progress.
        network: run the stages in containers on this network of the Docker engine (`none`: no network); None: run them
            as processes.

    Raises:
        InputError: a stage found bad input, the Docker engine is unreachable or lacks an image.
        RunStopped: a stage stopped the run on purpose.
        RuntimeError: a stage failed; the message names the log.
    """
    config = _localize(config, runs)
    runnable = _read_pipeline(pipeline) if pipeline else compiling.build("distill", config, cluster=False)
    engine = _connect_engine(runnable, config, name, runs, network, console)
    with run_folder.reserve(runs, name) as folder:
        _write_config(config, folder)
        kfp_folder, seconds, peak_mib = _execute(runnable, config, folder, runs, cache, console, engine)
        run_folder.collect_results(kfp_folder, folder, seconds, peak_mib)
        run_folder.replace_link(runs / "latest", folder)
        return folder


def _read_pipeline(path: Path) -> Any:
    """Load a compiled `distill` of this version."""
    if not path.is_file():
        raise InputError(f"--pipeline {path}: no such file; `python -m pipelines compile` writes one")
    try:
        loaded = components.load_component_from_file(str(path))
    except Exception as error:  # KFP and its YAML parser raise many types
        raise InputError(
            f"--pipeline {path}: not a compiled pipeline ({one_line(error, 150)}); `python -m pipelines "
            "compile` writes one"
        ) from None
    if loaded.name != "distill":
        raise InputError(f"--pipeline {path}: contains the pipeline {loaded.name!r}, expected distill")
    differing = set(loaded.component_spec.inputs) ^ set(compiling.pipeline("distill").component_spec.inputs)
    if differing:
        raise InputError(
            f"--pipeline {path}: compiled by another version, the parameters {', '.join(sorted(differing))} differ; "
            "compile it again with this version"
        )
    return loaded


def estimate(
    config: Config, *, name: str, runs: Path, cache: bool, console: Console, network: str | None = None
) -> dict[str, Any]:
    """Run the stages before the teacher, time a sample, and return the estimate of `distilrank.teacher.estimate`.

    A later run with the same configuration reuses the prepared data. Arguments and errors: see `run`.
    """
    config = _localize(config, runs)
    runnable = compiling.build("estimate", config, cluster=False)
    engine = _connect_engine(runnable, config, name, runs, network, console)
    with run_folder.reserve(runs, name) as folder:
        kfp_folder, _, _ = _execute(runnable, config, folder, runs, cache, console, engine)
        spend = kfp_folder / "estimate-spend" / "spend"
        artifacts.verify(spend)
        run_folder.mark_complete(spend / run_folder.ESTIMATE, folder / run_folder.ESTIMATE)
        return artifacts.read_json(folder / run_folder.ESTIMATE)


def monitor(
    config: Config, *, name: str, runs: Path, cache: bool, console: Console, network: str | None = None
) -> Path:
    """Compare the newest traffic with the champion's, and run `distill` on an alarm if the configuration says so.

    Arguments and errors: see `run`. The folder has `monitor.json`, and `monitor/` with the metrics and the drift pages.
    If `distill` ran, it also has the results of `run`, and `runs/latest` links to it.
    """
    config = _localize(config, runs)
    runnable = compiling.build("monitor", config, cluster=False)
    engine = _connect_engine(runnable, config, name, runs, network, console)
    with run_folder.reserve(runs, name) as folder:
        _write_config(config, folder)
        attempts = runs / ".kfp" / folder.name
        earlier = set(attempts.glob("monitor-*"))
        try:
            kfp_folder, seconds, peak_mib = _execute(runnable, config, folder, runs, cache, console, engine)
        except BaseException:  # the alarm is reported even if the `distill` that it started fails
            for attempt in set(attempts.glob("monitor-*")) - earlier:
                findings = attempt / "watch-champion" / "watched"
                if (findings / artifacts.SEAL).exists():
                    artifacts.copy_tree(findings, folder / "monitor")
                    run_folder.mark_complete(findings / "monitor.json", folder / "monitor.json")
            raise
        findings = kfp_folder / "watch-champion" / "watched"
        artifacts.verify(findings)
        artifacts.copy_tree(findings, folder / "monitor")
        if (kfp_folder / "render-report").is_dir():
            run_folder.collect_results(kfp_folder, folder, seconds, peak_mib)
            run_folder.replace_link(runs / "latest", folder)
        run_folder.mark_complete(findings / "monitor.json", folder / "monitor.json")
        return folder


def _write_config(config: Config, folder: Path) -> None:
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
    """Run a pipeline, and return KFP's folder of the run, its seconds, and its peak memory in MiB."""
    values = parameters(config) | {"name": folder.name}
    arguments = {key: value for key, value in values.items() if key in pipeline.component_spec.inputs}
    root = runs / ".kfp" / folder.name
    before = set(root.glob(f"{pipeline.name}-*"))
    started = time.monotonic()
    groups = [pipeline.pipeline_spec.root, *pipeline.pipeline_spec.components.values()]
    stages = {name: task.task_info.name for group in groups for name, task in group.dag.tasks.items()}
    _terminate_stages_on_signal(engine)
    warnings.filterwarnings("ignore", module=r"kfp\.local")  # settings of pods, which the local runner ignores
    logging.getLogger().setLevel(logging.INFO)
    with (
        MemoryMonitor(engine.memory_mib if engine else None) as memory,
        RunDisplay(folder / "run.log", console, stages) as display,
        engine.runner() if engine else processes.runner() as runner,
    ):
        local.init(
            runner,
            pipeline_root=str(root),
            enable_caching=cache,
            # the cache key has the image's name, which does not identify the code on this machine
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
    new_folders = set(root.glob(f"{pipeline.name}-*")) - before
    if len(new_folders) != 1:
        raise RuntimeError(f"{root}: expected one new run folder, got {len(new_folders)}")
    return new_folders.pop(), time.monotonic() - started, memory.peak_mib


def _raise_failure(display: RunDisplay, folder: Path) -> None:
    for event in display.failures:
        if event.event == "bad input":
            raise InputError(event.text) from None
        raise RunStopped(event.text) from None
    reason = f": {display.last_error}" if display.last_error else ""
    raise RuntimeError(f"a stage failed{reason}; the log is {folder / 'run.log'}") from None
