"""Hardware of this machine (bf16 units, GPUs, cores), found without torch, which orchestration lacks."""

from __future__ import annotations

import math
import os
import shutil
from functools import cache
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


@cache
def cpu_bf16() -> str:
    """Return the CPU's bf16 unit: `amx` or `avx512_bf16`; empty if there is none or it is unknown."""
    try:
        flags = next(
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
        ).split()
    except (OSError, StopIteration):
        return ""
    return "amx" if "amx_bf16" in flags else "avx512_bf16" if "avx512_bf16" in flags else ""


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is visible to its driver."""
    return shutil.which("nvidia-smi") is not None and Path("/proc/driver/nvidia/gpus").is_dir()


def fast_bf16() -> bool:
    """Whether bf16 is fast on this machine."""
    return has_gpu() or bool(cpu_bf16())


def cores() -> int:
    """Return the number of CPU cores that this process may use, by its affinity and its container's limit."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, _limit(CGROUP) or bound)


def _limit(group: Path) -> int:
    """Return the CPU limit of a control group (version 2 or 1) in cores, rounded up; 0: no limit.

    A container sees all cores of its node; a thread for each of them would overload the few that it may use.
    """
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.ceil(int(quota) / int(period)) if quota != "max" and int(quota) > 0 else 0
    except (OSError, ValueError):
        return 0
