"""What this machine computes well, told without torch so that the orchestrating process can ask too."""

from __future__ import annotations

import math
import os
import shutil
from functools import cache
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


@cache
def cpu_bf16() -> str:
    """The processor's bf16 unit: `amx`, `avx512_bf16`, or `` where there is none (or none that we can tell)."""
    try:
        flags = next(
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
        ).split()
    except (OSError, StopIteration):
        return ""
    return "amx" if "amx_bf16" in flags else "avx512_bf16" if "avx512_bf16" in flags else ""


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is visible, by its driver's tool."""
    return shutil.which("nvidia-smi") is not None and Path("/proc/driver/nvidia/gpus").is_dir()


def fast_bf16() -> bool:
    """Whether bf16 is the fast way to compute here."""
    return has_gpu() or bool(cpu_bf16())


def cores() -> int:
    """Processor cores that this process may use: those it is bound to, and no more than its container's limit."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, _limit(CGROUP) or bound)


def _limit(group: Path) -> int:
    """Cores that a control group (version 2 or 1) may use at a time, rounded up; 0: no limit.

    A container sees all cores of its node, and a thread for each of them would have the few it may use fight for them.
    """
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.ceil(int(quota) / int(period)) if quota != "max" and int(quota) > 0 else 0
    except (OSError, ValueError):
        return 0
