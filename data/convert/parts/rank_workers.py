"""Ranks of a job as workers of a conversion in parts: rank 0 hands out the parts by torch's store.

A rank that dies ends the attempt, as in every job. torchrun starts the ranks again, and the
conversion goes on from the parts that are done.
"""

import os
import pickle
import time
from collections.abc import Iterator, Sequence
from typing import Self

from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from msrec.data.convert.parts.tasks import Call, Task

POLL_S = 0.1
LEAVE_S = 60.0
"""Longest time that rank 0, which may hold the store, waits for the other ranks to leave it."""


class RankWorkers:
    """Engine whose workers are the ranks of this job, rank 0 among them; see `Engine`.

    Args:
        store: of the job.
        ranks: number of ranks.
    """

    def __init__(self, store: Store, ranks: int) -> None:
        self._store, self._ranks = store, ranks
        self._stage = 0

    @classmethod
    def of_job(cls) -> Self:
        """Returns the engine of this process, rank 0 of a job.

        Raises:
            ValueError: this process is no rank of a job.
        """
        store, _, ranks = _rendezvous()
        return cls(store, ranks)

    def run(self, function: Call, tasks: Sequence[Task]) -> Iterator[None]:
        """Calls the function with each task; yields each time that a call has ended."""
        stage, self._stage = self._stage, self._stage + 1
        self._store.set(_tasks_key(stage), pickle.dumps((function, list(tasks))))  # type: ignore[arg-type]
        ended = 0
        while ended < len(tasks):
            has_worked = _take(self._store, stage, function, tasks)
            now = self._store.add(_ended_key(stage), 0)
            if self._store.check([_ERROR]):
                raise pickle.loads(self._store.get(_ERROR))
            for _ in range(now - ended):
                yield
            ended = now
            if not has_worked:
                time.sleep(POLL_S)

    def close(self) -> None:
        """Lets the other ranks end."""
        self._store.set(_OVER, "")
        deadline = time.monotonic() + LEAVE_S
        while self._store.add(_LEFT, 0) < self._ranks - 1 and time.monotonic() < deadline:
            time.sleep(POLL_S)


def work() -> None:
    """Converts the parts that rank 0 hands out, until it says that there are no more."""
    store, _, _ = _rendezvous()
    stage = 0
    while not store.check([_OVER]):
        if not store.check([_tasks_key(stage)]):
            time.sleep(POLL_S)
            continue
        function, tasks = pickle.loads(store.get(_tasks_key(stage)))
        while _take(store, stage, function, tasks):
            pass
        stage += 1
    store.add(_LEFT, 1)


_OVER, _LEFT, _ERROR = "convert/over", "convert/left", "convert/error"


def _tasks_key(stage: int) -> str:
    return f"convert/tasks/{stage}"


def _ended_key(stage: int) -> str:
    return f"convert/ended/{stage}"


def _take(store: Store, stage: int, function: Call, tasks: Sequence[Task]) -> bool:
    """Does the next task of a stage; returns False if there is none or the job has failed."""
    number = store.add(f"convert/next/{stage}", 1) - 1
    if number >= len(tasks) or store.check([_ERROR]):
        return False
    try:
        function(tasks[number])
    except Exception as error:  # of any kind: rank 0 raises it
        store.set(_ERROR, _pickled(error))  # type: ignore[arg-type]
        return False
    store.add(_ended_key(stage), 1)
    return True


def _pickled(error: Exception) -> bytes:
    """Returns an exception for rank 0, by its text if it cannot be sent."""
    try:
        pickle.loads(sent := pickle.dumps(error))
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return sent


def _rendezvous() -> tuple[Store, int, int]:
    if "RANK" not in os.environ:
        raise ValueError(
            "the engine ranks must be started as a job of several ranks: msrec launch convert."
        )
    place: tuple[Store, int, int] = next(rendezvous("env://"))
    return place
