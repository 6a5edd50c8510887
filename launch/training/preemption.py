"""SIGTERM handling: all ranks agree on the step after which they stop."""

import signal
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed as dist

STOPPED = 128 + signal.SIGTERM
"""Exit status of a job that was stopped by SIGTERM."""


class Preempted(Exception):
    """All ranks agreed to stop here."""


class Preemption:
    """Raises `Preempted` on all ranks at the same call of `check`, soon after one got SIGTERM.

    Use it as a context, in the main thread. At its end the earlier signal handler is restored.
    """

    def __init__(self) -> None:
        self._requested = False
        self._num_requested = torch.zeros(1, dtype=torch.int32)
        self._pending: Any = None
        self._earlier_handler: Any = None

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
            Preempted: on all ranks, at most two calls after one rank got SIGTERM.
        """
        if self._earlier_handler is None:
            return  # outside the context no signal is caught
        if dist.get_world_size() == 1:
            if self._requested:
                raise Preempted
            return
        # A scheduler may send the signal to some ranks only, and never at the same step. So ranks
        # add up their requests. Each call starts a sum and reads the one that the call before
        # started, which is complete by now: nobody waits for it.
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
            if int(self._num_requested) > 0:
                raise Preempted
        self._num_requested.fill_(int(self._requested))
        self._pending = dist.all_reduce(self._num_requested, async_op=True)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self._requested = True
