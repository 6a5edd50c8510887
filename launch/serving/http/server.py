"""App of an export: POST /score, and GET /health, /ready and /metrics."""

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from msrec.launch.serving.export_folder import Manifest
from msrec.launch.serving.http.batcher import Batcher, Limits, QueueFullError, Scores
from msrec.launch.serving.http.follow import Follower
from msrec.launch.serving.http.metrics import Metrics
from msrec.launch.serving.http.request_body import WHERE, BodyReader, parse_body, unavailable
from msrec.launch.serving.request_histories import EventCounts
from msrec.launch.serving.request_rows import RequestRows
from msrec.launch.serving.scorer import Scorer

COLLECT_S = 10.0
"""Seconds between collections of garbage."""
LONGEST_ERROR = 2000
"""Characters of an error in an answer; errors repeat values of the request."""


class _Service:
    """Endpoints of the app, which share a batcher and metrics."""

    def __init__(self, scorer: Scorer, limits: Limits, follow: Path | None) -> None:
        self.is_ready = False
        self._scorer, self._metrics = scorer, Metrics()
        """A request reads the scorer once, so that one export encodes and scores its rows."""
        self._refused: str | None = None
        self._follower: Follower | None = None
        if follow is not None:
            self._follower = Follower(follow, scorer.version, self._swap, self._refuse)
        self.batcher = Batcher(limits, self._metrics.batch_rows.observe)
        self._bodies = BodyReader(limits.max_body_mib << 20)
        # Parsing on the event loop would block /health. One thread, since more would only take
        # the interpreter's lock from each other.
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="msrec-encode")

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self.batcher.start()
        collecting = asyncio.create_task(self._collect_garbage())
        if self._follower is not None:
            self._follower.start()
        self.is_ready = True
        yield
        self.is_ready = False
        if self._follower is not None:
            self._follower.stop()
        collecting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await collecting
        self._encoding.shutdown(wait=False, cancel_futures=True)
        await self.batcher.stop()

    async def health(self) -> dict[str, str]:
        scorer = self._scorer
        answer = {"status": "alive", "version": scorer.version, "run": scorer.manifest.run}
        answer["checkpoint"] = scorer.manifest.checkpoint
        return answer if self._refused is None else answer | {"refused": self._refused}

    async def ready(self) -> dict[str, str]:
        if not self.is_ready:
            raise unavailable("the server is starting or stopping")
        return {"status": "ready", "run": self._scorer.manifest.run}

    async def metrics(self) -> Response:
        self._metrics.waiting.set(self.batcher.waiting_rows)
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def score(self, request: Request) -> Response:
        started, scorer = time.perf_counter(), self._scorer
        try:
            rows, counts = await self._rows(request, scorer)
            scores = await self.batcher.score(scorer.score, rows)
        except ClientDisconnect:
            self._metrics.requests.labels("disconnected").inc()
            return Response(status_code=400)  # nobody reads it
        except HTTPException as error:
            self._metrics.requests.labels(error.status_code).inc()
            raise
        except QueueFullError as error:
            self._metrics.requests.labels(503).inc()
            raise unavailable(str(error)) from None
        self._metrics.requests.labels(200).inc()
        self._metrics.rows.inc(len(rows))
        self._metrics.seconds.observe(time.perf_counter() - started)
        answer = _answer(scores, scorer.manifest)
        if counts is not None:
            answer["history"] = counts._asdict()
        return Response(to_json(answer), media_type="application/json")

    async def _rows(
        self, request: Request, scorer: Scorer
    ) -> tuple[RequestRows, EventCounts | None]:
        body = await self._bodies.read(request)
        with self._bodies.waiting(body):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._encoding, self._encode, body, scorer)

    def _encode(self, body: bytes, scorer: Scorer) -> tuple[RequestRows, EventCounts | None]:
        rows, events = parse_body(body, self.batcher.limits.max_queue)
        encoder = scorer.encoder
        try:
            self.batcher.require_room(len(rows))  # before the work of encoding
            history = None if events is None else encoder.encode_history(events, WHERE)
            encoded = encoder.encode_json(rows, WHERE, history)
            self._metrics.add_values(encoder.counts.take())
            return encoded, None if history is None else history.counts
        except ValueError as error:
            raise HTTPException(422, _cut(str(error))) from None
        finally:
            while rows:  # one by one: freeing all at once would keep the interpreter's lock
                rows.pop()

    def _swap(self, scorer: Scorer) -> None:
        """Serves new requests by another export; those under way keep theirs."""
        self._scorer, self._refused = scorer, None
        self._metrics.exports.labels("swapped").inc()

    def _refuse(self, reason: str) -> None:
        self._refused = _cut(reason)
        self._metrics.exports.labels("refused").inc()

    async def _collect_garbage(self) -> None:
        """Collects garbage now and then, instead of while a large request is parsed.

        The objects of the export are frozen, so that collections do not visit them. After a swap,
        those of the older export are garbage.
        """
        gc.freeze()
        gc.disable()
        frozen = self._scorer.version
        try:
            while True:
                await asyncio.sleep(COLLECT_S)
                version = self._scorer.version
                if version != frozen:
                    gc.unfreeze()
                gc.collect()
                if version != frozen:
                    gc.freeze()
                    frozen = version
        finally:
            gc.enable()
            gc.unfreeze()


def _answer(scores: Scores, manifest: Manifest) -> dict[str, Any]:
    columns = scores.T.tolist()
    # With a formula, the combined score is the one to rank by.
    answer: dict[str, Any] = {"scores": columns[-1] if manifest.combined else columns[0]}
    if len(columns) > 1:
        answer["labels"] = dict(zip(manifest.labels, columns, strict=False))
    return answer


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]} ..."


def create_app(scorer: Scorer, limits: Limits | None = None, follow: Path | None = None) -> FastAPI:
    """Returns the app that serves an export.

    POST /score takes {"rows": [ROW, ...]}, raw rows as `RowEncoder` describes them, and answers
    {"scores": [...]} in the same order: the combined score if the export has a formula, else that
    of the first label. If there are several labels, "labels" has the scores of each. With {"rows":
    [...], "history": [EVENT, ...]} the rows have that history instead of those of their users, and
    the answer also has the counts of its events, see `EventCounts`. Errors are {"detail":
    SENTENCE}: 400 for a body that is not JSON, 413 for a body that is too large or more rows than
    may ever wait, 422 for an invalid row (the sentence names row and column), 503 with Retry-After
    while too many rows wait.

    GET /health names the export. If the link `follow` leads to another export, that one answers new
    requests as soon as it is loaded; if it cannot be loaded, /health says why.
    """
    service = _Service(scorer, limits or Limits(), follow)
    app = FastAPI(title="msrec", lifespan=service.lifespan, openapi_url=None)
    app.add_api_route("/health", service.health)
    app.add_api_route("/ready", service.ready)
    app.add_api_route("/metrics", service.metrics)
    app.add_api_route("/score", service.score, methods=["POST"])
    app.state.service = service
    return app
