"""Requests that wait are scored together, one call to the scorer at a time, in a separate thread.

A request is accepted only if it can be scored in time: its cost is estimated in tokens and compared with the speed of
the last batches.
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

LONGEST_RETRY = 60  # seconds that a refused client is asked to wait at most
ACCEPTED = 0.4
"""Part of `timeout_seconds` in which what is accepted could be scored at full speed. Half of the speed is certain for
either queue, and a fifth of the time is left for the batch in progress and the estimate's error."""
BATCH = 0.1  # of `timeout_seconds` that a batch takes at most, where `batch_pairs` would take longer
HORIZON = 2.0  # seconds of scoring by which what a batch says of the speed has lost two thirds of its weight

log = logging.getLogger(__name__)


class Full(Exception):
    """More waits than may wait; `retry` is the seconds after which there should be room."""

    def __init__(self, reason: str, retry: float) -> None:
        super().__init__(reason)
        self.retry = min(max(math.ceil(retry), 1), LONGEST_RETRY)


@dataclass(eq=False)
class Job:
    """A request's pairs, all of them for one version."""

    version: Version
    query: str
    products: Sequence[Mapping[str, str | None]]
    scored: asyncio.Future[np.ndarray]
    """Its logits, float32, shape (products,), or why there are none: InputError, where the query is to blame."""
    tokens: int
    """Estimated tokens of all its pairs."""
    arrived: float = field(default_factory=time.monotonic)
    logits: list[np.ndarray] = field(default_factory=list)
    """Of the products that are scored."""
    taken: int = 0
    """Products that are scored or in a batch."""

    @property
    def left(self) -> int:
        return len(self.products) - self.taken

    @property
    def tokens_per_pair(self) -> float:
        return self.tokens / len(self.products)

    def take(self, count: int) -> Turn:
        """Put up to `count` of the pairs that wait into a batch."""
        turn = Turn(self, self.products[self.taken : self.taken + count])
        self.taken += len(turn.products)
        return turn


@dataclass(frozen=True)
class Turn:
    """A job's products in a batch."""

    job: Job
    products: Sequence[Mapping[str, str | None]]

    @property
    def tokens(self) -> float:
        return self.job.tokens_per_pair * len(self.products)


@dataclass(eq=False)
class Queue:
    """Jobs in order of arrival; one stays at the front until its last product is in a batch."""

    jobs: deque[Job] = field(default_factory=deque)
    served: float = 0.0
    """Estimated tokens of all batches so far, by which two queues share the time."""

    @property
    def tokens(self) -> float:
        """Estimated tokens of the pairs that wait."""
        return sum(job.tokens_per_pair * job.left for job in self.jobs)


class Batcher:
    """Two bounded queues in front of the scorer: requests that fit into one batch, and larger ones.

    Each is served in order of arrival. While both wait they take turns so that either has half of the time: a small
    request waits for one batch of a large one at most, and of many large ones the first are complete in time instead
    of all being late together. A request is accepted if half of the speed suffices to score it within
    `timeout_seconds`; while nothing waits in its queue, it always is.
    """

    def __init__(self, settings: Serving, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self._small, self._large = Queue(), Queue()
        self._arrived, self._full = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._tokens = self._seconds = 0.0  # of the last batches, older ones with less weight
        self._in_batch = 0.0  # tokens that are being scored
        metrics.waiting_pairs.set_function(self.waiting)

    @property
    def _queues(self) -> tuple[Queue, Queue]:
        """The one that is to be served first, and the other one."""
        small_first = self._small.served <= self._large.served
        return (self._small, self._large) if small_first else (self._large, self._small)

    def waiting(self) -> int:
        """Pairs in the queues; those that are being scored do not count."""
        return sum(job.left for queue in self._queues for job in queue.jobs)

    def submit(self, version: Version, query: str, products: Sequence[Mapping[str, str | None]]) -> Job:
        """Queue a request's pairs.

        Args:
            version: scores them.
            query: as typed.
            products: as `Scorer.cut` gives them.

        Raises:
            Full: too many wait, or it could not be scored in time.
        """
        tokens = version.scorer.estimate_tokens(query, products)
        queue = self._small if len(products) <= self.settings.batch_pairs else self._large
        waiting, speed = self.waiting(), self._speed(version)
        late = (self._in_batch + queue.tokens + tokens) / speed - ACCEPTED * self.settings.timeout_seconds
        if waiting + len(products) > self.settings.max_waiting:
            raise Full(f"{waiting} pairs are waiting", max(late, queue.tokens / speed / 2))
        if queue.jobs and late > 0:
            raise Full(f"{waiting} pairs are waiting, too many to score this request in time", late)
        if not queue.jobs:  # what it did not use before is not made up for
            queue.served = max(self._small.served, self._large.served)
        job = Job(version, query, products, asyncio.get_running_loop().create_future(), tokens)
        queue.jobs.append(job)
        self._arrived.set()
        if waiting + len(products) >= self.settings.batch_pairs:
            self._full.set()
        return job

    def _speed(self, version: Version) -> float:
        """Estimated tokens that are scored in a second."""
        return self._tokens / self._seconds if self._seconds else version.tokens_per_second

    def drop(self, job: Job) -> None:
        """Give a job up if it is not done, so that nothing more is scored for it."""
        job.scored.cancel()
        for queue in self._queues:
            if job in queue.jobs:
                queue.jobs.remove(job)

    async def run(self) -> None:
        """Score what is queued until canceled."""
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
        """Wait for others to go with the first that arrived, until it has waited long enough or they are many."""
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
        """The next batch: jobs of one version, up to `batch_pairs` of their pairs."""
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
        for turn, found in zip(batch, scores, strict=True):
            job = turn.job
            if job.scored.done():  # given up meanwhile
                continue
            if isinstance(found, Exception):
                job.scored.set_exception(found)
                self.drop(job)
                continue
            job.logits.append(found)
            if not job.left:
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
