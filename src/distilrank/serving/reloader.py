"""Loading of the served version: it is checked, and replaced when the alias moves."""

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

REHEARSAL_ROWS = 64  # rows of a version's traffic that are scored before it is served
BUILT_IN = ("cordless drill", "red leather sofa", "phone case", "garden hose 50 ft", "kids running shoes")
"""Queries for the rehearsal of a version without traffic; each is paired with all of them as titles."""
LONGEST_PAUSE = 300.0  # longest pause in seconds before a failed version is tried again

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Version:
    """A version of the registry, ready to score."""

    id: str
    manifest: dict[str, Any]
    scorer: Scorer
    tokens_per_second: float
    """Estimated tokens per second in the rehearsal: the assumed speed before the first batch."""
    loaded: datetime = field(default_factory=lambda: datetime.now(UTC))


def load(backend: registries.Backend, name: str, settings: Serving) -> Version:
    """Load a version, verify every byte, and compare its scores with those at its promotion.

    Scores are computed on the CPU in fp32, so that a version gives the same scores on every machine.

    Raises:
        InputError: the version is damaged, cannot be run on this machine, or gives different scores.
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
    """Warm up a scorer on the version's own traffic, and compare its scores with those at the promotion.

    The scores in the registry come from the torch model, so that a faulty export, or a CPU on which 8-bit products
    overflow, is detected here. A version that was promoted without traffic has no such scores, and must give built-in
    pairs different scores.

    Returns:
        Estimated tokens scored per second.
    """
    rows = schemas.read(traffic / "reference.parquet", schemas.TRAFFIC, ["query", *schemas.PRODUCT_FIELDS])
    expected = schemas.read(traffic / "reference_scores.parquet", schemas.TRAFFIC_SCORES)
    if len(rows) != len(expected):
        raise InputError(f"{traffic}: {len(rows)} rows of traffic and {len(expected)} scores, expected the same number")
    if len(rows):
        rows = rows.slice(0, REHEARSAL_ROWS)
        queries = rows.column("query").to_pylist()
        products = [[product] for product in rows.select(schemas.PRODUCT_FIELDS).to_pylist()]
    else:
        log.warning("%s: no traffic to compare with, rehearsed on %d built-in pairs", traffic, len(BUILT_IN))
        queries = list(BUILT_IN)
        products = [[{"title": title} for title in BUILT_IN]] * len(queries)
    started = time.perf_counter()
    logits = np.concatenate(scorer.score_lists(queries, products))
    speed = sum(map(scorer.estimate_tokens, queries, products)) / (time.perf_counter() - started)
    if not len(rows):
        if np.ptp(logits) == 0:
            raise InputError(
                f"{traffic}: {scorer.backend.describe()} gives each of {len(logits)} built-in pairs the score "
                f"{logits[0]:g}, expected different ones"
            )
    else:
        error = np.abs(scorer.estimate(logits) - expected.column("score").to_numpy()[: len(rows)]).mean()
        if not error <= tolerance:  # also true of NaN
            raise InputError(
                f"{traffic}: probabilities by {scorer.backend.describe()} differ by {error:.4f} on average from those "
                f"at the promotion of the version, expected at most {tolerance}"
            )
    return speed


@dataclass(frozen=True)
class Failure:
    """Consecutive failed attempts to load a version."""

    version: str | None
    """Target version; None if it is unknown because the registry cannot be read."""
    problem: str
    attempts: int
    again: float
    """Time of the next attempt, by time.monotonic()."""


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
        """Failure to serve the target version; None if it is served."""
        return self._unread or self._unloaded

    @property
    def problem(self) -> str | None:
        """Message of the failure; None if the target version is served."""
        return self.failure.problem if self.failure else None

    @property
    def failing(self) -> str | None:
        """Id of the version that cannot be loaded; None if there is none or the registry cannot be read."""
        return self.failure.version if self.failure else None

    @property
    def attempts(self) -> int:
        """Number of consecutive failed attempts; 0 without a failure."""
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
        except Exception as error:  # any error of a library: the previous version must stay in service
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
            effect = f"{self.current.id} is still served" if self.current else "no version is served yet"
            log.error("%s; %s", problem, effect)
        if version:
            self._unloaded = failure
        else:
            self._unread = failure
