"""Prometheus metrics of the service."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PAIRS = (1, 5, 10, 25, 50, 100, 250, 500, 1000)
REQUESTS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one service, in a separate Prometheus registry; all names begin with `distilrank_`."""

    def __init__(self) -> None:
        disable_created_metrics()  # removes the extra series with the creation time of each label
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Requests answered.", "endpoint", "status")
        self.seconds = self._histogram(
            "request_seconds", "From a request's headers to its response.", SECONDS, "endpoint"
        )
        self.in_flight = self._gauge("in_flight_requests", "Scoring requests that are being read, queued or scored.")
        self.connections = self._gauge("connections", "Open connections.")
        self.dropped = self._counter("dropped_connections", "Connections closed because of their client.", "reason")
        self.waiting_pairs = self._gauge("waiting_pairs", "Pairs waiting to be scored.")
        self.queue_seconds = self._histogram("queue_seconds", "From a request's arrival to its first batch.", SECONDS)
        self.scoring_seconds = self._histogram("scoring_seconds", "Scoring of one batch.", SECONDS)
        self.batch_pairs = self._histogram("batch_pairs", "Pairs of one batch.", PAIRS)
        self.batch_requests = self._histogram("batch_requests", "Requests with pairs in one batch.", REQUESTS)
        self.pairs = self._counter("pairs", "Pairs scored.")
        self.cache_hits = self._counter("product_cache_hits", "Products whose tokens were in the cache.")
        self.cache_misses = self._counter("product_cache_misses", "Products that had to be tokenized.")
        self.abandoned = self._counter("abandoned", "Requests abandoned before they were scored.", "reason")
        self.model = self._gauge("model_info", "The version that is served, as labels; always 1.", "version", "alias")
        self.loaded = self._gauge(
            "model_loaded_timestamp_seconds", "When the served version was loaded, in seconds since 1970."
        )
        self.reloads = self._counter("reloads", "Versions that were loaded and served, including the first.")
        self.reload_failures = self._counter("reload_failures", "Attempts to follow the alias that failed.")
        self.reload_failing = self._gauge(
            "reload_failing", "1 while the version that should be served cannot be loaded."
        )
        self.ready = self._gauge("ready", "1 while /readyz returns 200.")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"distilrank_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"distilrank_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"distilrank_{name}", text, labels, buckets=buckets, registry=self.registry)
