"""Device, precision and threads, decided once by the hardware and the configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from distilrank.config import Compute
from distilrank.core import hardware
from distilrank.core.errors import InputError


@dataclass(frozen=True)
class Runtime:
    """Device, precision and threads of a process."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def bf16(self) -> bool:
        return self.dtype == torch.bfloat16

    def describe(self) -> str:
        """A readable description in one line: `cpu, bf16 (the processor has avx512_bf16), 2 threads`."""
        name = "bf16" if self.bf16 else "fp32"
        return f"{self.device.type}, {name} ({self.reason}), {torch.get_num_threads()} threads"


def setup_runtime(compute: Compute) -> Runtime:
    """Choose device and precision, and set the number of threads.

    Raises:
        InputError: the configured device is not available.
    """
    torch.set_num_threads(compute.threads or hardware.cores())
    if compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it on first use
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    best = next(name for name, is_available in available.items() if is_available)
    name = best if compute.device == "auto" else compute.device
    if name == "cuda" and available["cuda"]:  # each of the processes that train together has a GPU
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not available[name]:
        raise InputError(
            f"compute.device: {name!r} asked for, but torch {torch.__version__} sees none on this machine; "
            "use auto or cpu"
        )
    if compute.precision != "auto":
        dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
        return Runtime(torch.device(name), dtype, "configured")
    if name == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        reason = f"{torch.cuda.get_device_name()} {'has' if fast else 'lacks'} bf16"
    elif name == "cpu":
        unit = hardware.cpu_bf16()
        fast, reason = bool(unit), f"the processor has {unit}" if unit else "the processor lacks bf16 units"
    else:
        fast, reason = False, "fp32 is the safe choice there"
    return Runtime(torch.device(name), torch.bfloat16 if fast else torch.float32, reason)
