"""Peak memory of a local run as a whole: its process, child processes and containers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import psutil


class MemoryMonitor:
    """Samples the resident memory of this process, its descendants and its containers twice a second.

    Attributes:
        peak_mib: largest sum so far, in MiB.
    """

    def __init__(self, containers_mib: Callable[[], float] | None) -> None:
        self.peak_mib = 0.0
        self._containers_mib = containers_mib
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MemoryMonitor:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        own_process = psutil.Process()
        while not self._stop.wait(0.5):
            total = 0
            for process in [own_process, *own_process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
            in_containers = self._containers_mib() if self._containers_mib else 0.0
            self.peak_mib = max(self.peak_mib, total / 2**20 + in_containers)
