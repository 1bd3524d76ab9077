"""What this machine computes well, told without torch so that the orchestrating process can ask too."""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path


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
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
