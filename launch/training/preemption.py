"""SIGTERM handling: all ranks agree on the step after which they stop."""

import signal
import time
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed as dist

STOPPED = 128 + signal.SIGTERM
"""Exit status of a job that was stopped by SIGTERM."""
FIRST_CALLS = 100
"""Calls in each of which ranks exchange requests; after them the time of a call is known."""
EXCHANGE_S = 0.5
"""Seconds between two exchanges after the first calls, if a call takes less."""
MAX_CALLS = 64
"""Most calls between two exchanges."""


class Preempted(Exception):
    """All ranks agreed to stop here."""


class Preemption:
    """Raises `Preempted` on all ranks at the same call of `check`, soon after one got SIGTERM.

    A scheduler may send the signal to some ranks only, and never at the same step, so the ranks
    exchange their requests. An exchange is started and read by the next one, half a second later,
    so that no step waits for it. Steps that take longer exchange in each call.

    Use it as a context, in the main thread. At its end the earlier signal handler is restored.
    """

    def __init__(self) -> None:
        self._requested = False
        self._exchanged = torch.zeros(2, dtype=torch.int32)
        """Whether a rank was asked to stop, and minus the fewest calls to the next exchange."""
        self._pending: Any = None
        self._earlier_handler: Any = None
        self._calls, self._until_exchange, self._interval = 0, 1, 1
        self._exchanged_at = 0.0

    def __enter__(self) -> Self:
        self._earlier_handler = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        signal.signal(signal.SIGTERM, self._earlier_handler)
        self._earlier_handler = None
        if self._pending is not None and (error is None or isinstance(error, Preempted)):
            self._pending.wait()

    def check(self) -> None:
        """Stops if a rank was asked to; call it equally often on all ranks, once per step.

        Raises:
            Preempted: on all ranks, at most two calls, or about a second, after one rank got
                SIGTERM.
        """
        if self._earlier_handler is None:
            return  # outside the context no signal is caught
        if dist.get_world_size() == 1:
            if self._requested:
                raise Preempted
            return
        self._calls += 1
        self._until_exchange -= 1
        if self._until_exchange == 0:
            self._exchange()
            self._until_exchange = self._interval

    def _exchange(self) -> None:
        """Reads the exchange before, and starts one; the interval is the same on all ranks."""
        own_interval = self._own_interval()
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
            requested, interval = self._exchanged.tolist()
            if requested:
                raise Preempted
            self._interval = -interval
        self._exchanged[0], self._exchanged[1] = int(self._requested), -own_interval
        self._pending = dist.all_reduce(self._exchanged, dist.ReduceOp.MAX, async_op=True)

    def _own_interval(self) -> int:
        """Returns how many calls take `EXCHANGE_S`, by those since the last exchange."""
        now = time.monotonic()
        call_s, self._exchanged_at = (now - self._exchanged_at) / self._interval, now
        if self._calls < FIRST_CALLS:
            return 1
        return int(min(max(EXCHANGE_S / max(call_s, 1e-9), 1), MAX_CALLS))

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self._requested = True
