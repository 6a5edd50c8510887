"""Engines that run the parts of a job: this process, others of this machine, Ray, or ranks.

A part whose worker dies is done again, on another worker; the others go on. An exception of the
function ends the job.
"""

import multiprocessing
import os
import queue
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Literal

from msrec.data.engines.tasks import Call, Engine, Task

WorkerEngine = Literal["processes", "ray", "ranks"]
DEATHS = 3
"""Workers that may die with one part; the next death ends the job."""
ONE_THREAD = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Environment of a worker: there is one for each core."""


class OneProcess:
    """This process as the only worker, with its threads; see `Engine`."""

    def run(self, function: Call, tasks: Sequence[Task]) -> Iterator[int]:
        """Calls the function with each task; see `Engine`."""
        for task in tasks:
            function(task)
            yield task.number

    def close(self) -> None:
        """There is nothing to end."""


class Processes:
    """Workers that are processes of this machine.

    Each has a pool of its own, so that its death breaks no other one.
    """

    def __init__(self, workers: int) -> None:
        self._pools = [_pool(slot) for slot in range(workers)]

    def run(self, function: Call, tasks: Sequence[Task]) -> Iterator[int]:
        """Calls the function with each task; see `Engine`."""
        waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
        done: queue.SimpleQueue[int] = queue.SimpleQueue()
        for task in tasks:
            waiting.put(task)
        slots = range(len(self._pools))
        with ThreadPoolExecutor(len(self._pools)) as threads:
            active = {threads.submit(self._work, n, function, waiting, done) for n in slots}
            try:
                while active:
                    ended, active = wait(active, 0.1, FIRST_COMPLETED)
                    for thread in ended:
                        thread.result()
                    while not done.empty():
                        yield done.get()
            finally:
                while not waiting.empty():  # after an error, the other workers stop too
                    waiting.get()

    def close(self) -> None:
        """Ends the processes."""
        for pool in self._pools:
            pool.shutdown()

    def _work(
        self,
        slot: int,
        function: Call,
        waiting: "queue.SimpleQueue[Task]",
        done: "queue.SimpleQueue[int]",
    ) -> None:
        """Calls the function in one process until no task waits; starts a new one if it dies."""
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            for death in range(DEATHS + 1):
                try:
                    self._pools[slot].submit(function, task).result()
                    break
                except BrokenProcessPool:
                    self._pools[slot].shutdown()
                    self._pools[slot] = _pool(slot)
                    if death == DEATHS:
                        raise _too_many_deaths(task) from None
                except Exception as error:  # without the stack of the pool
                    raise error.with_traceback(None) from None
            done.put(task.number)


def _pool(slot: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, _prepare, (slot,))


def _prepare(slot: int) -> None:
    """Sets the environment of a new process, before it imports polars or torch.

    Ctrl-C is for the command, which then ends the workers after their parts.
    """
    os.environ.update(ONE_THREAD, LOCAL_RANK=str(slot))  # the number of its GPU, if it uses one
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _too_many_deaths(task: Task) -> ConnectionError:
    return ConnectionError(
        f"a worker must survive part {task.number}; {DEATHS + 1} workers died with it. If they ran "
        "out of memory, choose fewer workers; a conversion can have smaller parts (--part-rows)."
    )


class Ray:
    """Workers of Ray, each with one core.

    Args:
        workers: processes of this machine; None on a cluster, where Ray decides.
        address: of a cluster, such as `10.0.0.1:6379`; None starts Ray on this machine.
        gpus: GPUs of a worker, 0 or 1.

    Raises:
        ValueError: Ray is not installed, or no host of the cluster has a GPU.
    """

    def __init__(
        self, workers: int | None = None, address: str | None = None, gpus: int = 0
    ) -> None:
        try:
            import ray
        except ImportError:
            raise ValueError(
                "the engine ray needs its package: pip install 'msrec[ray]'."
            ) from None
        self._ray = ray
        place: dict[str, Any] = {"address": address}
        if address is None:
            place = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        ray.init(runtime_env={"env_vars": ONE_THREAD}, log_to_driver=False, **place)
        self._gpus = gpus
        if gpus and not ray.cluster_resources().get("GPU"):
            self.close()
            raise ValueError(
                "device=cuda needs a GPU on a host of Ray; Ray knows of none. Start Ray on hosts "
                "with GPUs, or take device=cpu."
            )

    def run(self, function: Call, tasks: Sequence[Task]) -> Iterator[int]:
        """Calls the function with each task; see `Engine`.

        All tasks wait in Ray at once: a worker keeps its process, and its GPU, from one task to the
        next, and thereby what the function has loaded.
        """
        ray = self._ray
        kept = {"max_calls": 0} if self._gpus else {}
        remote = ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=DEATHS, **kept)(_call)
        shared = ray.put(function)
        task_of = {remote.remote(shared, task): task for task in tasks}
        while task_of:
            ended = ray.wait(list(task_of), num_returns=1)[0][0]
            task = task_of.pop(ended)
            try:
                ray.get(ended)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError:  # the worker, its node or its memory
                raise _too_many_deaths(task) from None
            yield task.number

    def close(self) -> None:
        """Leaves Ray, and ends it if it was started here."""
        self._ray.shutdown()


def _call(function: Call, task: Task) -> None:
    function(task)


@contextmanager
def make_engine(
    name: WorkerEngine, workers: int | None, address: str | None, gpus: int = 0
) -> Iterator[Engine]:
    """Yields an engine, whose workers end afterwards.

    Args:
        name: local processes, Ray, or the ranks of a job, of which this process is rank 0.
        workers: on this machine; one for each core if None.
        address: of a Ray cluster such as `10.0.0.1:6379`, which has its own workers.
        gpus: GPUs of a worker of Ray, 0 or 1.

    Raises:
        ValueError: an option does not fit the engine, or Ray is not installed.
        ConnectionError: there is no cluster at the address.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"--workers must be at least 1; got {workers}.")
    if address is not None and (name != "ray" or workers is not None):
        raise ValueError("--address is for --engine ray, and --workers for this machine only.")
    engine: Engine
    if name == "ray":
        engine = Ray(workers, address, gpus)
    elif name == "processes":
        engine = Processes(workers or os.cpu_count() or 1)
    elif workers is not None:
        raise ValueError("--workers is not for --engine ranks; -j of the job has their number.")
    else:
        from msrec.data.engines.rank_workers import RankWorkers  # imports torch

        engine = RankWorkers.of_job()
    try:
        yield engine
    finally:
        engine.close()
