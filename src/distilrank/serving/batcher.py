"""Batching: waiting requests are scored together, by one call to the scorer at a time in a separate thread.

A request is accepted only if it can be scored in time. Its cost is estimated in tokens, and the time from the speed of
the latest batches.
"""

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
from distilrank.serving.reloader import Version
from distilrank.serving.settings import Serving

LONGEST_RETRY = 60  # longest Retry-After in seconds
ACCEPTED = 0.4
"""Share of `timeout_seconds` in which all accepted requests could be scored at full speed. Each queue is certain of
half the speed, and a fifth of the time is reserved for the batch in progress and the error of the estimate."""
BATCH = 0.1  # largest share of `timeout_seconds` that a batch may take
HORIZON = 2.0  # time constant in seconds of the moving average of the speed

log = logging.getLogger(__name__)


class Full(Exception):
    """The queue is full; `retry` is the number of seconds after which it should have room."""

    def __init__(self, reason: str, retry: float) -> None:
        super().__init__(reason)
        self.retry = min(max(math.ceil(retry), 1), LONGEST_RETRY)


@dataclass(eq=False)
class Job:
    """The pairs of a request, all to be scored by one version."""

    version: Version
    query: str
    products: Sequence[Mapping[str, str | None]]
    scored: asyncio.Future[np.ndarray]
    """Logits, float32, shape (products,), or an exception: InputError if the query causes it."""
    tokens: int
    """Estimated number of tokens of all pairs."""
    arrived: float = field(default_factory=time.monotonic)
    logits: list[np.ndarray] = field(default_factory=list)
    """Logits of the products that have been scored so far."""
    taken: int = 0
    """Number of products that have been scored or are in a batch."""

    @property
    def left(self) -> int:
        return len(self.products) - self.taken

    @property
    def tokens_per_pair(self) -> float:
        return self.tokens / len(self.products)

    def take(self, count: int) -> Turn:
        """Take up to `count` of the waiting pairs for a batch."""
        turn = Turn(self, self.products[self.taken : self.taken + count])
        self.taken += len(turn.products)
        return turn


@dataclass(frozen=True)
class Turn:
    """The products of a job that are in a batch."""

    job: Job
    products: Sequence[Mapping[str, str | None]]

    @property
    def tokens(self) -> float:
        return self.job.tokens_per_pair * len(self.products)


@dataclass(eq=False)
class Queue:
    """Jobs in order of arrival. A job stays at the front until its last product is in a batch."""

    jobs: deque[Job] = field(default_factory=deque)
    served: float = 0.0
    """Estimated tokens of all batches so far, by which the two queues share the time."""

    @property
    def tokens(self) -> float:
        """Estimated tokens of the waiting pairs."""
        return sum(job.tokens_per_pair * job.left for job in self.jobs)


