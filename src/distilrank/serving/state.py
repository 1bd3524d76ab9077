"""What the parts of the service share."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from distilrank.serving.batcher import Batcher
from distilrank.serving.connection import Connections
from distilrank.serving.messages import Failing, Readiness
from distilrank.serving.metrics import Metrics
from distilrank.serving.reloader import Watch
from distilrank.serving.settings import Serving


class State:
    """One service: its settings, its version and its queue."""

    def __init__(self, settings: Serving) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.watch = Watch(settings, self.metrics)
        self.batcher = Batcher(settings, self.metrics)
        self.connections = Connections(settings, self.metrics)
        self.parsing = ThreadPoolExecutor(1, thread_name_prefix="parse")
        """Large bodies, one after the other, so that the objects of one of them are in memory at a time."""
        self.in_flight = 0
        """Scoring requests that have begun and are not answered yet."""
        self.tasks: list[asyncio.Task[None]] = []
        """What runs as long as the service does."""
        self._ends = float("inf")
        self.metrics.in_flight.set_function(lambda: self.in_flight)
        self.metrics.ready.set_function(lambda: self.readiness().ready)

    @property
    def live(self) -> bool:
        """Whether all that should run does; if not, only a new process helps."""
        return not any(task.done() for task in self.tasks)

    @property
    def draining(self) -> bool:
        """Whether the service is about to end: it still answers, but nothing new should be sent to it."""
        return self._ends != float("inf")

    @property
    def drained(self) -> bool:
        """Whether it may stop listening."""
        return time.monotonic() >= self._ends

    def drain(self) -> None:
        """Begin to end; a second call ends at once."""
        self._ends = time.monotonic() + (0.0 if self.draining else self.settings.drain_seconds)

    def readiness(self) -> Readiness:
        """Whether requests should be sent here, and why not."""
        current, failing = self.watch.current, self.watch.attempts
        reason = "shutting down" if self.draining else None if current else "no version is loaded yet"
        return Readiness(
            ready=reason is None,
            reason=reason,
            version=current.id if current else None,
            failing=Failing(version=self.watch.failing, attempts=failing) if failing else None,
        )
