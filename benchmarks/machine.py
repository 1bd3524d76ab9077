"""What a figure was measured on, and how a process is measured."""

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

_INTERVAL = 0.1  # seconds between two looks at memory
_WARM_BYTES = 1 << 24


def describe(packages: Iterable[str]) -> dict[str, Any]:
    """The machine, the load that it had before, and the versions of `packages`."""
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
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """What the body prints goes to standard error: standard output is for the one line of JSON."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@dataclass(frozen=True)
class Measured:
    """A function that ran in a process of its own."""

    result: Any
    """What it returned, as JSON values."""
    began: float
    """Seconds since the epoch when the function began, after the imports."""
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    """Largest resident memory of the process and its children, imports and file mappings included."""
    samples: list[tuple[float, int]]
    """Times since the epoch, and the resident memory then."""

    def peak_between(self, start: float, end: float) -> int:
        """Largest memory that was seen from `start` to `end`, seconds since `began`; 0 if nobody looked."""
        inside = [size for at, size in self.samples if start <= at - self.began <= end]
        return max(inside, default=0)


class Failed(Exception):
    """The measured process did not end well; its standard error says why."""


def measure(
    function: Callable[..., Any],
    *arguments: Any,
    scratch: Path,
    imports: Iterable[str] = (),
    warm: Iterable[Path] = (),
) -> Measured:
    """Run `function(*arguments)` in a fresh interpreter and watch its memory.

    Args:
        function: of a module's top level; what it prints goes to standard error, what it returns must be JSON.
        scratch: folder for the result.
        imports: modules that are imported before the clock starts.
        warm: files that are read first, so that no run pays for a cold disk.

    Raises:
        Failed: it raised, or was killed.
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
    found = json.loads(outcome.read_text(encoding="utf-8"))
    outcome.unlink()
    peak = max([found.pop("own_peak"), *(size for _, size in samples)])
    return Measured(**found, peak_bytes=peak, samples=samples)


def _call(outcome: Path, imports: tuple[str, ...], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # standard output is for the one line of JSON
    for name in imports:
        importlib.import_module(name)
    began, used = time.time(), time.process_time()
    start = time.perf_counter()
    result = function(*arguments)
    found = {
        "result": result,
        "began": began,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - used,
        "own_peak": _own_peak(),
    }
    outcome.write_text(json.dumps(found), encoding="utf-8")


def _own_peak() -> int:
    """Largest resident memory of this process, bytes."""
    try:  # unlike ru_maxrss, this does not begin with what the parent had when it forked
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident(pid: int | None) -> int:
    """Resident memory of a process and all below it now, bytes; 0 once it is gone."""
    try:
        process = psutil.Process(pid)
        return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0
