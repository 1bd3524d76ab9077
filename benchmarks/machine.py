"""Describe the machine, and measure a function in a separate process."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from distilrank.core import hardware

_INTERVAL = 0.1  # seconds between samples of memory
_WARM_BYTES = 1 << 24


def describe(packages: Iterable[str]) -> dict[str, Any]:
    """Return the machine's hardware, its current load, and the versions of `packages`."""
    return {
        "processor": _processor(),
        "cores": hardware.cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


@contextlib.contextmanager
def output_to_stderr() -> Iterator[None]:
    """Redirect output to standard error; standard output is reserved for the line of JSON."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@dataclass(frozen=True)
class Measured:
    """Measurements of a function that ran in a separate process."""

    result: Any
    """Return value of the function, as JSON values."""
    began: float
    """Start of the function after the imports, in seconds since the epoch."""
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    """Peak resident memory of the process and its children, including imports and file mappings."""
    samples: list[tuple[float, int]]
    """Samples: seconds since the epoch, and resident memory in bytes."""

    def peak_between(self, start: float, end: float) -> int:
        """Return the largest sample from `start` to `end` (seconds since `began`); 0 without samples."""
        inside = [size for moment, size in self.samples if start <= moment - self.began <= end]
        return max(inside, default=0)


class Failed(Exception):
    """A measurement failed; for a process, its standard error has the reason."""


def measure(
    function: Callable[..., Any],
    *arguments: Any,
    scratch: Path,
    imports: Iterable[str] = (),
    warm: Iterable[Path] = (),
) -> Measured:
    """Run `function(*arguments)` in a new interpreter, and sample its memory.

    Args:
        function: top-level function of a module. Its output goes to standard error; its return value must be JSON.
        arguments: positional arguments of the function.
        scratch: folder for the result.
        imports: modules to import before the clock starts.
        warm: files to read beforehand, so that the disk cache is warm.

    Raises:
        Failed: the function raised an exception, or the process was killed.
    """
    for path in warm:
        with path.open("rb") as handle:
            while handle.read(_WARM_BYTES):
                pass
    outcome = scratch / "outcome.json"
    outcome.unlink(missing_ok=True)
    process = multiprocessing.get_context("spawn").Process(
        target=_call, args=(outcome, tuple(imports), function, arguments)
    )
    process.start()
    samples = []
    try:
        while process.is_alive():
            samples.append((time.time(), _resident(process.pid)))
            process.join(_INTERVAL)
    finally:
        if process.is_alive():
            process.terminate()
        process.join()
    if process.exitcode or not outcome.exists():
        raise Failed(f"{function.__name__}: ended with {process.exitcode}")
    outcome_values = json.loads(outcome.read_text(encoding="utf-8"))
    outcome.unlink()
    peak = max([outcome_values.pop("own_peak"), *(size for _, size in samples)])
    return Measured(**outcome_values, peak_bytes=peak, samples=samples)


def _call(outcome: Path, imports: tuple[str, ...], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # standard output is reserved for the line of JSON
    for name in imports:
        importlib.import_module(name)
    began, used = time.time(), time.process_time()
    start = time.perf_counter()
    result = function(*arguments)
    outcome_values = {
        "result": result,
        "began": began,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - used,
        "own_peak": _own_peak(),
    }
    outcome.write_text(json.dumps(outcome_values), encoding="utf-8")


def _own_peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    try:  # unlike ru_maxrss, VmHWM does not start from the parent's memory at the fork
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident(pid: int | None) -> int:
    """Return the resident memory of a process and its descendants in bytes; 0 if it has ended."""
    try:
        process = psutil.Process(pid)
        return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0
