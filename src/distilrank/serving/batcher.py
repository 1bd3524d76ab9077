"""Requests that wait are scored together, in turns: one call to the scorer at a time, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from distilrank.core.errors import InputError
from distilrank.serving.metrics import Metrics
from distilrank.serving.settings import Serving
from distilrank.serving.watch import Version

LONGEST_RETRY = 60  # seconds that a refused client is asked to wait at most

log = logging.getLogger(__name__)


class Full(Exception):
    """More waits than may wait; `retry` is the seconds after which there should be room."""

    def __init__(self, waiting: int, retry: int) -> None:
        super().__init__(f"{waiting} pairs are waiting")
        self.retry = retry


@dataclass(eq=False)
class Job:
    """A request's pairs, all of them for one version."""

    version: Version
    query: str
    products: Sequence[Mapping[str, str | None]]
    scored: asyncio.Future[np.ndarray]
    """Its logits, float32, shape (products,), or why there are none: InputError, where the query is to blame."""
    arrived: float = field(default_factory=time.monotonic)
    logits: list[np.ndarray] = field(default_factory=list)
    """Of the products that had their turn."""
    done: int = 0

    @property
    def left(self) -> int:
        return len(self.products) - self.done


@dataclass(frozen=True)
class Turn:
    """A job's products from `job.done` on that are in a batch."""

    job: Job
    count: int

    @property
    def products(self) -> Sequence[Mapping[str, str | None]]:
        return self.job.products[self.job.done : self.job.done + self.count]


class Batcher:
    """A bounded queue in front of the scorer.

    Jobs are served in order of arrival; one that does not fit into a batch goes to the end of the queue with what is
    left of it, so that nobody waits for more than one batch of a large request.
    """

    def __init__(self, settings: Serving, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self._queue: deque[Job] = deque()
        self._arrived, self._full = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._pairs_per_second = 0.0
        metrics.waiting_pairs.set_function(self.waiting)

    def waiting(self) -> int:
        """Pairs in the queue; those that are being scored do not count."""
        return sum(job.left for job in self._queue)

    def submit(self, version: Version, query: str, products: Sequence[Mapping[str, str | None]]) -> Job:
        """Queue a request's pairs.

        Raises:
            Full: too many wait.
        """
        waiting = self.waiting() + len(products)
        if waiting > self.settings.max_waiting:
            seconds = waiting / self._pairs_per_second if self._pairs_per_second else 1.0
            raise Full(waiting - len(products), min(math.ceil(seconds), LONGEST_RETRY))
        job = Job(version, query, products, asyncio.get_running_loop().create_future())
        self._queue.append(job)
        self._arrived.set()
        if waiting >= self.settings.batch_pairs:
            self._full.set()
        return job

    def drop(self, job: Job) -> None:
        """Give a job up if it is not done, so that nothing more is scored for it."""
        job.scored.cancel()
        if job in self._queue:
            self._queue.remove(job)

    async def run(self) -> None:
        """Score what is queued, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            await self._gather()
            batch = self._take()
            if batch:
                version, started = batch[0].job.version, time.monotonic()
                cache = version.scorer.products
                hits, misses = cache.hits, cache.misses
                scores = await loop.run_in_executor(self._thread, _score, version, batch)
                self.metrics.cache_hits.inc(cache.hits - hits)
                self.metrics.cache_misses.inc(cache.misses - misses)
                self._hand_out(batch, scores, time.monotonic() - started)
            if not self._queue:
                self._arrived.clear()

    async def _gather(self) -> None:
        """Wait for others to go with the first in the queue, until it has waited long enough or they are many."""
        self._full.clear()
        if not self._queue or self.waiting() >= self.settings.batch_pairs:
            return
        left = self._queue[0].arrived + self.settings.batch_milliseconds / 1000 - time.monotonic()
        if left > 0:
            try:
                async with asyncio.timeout(left):
                    await self._full.wait()
            except TimeoutError:
                pass

    def _take(self) -> list[Turn]:
        """The next batch: jobs of one version, up to `batch_pairs` of their pairs."""
        batch: list[Turn] = []
        room = self.settings.batch_pairs
        while room and self._queue and (not batch or self._queue[0].version is batch[0].job.version):
            job = self._queue.popleft()
            if not job.done:
                self.metrics.queue_seconds.observe(time.monotonic() - job.arrived)
            batch.append(Turn(job, min(room, job.left)))
            room -= batch[-1].count
        return batch

    def _hand_out(self, batch: list[Turn], scores: list[np.ndarray | Exception], seconds: float) -> None:
        pairs = sum(turn.count for turn in batch)
        speed = pairs / max(seconds, 1e-6)
        self._pairs_per_second += (speed - self._pairs_per_second) * (0.1 if self._pairs_per_second else 1.0)
        self.metrics.pairs.inc(pairs)
        self.metrics.batch_pairs.observe(pairs)
        self.metrics.batch_requests.observe(len(batch))
        self.metrics.scoring_seconds.observe(seconds)
        for turn, found in zip(batch, scores, strict=True):
            job = turn.job
            if job.scored.done():  # given up meanwhile
                continue
            if isinstance(found, Exception):
                job.scored.set_exception(found)
                continue
            job.logits.append(found)
            job.done += turn.count
            if job.left:
                self._queue.append(job)
            else:
                job.scored.set_result(np.concatenate(job.logits))


def _score(version: Version, batch: Sequence[Turn]) -> list[np.ndarray | Exception]:
    """Logits of each turn's products; where a batch fails, each turn by itself, so that only who is to blame fails."""
    try:
        scores = version.scorer.score_lists([turn.job.query for turn in batch], [turn.products for turn in batch])
        return list(scores)
    except Exception as error:
        if len(batch) > 1:
            return [found for turn in batch for found in _score(version, [turn])]
        if not isinstance(error, InputError):
            log.exception("a request of %d products cannot be scored", len(batch[0].job.products))
        return [error]
