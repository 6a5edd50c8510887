"""Dynamic batching: requests that wait at the same time are scored by one call."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from msrec.launch.serving.request_rows import RequestRows

Scores = npt.NDArray[np.float32]
Score = Callable[[RequestRows], Scores]


@dataclass(frozen=True)
class Limits:
    """Limits of a batch, in rows and in ms of waiting; of rows that may wait; and of a request."""

    max_batch: int = 512
    max_wait_ms: float = 1.0
    max_queue: int = 8192
    max_body_mib: int = 4


class QueueFullError(Exception):
    """The queue has no room for a request, or the server is stopping; the client may try again."""


class _Request(NamedTuple):
    score: Score
    rows: RequestRows
    scores: asyncio.Future[Scores]


class Batcher:
    """Queue of requests, and one thread that scores them in batches.

    A batch starts when a request is waiting and no call is running. It waits at most `max_wait_ms`
    for other requests, and not at all once it has `max_batch` rows. Requests that arrive during a
    call wait for the next one. A request is never split, so a batch can exceed `max_batch`. A batch
    has requests of one function `score` only, that of the export that encoded their rows.

    Args:
        limits: limits of batches and of the queue.
        on_batch: called with the number of rows of each batch.
    """

    def __init__(self, limits: Limits, on_batch: Callable[[int], None]) -> None:
        self.limits = limits
        self.waiting_rows = 0
        self._on_batch = on_batch
        self._queue: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._is_stopping = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="msrec-score")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts scoring in the running event loop."""
        self._task = asyncio.create_task(self._score_batches())

    async def stop(self) -> None:
        """Refuses new requests, and returns when all waiting ones are answered."""
        self._is_stopping = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def score(self, score: Score, rows: RequestRows) -> Scores:
        """Returns the scores (n, C) of a request after its batch was scored.

        Args:
            score: returns the scores of some rows.
            rows: of the request.

        Raises:
            QueueFullError: the queue has no room, or the batcher is stopping.
        """
        self.require_room(len(rows))
        request = _Request(score, rows, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self.waiting_rows += len(rows)
        self._arrived.set()
        return await request.scores

    def require_room(self, rows: int) -> None:
        """Checks that a request with so many rows can wait.

        Raises:
            QueueFullError: the queue has no room, or the batcher is stopping.
        """
        if self._is_stopping:
            raise QueueFullError("the server is stopping")
        waiting, most = self.waiting_rows, self.limits.max_queue
        if waiting + rows > most:
            raise QueueFullError(
                f"at most {most} rows may wait; {waiting} do, and the request has {rows}"
            )

    async def _score_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while await self._wait_for_batch():
            batch = self._take_batch()
            try:
                scores = await loop.run_in_executor(self._thread, self._score_batch, batch)
            except Exception as error:  # noqa: BLE001 - every client of the batch gets the error
                for request in batch:
                    if not request.scores.done():
                        request.scores.set_exception(error)
                continue
            ends = np.cumsum([len(request.rows) for request in batch])
            for request, own in zip(batch, np.split(scores, ends[:-1]), strict=True):
                if not request.scores.done():  # done: the client has disconnected
                    request.scores.set_result(own)

    def _score_batch(self, batch: list[_Request]) -> Scores:
        return batch[0].score(RequestRows.join([request.rows for request in batch]))

    async def _wait_for_batch(self) -> bool:
        """Returns True when a batch must start, False when the batcher has stopped."""
        while not self._queue:
            if self._is_stopping:
                return False
            await self._wait_for_arrival()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.max_wait_ms / 1e3):
                while self.waiting_rows < self.limits.max_batch and not self._is_stopping:
                    await self._wait_for_arrival()
        return True

    async def _wait_for_arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def _take_batch(self) -> list[_Request]:
        """Removes the requests of the next batch from the queue."""
        batch = [self._queue.popleft()]
        size = len(batch[0].rows)
        while (
            self._queue
            and self._queue[0].score == batch[0].score
            and size + len(self._queue[0].rows) <= self.limits.max_batch
        ):
            batch.append(self._queue.popleft())
            size += len(batch[-1].rows)
        self.waiting_rows -= size
        self._on_batch(size)
        return batch
