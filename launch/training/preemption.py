"""SIGTERM means: stop soon. All ranks agree on the step after which they do."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

STOPPED = 128 + signal.SIGTERM
"""Exit status of a job that stopped because it was asked to."""


class Preempted(Exception):
    """All ranks agreed to stop here."""


class Preemption:
    """Raises `Preempted` on all ranks at the same call of `check`, soon after one got SIGTERM.

    A scheduler may send the signal to some ranks only, and never at the same step. Each call of
    `check` begins to add up who was asked, and reads the sum that the call before began, so that
    nobody waits for it. Use it as a context, in the main thread; the handler that was there before
    is put back at its end.
    """

    def __init__(self) -> None:
        self._asked = False
        self._sum = torch.zeros(1, dtype=torch.int32)
        self._pending: Any = None
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)
        self._before = None
        if self._pending is not None and (error is None or isinstance(error, Preempted)):
            self._pending.wait()

    def check(self) -> None:
        """Call it equally often on all ranks, once a step.

        Raises:
            Preempted: on all ranks, two calls at the latest after one was asked.
        """
        if self._before is None:
            return  # nobody would hear of it
        if dist.get_world_size() == 1:
            if self._asked:
                raise Preempted
            return
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
            if int(self._sum) > 0:
                raise Preempted
        self._sum.fill_(int(self._asked))
        self._pending = dist.all_reduce(self._sum, async_op=True)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True
