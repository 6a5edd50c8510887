"""Ranks of a job as workers: rank 0 hands out the parts by torch's store.

A rank that dies ends the attempt, as in every job. torchrun starts the ranks again, and the job
goes on from the parts that are done.
"""

import os
import pickle
import time
from collections.abc import Iterator, Sequence
from typing import Self

from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from msrec.data.engines.tasks import Call, Task

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

    def run(self, function: Call, tasks: Sequence[Task]) -> Iterator[int]:
        """Calls the function with each task; yields its number when the call has ended."""
        stage, self._stage = self._stage, self._stage + 1
        self._store.set(_tasks_key(stage), pickle.dumps((function, list(tasks))))  # type: ignore[arg-type]
        ended = 0
        while ended < len(tasks):
            has_worked = _take(self._store, stage, function, tasks)
            now = self._store.add(_ended_key(stage, "all"), 0)
            if self._store.check([_ERROR]):
                raise pickle.loads(self._store.get(_ERROR))
            for place in range(ended, now):
                yield int(self._store.get(_ended_key(stage, place)))  # waits until it is there
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
    """Does the parts that rank 0 hands out, until it says that there are no more."""
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


_OVER, _LEFT, _ERROR = "parts/over", "parts/left", "parts/error"


def _tasks_key(stage: int) -> str:
    return f"parts/tasks/{stage}"


def _ended_key(stage: int, place: int | str) -> str:
    """Returns the key of the number of the task that ended at a place, or of how many ended."""
    return f"parts/ended/{stage}/{place}"


def _take(store: Store, stage: int, function: Call, tasks: Sequence[Task]) -> bool:
    """Does the next task of a stage; returns False if there is none or the job has failed."""
    number = store.add(f"parts/next/{stage}", 1) - 1
    if number >= len(tasks) or store.check([_ERROR]):
        return False
    try:
        function(tasks[number])
    except Exception as error:  # of any kind: rank 0 raises it
        store.set(_ERROR, _pickled(error))  # type: ignore[arg-type]
        return False
    place = store.add(_ended_key(stage, "all"), 1) - 1
    store.set(_ended_key(stage, place), str(tasks[number].number))
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
            "the engine ranks must be started as a job of several ranks: msrec launch convert, or "
            "msrec launch encode."
        )
    place: tuple[Store, int, int] = next(rendezvous("env://"))
    return place
