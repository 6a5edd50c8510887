"""Work in processes of its own: ranks that wait for rounds, and the memory of one piece of work."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from msrec.launch.distributed import process_group, quiet_libraries
from msrec.tools.bench.harness import own_process
from msrec.tools.bench.harness.measure import Took
from msrec.tools.planner.command.verify import resident_memory

JobSpec = Callable[..., Iterator[Any]]
"""A generator function of module level; sets up, then each `next` does a round and gives its
result."""


@contextmanager
def ranks(world_size: int, work: JobSpec, *args: Any) -> Iterator[Callable[[], list[Any]]]:
    """So many processes that have joined as ranks of `torch.distributed`, one thread each.

    Args:
        world_size: how many.
        work: of each rank.
        args: of `work`.

    Yields:
        What runs a round on all ranks at once and returns their results by rank.

    Raises:
        RuntimeError: a rank ended.
    """
    context: Any = multiprocessing.get_context(own_process.START)
    port = _free_port()
    pipes, processes = list[Connection](), []
    for rank in range(world_size):
        ours, theirs = context.Pipe()
        given = (theirs, rank, world_size, port, work, args)
        processes.append(context.Process(target=_rank, args=given, daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)

    def answers() -> list[Any]:
        try:
            return [pipe.recv() for pipe in pipes]
        except EOFError:
            raise RuntimeError(
                f"one of {world_size} ranks ended; its error stands above."
            ) from None

    def run() -> list[Any]:
        for pipe in pipes:
            pipe.send(True)
        return answers()

    try:
        answers()  # that they are ready
        yield run
    finally:
        for pipe in pipes:
            with suppress(OSError):  # of a rank that ended
                pipe.send(False)
            pipe.close()
        for process in processes:
            process.join(5)
            process.kill()


def slowest(results: Sequence[Took]) -> Took:
    """The time of the last rank, the processor time of all."""
    return max(clock for clock, _ in results), sum(processor for _, processor in results)


def peak_memory(work: JobSpec, *args: Any) -> int:
    """Bytes that `work`, set-up and one round, takes at its peak, besides code and libraries."""
    return own_process.in_own_process(_peak, work, args)


def _peak(work: JobSpec, args: tuple[Any, ...]) -> int:
    torch.set_num_threads(1)
    quiet_libraries()
    before = resident_memory()["RssAnon"]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    next(work(*args))
    now = resident_memory()
    return now["VmHWM"] - now["RssFile"] - now["RssShmem"] - before


def _rank(
    pipe: Connection, rank: int, world_size: int, port: int, work: JobSpec, args: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    quiet_libraries()
    with process_group("cpu") as process:
        rounds = work(process, *args)
        pipe.send(None)
        while pipe.recv():
            pipe.send(next(rounds))


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
