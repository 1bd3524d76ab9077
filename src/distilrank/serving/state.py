"""State that the parts of the scoring service share."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from distilrank.serving.batcher import Batcher
from distilrank.serving.connection import Connections
from distilrank.serving.messages import Failing, Readiness
from distilrank.serving.metrics import Metrics
from distilrank.serving.reloader import Reloader
from distilrank.serving.settings import Serving


class State:
    """One service: its settings, its version and its queue."""

    def __init__(self, settings: Serving) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.reloader = Reloader(settings, self.metrics)
        self.batcher = Batcher(settings, self.metrics)
        self.connections = Connections(settings, self.metrics)
        self.parsing = ThreadPoolExecutor(1, thread_name_prefix="parse")
        """Thread that parses large bodies one after another, so that only one is expanded in memory at a time."""
        self.in_flight = 0
        """Number of scoring requests that have not been answered yet."""
        self.tasks: list[asyncio.Task[None]] = []
        """Background tasks that run as long as the service does."""
        self._ends = float("inf")
        self.metrics.in_flight.set_function(lambda: self.in_flight)
        self.metrics.ready.set_function(lambda: self.readiness().ready)

    @property
    def live(self) -> bool:
        """Whether all background tasks run; if not, only a restart helps."""
        return not any(task.done() for task in self.tasks)

    @property
    def draining(self) -> bool:
        """Whether the service is shutting down: it still answers, but should get no new requests."""
        return self._ends != float("inf")

    @property
    def drained(self) -> bool:
        """Whether it may stop listening."""
        return time.monotonic() >= self._ends

    def drain(self) -> None:
        """Begin the shutdown; a second call shuts down immediately."""
        self._ends = time.monotonic() + (0.0 if self.draining else self.settings.drain_seconds)

    def readiness(self) -> Readiness:
        """Return whether requests can be sent to this replica, with the reason if not."""
        current, failing = self.reloader.current, self.reloader.attempts
        reason = "shutting down" if self.draining else None if current else "no version is loaded yet"
        return Readiness(
            ready=reason is None,
            reason=reason,
            version=current.id if current else None,
            failing=Failing(version=self.reloader.failing, attempts=failing) if failing else None,
        )
