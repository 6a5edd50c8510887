"""The HTTP server of an export: POST /score, and what an operator asks: health, ready, metrics."""

import logging
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as metrics_text
from pydantic_core import from_json, to_json

from msrec.launch.serving.batcher import Batcher, QueueFullError
from msrec.launch.serving.request_rows import RequestRows
from msrec.launch.serving.scorer import Scorer

logger = logging.getLogger(__name__)
RETRY_AFTER_S = 1
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
WHERE = "request"
SWITCH_S = 1e-4


@dataclass(frozen=True)
class Limits:
    """How requests are put together, and how many may wait."""

    max_batch: int = 512
    max_wait_ms: float = 1.0
    max_queue: int = 8192
    """Rows; a request with more is refused for good."""


class _Metrics:
    """What /metrics tells; a registry of its own for each app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("msrec_requests", "requests to /score", ["status"], **of)
        self.rows = Counter("msrec_rows", "rows scored", **of)
        self.seconds = Histogram(
            "msrec_request_seconds", "from a request's arrival to its answer", buckets=SECONDS, **of
        )
        self.batches = Histogram("msrec_batch_rows", "rows of a call", buckets=ROWS, **of)
        self.waiting = Gauge("msrec_waiting_rows", "rows that wait for a call", **of)


def create_app(scorer: Scorer, limits: Limits | None = None) -> FastAPI:
    """The app around an export that is in memory.

    POST /score takes {"rows": [ROW, ...]}, each a raw row (see `data/features/row_encoder.py`), and
    answers {"scores": [...]} in their order. Errors are {"detail": SENTENCE}: 400 what is no JSON,
    413 more rows than may ever wait, 422 a bad row, by number and column, 503 with Retry-After when
    too many rows wait.
    """
    limits = limits or Limits()
    metrics = _Metrics()
    batcher = Batcher(
        scorer.score,
        limits.max_batch,
        limits.max_wait_ms / 1e3,
        limits.max_queue,
        metrics.batches.observe,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        app.state.is_ready = True
        yield
        app.state.is_ready = False
        await batcher.stop()

    app = FastAPI(title="msrec", lifespan=lifespan, openapi_url=None)
    app.state.batcher, app.state.is_ready = batcher, False

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        if not app.state.is_ready:
            raise HTTPException(503, "the server is starting or stopping")
        return {"status": "ready", "run": scorer.manifest.run}

    @app.get("/metrics")
    async def tell_metrics() -> Response:
        metrics.waiting.set(batcher.waiting_rows)
        return Response(metrics_text(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/score")
    async def score(request: Request) -> Response:
        started = time.perf_counter()
        try:
            lines = _lines(await request.body(), limits.max_queue)
            batcher.check_room(len(lines))
            rows = _rows(scorer, lines)
            scores = await batcher.score(rows)
        except HTTPException as error:
            metrics.requests.labels(error.status_code).inc()
            raise
        except QueueFullError as error:
            metrics.requests.labels(503).inc()
            retry = {"Retry-After": str(RETRY_AFTER_S)}
            raise HTTPException(503, f"{error}; try again later.", retry) from None
        metrics.requests.labels(200).inc()
        metrics.rows.inc(len(rows))
        metrics.seconds.observe(time.perf_counter() - started)
        return Response(to_json({"scores": scores.tolist()}), media_type="application/json")

    return app


def _lines(body: bytes, most: int) -> list[dict[str, Any]]:
    """The rows of a request as they were sent.

    Raises:
        HTTPException: they are not what they must be.
    """
    try:
        asked: Any = from_json(body, allow_inf_nan=True)
    except ValueError as error:
        raise HTTPException(400, f"{WHERE} must be JSON; {error}.") from None
    rows = asked.get("rows") if isinstance(asked, dict) else None
    if not isinstance(rows, list):
        raise HTTPException(422, f'{WHERE} must be {{"rows": [...]}}, a list of raw rows.')
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise HTTPException(422, f"{WHERE}: row {number} must be an object; found {row!r}.")
    if len(rows) > most:
        raise HTTPException(413, f"{WHERE} must have at most {most} rows; it has {len(rows)}.")
    return rows


def _rows(scorer: Scorer, rows: list[dict[str, Any]]) -> RequestRows:
    """The rows of a request with the ids of the tables.

    Raises:
        HTTPException: one is not what it must be.
    """
    try:
        return scorer.maker.rows(scorer.raw.encode(scorer.raw.table(rows, WHERE), WHERE))
    except ValueError as error:
        raise HTTPException(422, str(error)) from None


class Draining(uvicorn.Server):
    """Takes requests for some seconds more after it was told to end, while /ready says no."""

    def __init__(self, app: FastAPI, drain_s: float, **options: Any) -> None:
        super().__init__(uvicorn.Config(app, **options))
        self._app, self._drain_s = app, drain_s
        self._is_told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second signal does not wait."""
        wait_s, self._is_told = 0.0 if self._is_told else self._drain_s, True
        self._app.state.is_ready = False
        timer = threading.Timer(wait_s, super().handle_exit, (sig, frame))
        timer.daemon = True
        timer.start()


def serve(
    scorer: Scorer, host: str, port: int, limits: Limits, threads: int, drain_s: float
) -> None:
    """Answer until SIGTERM or SIGINT.

    /ready then says no, so that a balancer sends nobody here; after `drain_s` seconds no more
    requests are taken, and those under way are answered.
    """
    torch.set_num_threads(threads)
    # The thread that scores wants the interpreter for microseconds, between calls that do without
    # it; by default it would wait 5 ms for it each time while a request is parsed.
    sys.setswitchinterval(SWITCH_S)
    app = create_app(scorer, limits)
    Draining(app, drain_s, host=host, port=port, log_level="warning", access_log=False).run()
