"""Dynamic batching: rows of requests that arrive together are scored by one call."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from msrec.launch.serving.request_rows import RequestRows, joined

Scores = npt.NDArray[np.float32]


class QueueFullError(Exception):
    """No room for a request's rows, or the server is about to stop: the client may try again."""


class Batcher:
    """Scores rows on a thread of its own, those that wait together.

    A batch begins when a request is there and no call is under way; it waits at most `max_wait_s`
    for others, and not at all once it has `max_batch` rows. What arrives during a call waits for
    the next. A request is never cut in two, so that a batch may be larger than `max_batch`.

    Args:
        score: of some rows.
        max_batch: rows after which a batch waits for no more.
        max_wait_s: seconds that the first request of a batch waits for others.
        max_queue: rows that may wait; with more, a request is refused at once.
        on_batch: told the rows of each batch.
    """

    def __init__(
        self,
        score: Callable[[RequestRows], Scores],
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self.max_batch, self.max_wait_s, self.max_queue = max_batch, max_wait_s, max_queue
        self.waiting_rows = 0
        self._score, self._on_batch = score, on_batch
        self._queue: deque[tuple[RequestRows, asyncio.Future[Scores]]] = deque()
        self._arrived = asyncio.Event()
        self._is_stopping = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="msrec-score")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to score, in the running event loop."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Take no more requests, answer those that wait, and end."""
        self._is_stopping = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._pool.shutdown()

    async def score(self, rows: RequestRows) -> Scores:
        """Scores of a request's rows, once their batch is done.

        Raises:
            QueueFullError: too many rows wait already, or the batcher is stopping.
        """
        self.check_room(len(rows))
        future: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self._queue.append((rows, future))
        self.waiting_rows += len(rows)
        self._arrived.set()
        return await future

    def check_room(self, rows: int) -> None:
        """Refuse a request of so many rows before anything is done for it.

        Raises:
            QueueFullError: too many rows wait already, or the batcher is stopping.
        """
        if self._is_stopping:
            raise QueueFullError("the server is stopping")
        if self.waiting_rows + rows > self.max_queue:
            raise QueueFullError(
                f"at most {self.max_queue} rows may wait; {self.waiting_rows} do, and the request "
                f"has {rows}"
            )

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._queue:
                if self._is_stopping:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await self._fill(loop.time() + self.max_wait_s)
            parts, futures = self._taken()
            try:
                scores = await loop.run_in_executor(self._pool, self._call, parts)
            except Exception as error:  # noqa: BLE001 - each request of the batch is told
                _answer(futures, [error] * len(parts))
            else:
                edges = np.cumsum([len(part) for part in parts])[:-1]
                _answer(futures, np.split(scores, edges))

    async def _fill(self, until: float) -> None:
        """Wait for more rows than there are, up to a batch and up to a moment."""
        loop = asyncio.get_running_loop()
        while self.waiting_rows < self.max_batch and not self._is_stopping:
            self._arrived.clear()
            left = until - loop.time()
            if left <= 0:
                return
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    def _taken(self) -> tuple[list[RequestRows], list[asyncio.Future[Scores]]]:
        """The requests of the next batch, off the queue."""
        parts, futures, size = list[RequestRows](), list[asyncio.Future[Scores]](), 0
        while self._queue and (not parts or size + len(self._queue[0][0]) <= self.max_batch):
            rows, future = self._queue.popleft()
            parts.append(rows)
            futures.append(future)
            size += len(rows)
        self.waiting_rows -= size
        if self._on_batch is not None:
            self._on_batch(size)
        return parts, futures

    def _call(self, parts: list[RequestRows]) -> Scores:
        return self._score(joined(parts))


def _answer(futures: list[asyncio.Future[Scores]], answers: list[Any]) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if future.done():
            continue  # its client went away
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
