"""Loads the version that is served, checks it, and replaces it when the alias moves."""

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
    """Load a version, verify every byte, and compare its scores with those at its promotion.

    Scores are computed on the processor in fp32, so that a version scores the same wherever it is served.

    Raises:
        InputError: it is damaged, cannot be computed here, or its scores differ.
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
    """Consecutive failed attempts to load a version."""

    version: str | None
    """None: the registry cannot be read, so the target version is unknown."""
    problem: str
    attempts: int
    again: float
    """When the version is tried again, by time.monotonic()."""


class Reloader:
    """Serves the version that an alias points to, or a fixed version, and reloads it when the alias moves."""

    def __init__(self, settings: Serving, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.backend = registries.open(settings.registry)
        self.current: Version | None = None
        self.alias = settings.model if settings.model == registries.CHAMPION else None
        # Separate, so that a registry that is briefly unreadable does not end the pause of a damaged version.
        self._unread: Failure | None = None
        self._unloaded: Failure | None = None

    @property
    def failure(self) -> Failure | None:
        """Why the target version is not served; None: it is."""
        return self._unread or self._unloaded

    @property
    def problem(self) -> str | None:
        """Why, in words."""
        return self.failure.problem if self.failure else None

    @property
    def failing(self) -> str | None:
        """Id of the version that cannot be loaded; None: there is none, or the registry cannot be read."""
        return self.failure.version if self.failure else None

    @property
    def attempts(self) -> int:
        """Number of consecutive failed attempts; 0: nothing fails."""
        return self.failure.attempts if self.failure else 0

    async def run(self) -> None:
        """Poll the alias indefinitely. A new version takes over once loaded; requests in progress keep the old one."""
        while True:
            await self.poll()
            await asyncio.sleep(self.settings.reload_seconds)

    async def poll(self) -> None:
        """Load the version that the alias points to, unless it is served already or failed recently."""
        target: str | None = None
        try:
            target = await asyncio.to_thread(self._target_version)
            self._unread = None
            if self.current is None or self.current.id != target:
                failed = self._unloaded
                if failed and failed.version == target and time.monotonic() < failed.again:
                    return
                self._serve(await asyncio.to_thread(load, self.backend, target, self.settings))
            self._unloaded = None
            self.metrics.reload_failing.set(0)
        except InputError as error:
            self._fail(target, str(error))
        except Exception as error:  # whatever error a version causes in a library, the old one must continue to serve
            log.exception("version %s cannot be loaded", target)
            self._fail(target, f"{type(error).__name__}, see the log")

    def _target_version(self) -> str:
        """Return the version to serve. If nothing has changed, one small read of the registry shows it."""
        current = self.current.id if self.current else None
        if current and current == (self.backend.alias(self.alias) if self.alias else self.settings.model):
            return current
        return registries.resolve(self.backend, self.settings.model)

    def _serve(self, version: Version) -> None:
        before = self.current.id if self.current else "none"
        self.current = version
        self.metrics.model.clear()
        self.metrics.model.labels(version.id, self.alias or "").set(1)
        self.metrics.loaded.set(version.loaded.timestamp())
        self.metrics.reloads.inc()
        log.info("serving %s (before: %s), %s", version.id, before, version.scorer.backend.describe())

    def _fail(self, version: str | None, problem: str) -> None:
        before = self._unloaded if version else self._unread
        attempts = before.attempts + 1 if before and before.version == version else 1
        pause = min(self.settings.reload_seconds * 2 ** min(attempts, 20), LONGEST_PAUSE)
        failure = Failure(version, problem, attempts, time.monotonic() + pause)
        self.metrics.reload_failures.inc()
        self.metrics.reload_failing.set(1)
        if problem != self.problem:
            still = f"{self.current.id} goes on serving" if self.current else "nothing is served yet"
            log.error("%s; %s", problem, still)
        if version:
            self._unloaded = failure
        else:
            self._unread = failure
