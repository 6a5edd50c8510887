"""HTTP server of an export: POST /score, and GET /health, /ready and /metrics."""

import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as metrics_text
from prometheus_client.core import CounterMetricFamily
from pydantic_core import from_json, to_json

from msrec.data.features.value_counts import CountedColumns
from msrec.launch.serving.batcher import Batcher, Limits, QueueFullError
from msrec.launch.serving.request_histories import EventCounts
from msrec.launch.serving.request_rows import RequestRows
from msrec.launch.serving.scorer import Scorer

RETRY_AFTER_S = 1
ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SECONDS_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
SWITCH_INTERVAL_S = 1e-4
WHERE = "request"
"""Name of a request in errors about its rows."""


class _Metrics:
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
        self.waiting = Gauge("msrec_waiting_rows", "rows that wait for a batch", registry=registry)


class _ValueMetrics:
    """Metrics of the values of raw rows by column, read from running totals."""

    def __init__(self, counts: CountedColumns) -> None:
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily]:
        families = [
            CounterMetricFamily(f"msrec_{name}", text, labels=["column"])
            for name, text in (
                ("values", "values of raw rows that are not null"),
                ("unknown_values", "those of them that training or the tables of keys do not know"),
                ("missing_values", "rows in which a value is null"),
            )
        ]
        for column, counts in self._counts.totals().items():
            for family, count in zip(families, counts, strict=True):
                family.add_metric([column], count)
        yield from families


class _Service:
    """Endpoints of the app, which share a batcher and metrics."""

    def __init__(self, scorer: Scorer, limits: Limits) -> None:
        self.is_ready = False
        self._scorer, self._metrics = scorer, _Metrics()
        self._metrics.registry.register(_ValueMetrics(scorer.encoder.counts))
        self.batcher = Batcher(scorer.score, limits, self._metrics.batch_rows.observe)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self.batcher.start()
        self.is_ready = True
        yield
        self.is_ready = False
        await self.batcher.stop()

    async def health(self) -> dict[str, str]:
        return {"status": "alive"}

    async def ready(self) -> dict[str, str]:
        if not self.is_ready:
            raise HTTPException(503, "the server is starting or stopping")
        return {"status": "ready", "run": self._scorer.manifest.run}

    async def metrics(self) -> Response:
        self._metrics.waiting.set(self.batcher.waiting_rows)
        return Response(metrics_text(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def score(self, request: Request) -> Response:
        started = time.perf_counter()
        try:
            rows, counts = self._encode(await request.body())
            scores = await self.batcher.score(rows)
        except HTTPException as error:
            self._metrics.requests.labels(error.status_code).inc()
            raise
        except QueueFullError as error:
            self._metrics.requests.labels(503).inc()
            retry = {"Retry-After": str(RETRY_AFTER_S)}
            raise HTTPException(503, f"{error}; try again later.", retry) from None
        self._metrics.requests.labels(200).inc()
        self._metrics.rows.inc(len(rows))
        self._metrics.seconds.observe(time.perf_counter() - started)
        answer: dict[str, Any] = {"scores": scores.tolist()}
        if counts is not None:
            answer["history"] = counts._asdict()
        return Response(to_json(answer), media_type="application/json")

    def _encode(self, body: bytes) -> tuple[RequestRows, EventCounts | None]:
        rows, events = _parse_request(body, self.batcher.limits.max_queue)
        self.batcher.require_room(len(rows))  # before the work of encoding
        encoder = self._scorer.encoder
        try:
            if events is None:
                return encoder.encode_json(rows, WHERE), None
            history = encoder.encode_history(events, WHERE)
            return encoder.encode_json(rows, WHERE, history), history.counts
        except ValueError as error:
            raise HTTPException(422, str(error)) from None


def create_app(scorer: Scorer, limits: Limits | None = None) -> FastAPI:
    """Returns the app that serves an export.

    POST /score takes {"rows": [ROW, ...]}, raw rows as `RowEncoder` describes them, and answers
    {"scores": [...]} in the same order. With {"rows": [...], "history": [EVENT, ...]} the rows have
    that history instead of those of their users, and the answer also has the counts of its events,
    see `EventCounts`. Errors are {"detail": SENTENCE}: 400 for a body that is not
    JSON, 413 for more rows than may ever wait, 422 for an invalid row (the sentence names row and
    column), 503 with Retry-After while too many rows wait.
    """
    service = _Service(scorer, limits or Limits())
    app = FastAPI(title="msrec", lifespan=service.lifespan, openapi_url=None)
    app.add_api_route("/health", service.health)
    app.add_api_route("/ready", service.ready)
    app.add_api_route("/metrics", service.metrics)
    app.add_api_route("/score", service.score, methods=["POST"])
    app.state.service = service
    return app


def _parse_request(body: bytes, max_rows: int) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """Returns the raw rows of a request and its history, if it carries one.

    Raises HTTPException if the request is invalid.
    """
    try:
        content: Any = from_json(body, allow_inf_nan=True)
    except ValueError as error:
        raise HTTPException(400, f"{WHERE} must be JSON; {error}.") from None
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise HTTPException(422, f'{WHERE} must be {{"rows": [...]}}, a list of raw rows.')
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise HTTPException(422, f"{WHERE}: row {number} must be an object; found {row!r}.")
    if len(rows) > max_rows:
        raise HTTPException(413, f"{WHERE} must have at most {max_rows} rows; it has {len(rows)}.")
    history = content.get("history")
    if history is not None and not isinstance(history, list):
        raise HTTPException(422, f"{WHERE}: history must be a list of events, newest last.")
    return rows, history


class DrainingServer(uvicorn.Server):
    """Server that accepts requests for some seconds after a signal, while /ready answers 503.

    Load balancers use these seconds to send their requests to other servers.
    """

    def __init__(self, app: FastAPI, drain_s: float, **options: Any) -> None:
        super().__init__(uvicorn.Config(app, **options))
        self._service, self._drain_s = app.state.service, drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops the server after the delay; a second signal stops it at once."""
        delay_s, self._drain_s = self._drain_s, 0.0
        self._service.is_ready = False
        timer = threading.Timer(delay_s, super().handle_exit, (sig, frame))
        timer.daemon = True
        timer.start()


def serve(
    scorer: Scorer, host: str, port: int, limits: Limits, threads: int, drain_s: float
) -> None:
    """Answers requests until SIGTERM or SIGINT, and those of the next `drain_s` seconds."""
    torch.set_num_threads(threads)
    # The scoring thread needs the interpreter for microseconds between calls that release it. By
    # default it would wait 5 ms each time while the event loop parses a request.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    app = create_app(scorer, limits)
    options = {"host": host, "port": port, "log_level": "warning", "access_log": False}
    DrainingServer(app, drain_s, **options).run()
