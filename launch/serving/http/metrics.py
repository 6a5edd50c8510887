"""Metrics of the server for Prometheus, of one process or of several workers."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from msrec.data.features.value_counts import Counts

ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SECONDS_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
WORKERS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of prometheus_client: folder in which workers share their metrics."""


class Metrics:
    """Metrics of one app for Prometheus."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "msrec_requests", "requests to /score", ["status"], registry=registry
        )
        self.rows = Counter("msrec_rows", "rows scored", registry=registry)
        help_seconds = "seconds from the arrival of a request to its answer"
        self.seconds = Histogram(
            "msrec_request_seconds", help_seconds, buckets=SECONDS_BUCKETS, registry=registry
        )
        self.batch_rows = Histogram(
            "msrec_batch_rows", "rows of a batch", buckets=ROWS_BUCKETS, registry=registry
        )
        self.waiting = Gauge(
            "msrec_waiting_rows",
            "rows that wait for a batch",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.exports = Counter(
            "msrec_exports", "other exports that the link led to", ["result"], registry=registry
        )
        self._values = [
            Counter(f"msrec_{name}", text, ["column"], registry=registry)
            for name, text in (
                ("values", "values of raw rows that are not null"),
                ("unknown_values", "those of them that training or the tables of keys do not know"),
                ("missing_values", "rows in which a value is null"),
            )
        ]

    def add_values(self, counts: Counts) -> None:
        """Adds the counts of values of some raw rows."""
        for column, numbers in counts.items():
            for counter, number in zip(self._values, numbers, strict=True):
                counter.labels(column).inc(number)

    def text(self) -> bytes:
        """Returns the metrics of this process, or the sum over the workers."""
        if WORKERS_VARIABLE not in os.environ:
            return generate_latest(self.registry)
        workers = CollectorRegistry()
        MultiProcessCollector(workers)  # type: ignore[no-untyped-call]
        return generate_latest(workers)