class Batcher:
    """Two bounded queues in front of the scorer: requests that fit into one batch, and larger ones.

    Each is served in order of arrival. While both have jobs they take turns, so that each has half of the time. A small
    request therefore waits for at most one batch of a large one, and of many large requests the first are completed in
    time instead of all being late. A request is accepted if half of the speed suffices to score it within
    `timeout_seconds`, or if its queue is empty.
    """

    def __init__(self, settings: Serving, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self._small, self._large = Queue(), Queue()
        self._arrived, self._full = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._tokens = self._seconds = 0.0  # of the latest batches, older ones with less weight
        self._in_batch = 0.0  # tokens that are being scored
        metrics.waiting_pairs.set_function(self.waiting)

    @property
    def _queues(self) -> tuple[Queue, Queue]:
        """Both queues, the one to serve next first."""
        small_first = self._small.served <= self._large.served
        return (self._small, self._large) if small_first else (self._large, self._small)

    def waiting(self) -> int:
        """Return the number of pairs in the queues, without those that are being scored."""
        return sum(job.left for queue in self._queues for job in queue.jobs)

    def submit(self, version: Version, query: str, products: Sequence[Mapping[str, str | None]]) -> Job:
        """Queue a request's pairs.

        Args:
            version: version that scores them.
            query: the query as typed.
            products: products as returned by `Scorer.cut`.

        Raises:
            Full: too many pairs wait, or the request could not be scored in time.
        """
        tokens = version.scorer.estimate_tokens(query, products)
        queue = self._small if len(products) <= self.settings.batch_pairs else self._large
        waiting, speed = self.waiting(), self._speed(version)
        late = (self._in_batch + queue.tokens + tokens) / speed - ACCEPTED * self.settings.timeout_seconds
        if waiting + len(products) > self.settings.max_waiting:
            raise Full(f"{waiting} pairs are waiting", max(late, queue.tokens / speed / 2))
        if queue.jobs and late > 0:
            raise Full(f"{waiting} pairs are waiting, too many to score this request in time", late)
        if not queue.jobs:  # time that an empty queue did not use is not made up for
            queue.served = max(self._small.served, self._large.served)
        job = Job(version, query, products, asyncio.get_running_loop().create_future(), tokens)
        queue.jobs.append(job)
        self._arrived.set()
        if waiting + len(products) >= self.settings.batch_pairs:
            self._full.set()
        return job

    def _speed(self, version: Version) -> float:
        """Return the estimated number of tokens scored per second."""
        return self._tokens / self._seconds if self._seconds else version.tokens_per_second

    def drop(self, job: Job) -> None:
        """Cancel a job that is not done, so that no more of its pairs are scored."""
        job.scored.cancel()
        for queue in self._queues:
            if job in queue.jobs:
                queue.jobs.remove(job)

    async def run(self) -> None:
        """Score the queued jobs until canceled."""
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
            if not any(queue.jobs for queue in self._queues):
                self._arrived.clear()

    async def _gather(self) -> None:
        """Wait for more jobs until the oldest has waited `batch_milliseconds` or a batch is full."""
        self._full.clear()
        first = min((queue.jobs[0].arrived for queue in self._queues if queue.jobs), default=None)
        if first is None or self.waiting() >= self.settings.batch_pairs:
            return
        left = first + self.settings.batch_milliseconds / 1000 - time.monotonic()
        if left > 0:
            try:
                async with asyncio.timeout(left):
                    await self._full.wait()
            except TimeoutError:
                pass

    def _take(self) -> list[Turn]:
        """Take the next batch: up to `batch_pairs` pairs of jobs of one version."""
        batch: list[Turn] = []
        pairs, tokens = self.settings.batch_pairs, 0.0
        for queue in self._queues:
            while queue.jobs and (not batch or queue.jobs[0].version is batch[0].job.version):
                job = queue.jobs[0]
                if not batch:
                    tokens = self._speed(job.version) * BATCH * self.settings.timeout_seconds
                room = min(pairs, max(int(tokens / job.tokens_per_pair), 0 if batch else 1))
                if room < 1:
                    break
                batch.append(job.take(room))
                pairs -= len(batch[-1].products)
                tokens -= batch[-1].tokens
                queue.served += batch[-1].tokens
                if not job.left:
                    queue.jobs.popleft()
        self._in_batch = sum(turn.tokens for turn in batch)
        for turn in batch:
            if not turn.job.logits:
                self.metrics.queue_seconds.observe(time.monotonic() - turn.job.arrived)
        return batch

    def _hand_out(self, batch: list[Turn], scores: list[np.ndarray | Exception], seconds: float) -> None:
        pairs = sum(len(turn.products) for turn in batch)
        fade = math.exp(-seconds / HORIZON)
        self._tokens, self._seconds = self._tokens * fade + self._in_batch, self._seconds * fade + seconds
        self._in_batch = 0.0
        self.metrics.pairs.inc(pairs)
        self.metrics.batch_pairs.observe(pairs)
        self.metrics.batch_requests.observe(len(batch))
        self.metrics.scoring_seconds.observe(seconds)
        for turn, result in zip(batch, scores, strict=True):
            job = turn.job
            if job.scored.done():  # canceled meanwhile
                continue
            if isinstance(result, Exception):
                job.scored.set_exception(result)
                self.drop(job)
                continue
            job.logits.append(result)
            if not job.left:
                job.scored.set_result(np.concatenate(job.logits))


def _score(version: Version, batch: Sequence[Turn]) -> list[np.ndarray | Exception]:
    """Score a batch; return logits or an exception for each turn.

    If the batch fails, each turn is scored separately, so that only the request that causes the error fails.
    """
    try:
        scores = version.scorer.score_lists([turn.job.query for turn in batch], [turn.products for turn in batch])
        return list(scores)
    except Exception as error:
        if len(batch) > 1:
            return [result for turn in batch for result in _score(version, [turn])]
        if not isinstance(error, InputError):
            log.exception("a request of %d products cannot be scored", len(batch[0].job.products))
        return [error]
