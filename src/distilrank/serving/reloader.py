"""The version that is served: loaded, checked, and replaced when the alias moves."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from distilrank import registry as registries
from distilrank.config import Compute
from distilrank.core import schemas
from distilrank.core.errors import InputError
from distilrank.modeling.scorer import Scorer
from distilrank.serving.metrics import Metrics
from distilrank.serving.settings import Serving

REHEARSED = 64  # rows of a version's traffic that are scored before it serves
BUILT_IN = ("cordless drill", "red leather sofa", "phone case", "garden hose 50 ft", "kids running shoes")
"""Queries, each with all of them as titles, that a version without traffic is rehearsed on."""
LONGEST_PAUSE = 300.0  # seconds between two attempts at a version that cannot be loaded

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Version:
    """A version of the registry, ready to score."""

    id: str
    manifest: dict[str, Any]
    scorer: Scorer
    tokens_per_second: float
    """Estimated tokens, of its rehearsal: the speed that is assumed before the first batch."""
    loaded: datetime = field(default_factory=lambda: datetime.now(UTC))


def load(backend: registries.Backend, name: str, settings: Serving) -> Version:
    """Load a version: every byte verified, and its scores those with which it was promoted.

    It computes on the processor, in fp32: a version's scores are the same wherever it is served.

    Raises:
        InputError: it is damaged, cannot be computed here, or its scores are others.
    """
    folder = backend.fetch(name)
    scorer = Scorer.load(
        folder / "student",
        Compute(device="cpu", precision="fp32", threads=settings.threads),
        backend=settings.backend,
        cached_products=settings.cached_products,
    )
    speed = _rehearse(scorer, folder / "traffic", settings.tolerance)
    return Version(name, backend.manifest(name), scorer, speed)


def _rehearse(scorer: Scorer, traffic: Path, tolerance: float) -> float:
    """Score some of the version's own traffic, which warms the scorer, and compare with what it was promoted with.

    The scores in the registry are those of the network in torch: a faulty export, or a processor on which 8-bit
    products overflow, shows here. A version that was promoted without traffic has no such scores: it has to tell
    built-in pairs apart.

    Returns:
        Estimated tokens that it scores in a second.
    """
    rows = schemas.read(traffic / "reference.parquet", schemas.TRAFFIC, ["query", *schemas.PRODUCT_FIELDS])
    expected = schemas.read(traffic / "reference_scores.parquet", schemas.TRAFFIC_SCORES)
    if len(rows) != len(expected):
        raise InputError(f"{traffic}: {len(rows)} rows of traffic and {len(expected)} scores, expected as many")
    if len(rows):
        rows = rows.slice(0, REHEARSED)
        queries = rows.column("query").to_pylist()
        products = [[product] for product in rows.select(schemas.PRODUCT_FIELDS).to_pylist()]
    else:
        log.warning("%s: no traffic to compare with, rehearsed on %d built-in pairs", traffic, len(BUILT_IN))
        queries = list(BUILT_IN)
        products = [[{"title": title} for title in BUILT_IN]] * len(queries)
    began = time.perf_counter()
    logits = np.concatenate(scorer.score_lists(queries, products))
    speed = sum(map(scorer.estimate_tokens, queries, products)) / (time.perf_counter() - began)
    if not len(rows):
        if np.ptp(logits) == 0:
            raise InputError(
                f"{traffic}: {scorer.backend.describe()} gives each of {len(logits)} built-in pairs the score "
                f"{logits[0]:g}, expected different ones"
            )
    else:
        off = np.abs(scorer.estimate(logits) - expected.column("score").to_numpy()[: len(rows)]).mean()
        if not off <= tolerance:  # nor is what is no number
            raise InputError(
                f"{traffic}: probabilities by {scorer.backend.describe()} are off by {off:.4f} on average from those "
                f"that the version was promoted with, expected at most {tolerance}"
            )
    return speed


@dataclass(frozen=True)
class Failure:
    """Attempts in a row that failed."""

    version: str | None
    """None: the registry cannot be read, so which one to serve is not known."""
    problem: str
    attempts: int
    again: float
    """When the version is tried again, by time.monotonic()."""


class Watch:
    """Keeps the version that an alias points to, or a fixed one, at hand."""

    def __init__(self, settings: Serving, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.backend = registries.open(settings.registry)
        self.current: Version | None = None
        self.alias = settings.model if settings.model == registries.CHAMPION else None
        # Apart, so that a registry that cannot be read for a moment does not end the pause of a damaged version.
        self._unread: Failure | None = None
        self._unloaded: Failure | None = None

    @property
    def failure(self) -> Failure | None:
        """What keeps the version that should be served from being served."""
        return self._unread or self._unloaded

    @property
    def problem(self) -> str | None:
        """What is wrong, in words."""
        return self.failure.problem if self.failure else None

    @property
    def failing(self) -> str | None:
        """The version that cannot be loaded; None: none, or the registry cannot be read."""
        return self.failure.version if self.failure else None

    @property
    def attempts(self) -> int:
        """How often in a row it was tried; 0: nothing fails."""
        return self.failure.attempts if self.failure else 0

    async def run(self) -> None:
        """Look at the alias for ever; a version takes over once it is loaded, whoever has the old one keeps it."""
        while True:
            await self.poll()
            await asyncio.sleep(self.settings.reload_seconds)

    async def poll(self) -> None:
        """Load what the alias points to now, unless that is served already or failed a moment ago."""
        wanted: str | None = None
        try:
            wanted = await asyncio.to_thread(self._wanted)
            self._unread = None
            if self.current is None or self.current.id != wanted:
                failed = self._unloaded
                if failed and failed.version == wanted and time.monotonic() < failed.again:
                    return
                self._serve(await asyncio.to_thread(load, self.backend, wanted, self.settings))
            self._unloaded = None
            self.metrics.reload_failing.set(0)
        except InputError as error:
            self._fail(wanted, str(error))
        except Exception as error:  # whatever a version makes a library do, the old one must go on serving
            log.exception("version %s cannot be loaded", wanted)
            self._fail(wanted, f"{type(error).__name__}, see the log")

    def _wanted(self) -> str:
        """The version to serve. That nothing has changed is known by one small read, wherever the registry is."""
        now = self.current.id if self.current else None
        if now and now == (self.backend.alias(self.alias) if self.alias else self.settings.model):
            return now
        return registries.resolve(self.backend, self.settings.model)

    def _serve(self, version: Version) -> None:
        before = self.current.id if self.current else "none"
        self.current = version
        self.metrics.model.clear()
        self.metrics.model.labels(version.id, self.alias or "").set(1)
        self.metrics.loaded.set(version.loaded.timestamp())
        self.metrics.reloads.inc()
        log.info("serving %s (before: %s), %s", version.id, before, version.scorer.backend.describe())

    def _fail(self, wanted: str | None, problem: str) -> None:
        before = self._unloaded if wanted else self._unread
        attempts = before.attempts + 1 if before and before.version == wanted else 1
        pause = min(self.settings.reload_seconds * 2 ** min(attempts, 20), LONGEST_PAUSE)
        failure = Failure(wanted, problem, attempts, time.monotonic() + pause)
        self.metrics.reload_failures.inc()
        self.metrics.reload_failing.set(1)
        if problem != self.problem:
            still = f"{self.current.id} goes on serving" if self.current else "nothing is served yet"
            log.error("%s; %s", problem, still)
        if wanted:
            self._unloaded = failure
        else:
            self._unread = failure
