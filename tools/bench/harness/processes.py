"""Worker processes of benches. Imports torch only where it is needed, for the sake of memory."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from msrec.tools.bench.harness.measure import Seconds

T = TypeVar("T")
START_METHOD = "spawn"
"""A fork would inherit the locks of polars' threads."""
Rounds = Callable[..., Iterator[Any]]
"""Module-level generator function: sets up, then runs one round per `next` and yields a result."""
_rounds_of_rank: Iterator[Any]
"""In a process of `ranks`: its rounds."""


def in_own_process(function: Callable[..., T], *args: Any) -> T:
    """Returns the result of a module-level function that runs in a fresh process.

    Raises:
        BrokenProcessPool: the process ended before it answered, for example out of memory.
    """
    with _new_process() as process:
        return process.submit(function, *args).result()


def peak_rss() -> int:
    """Returns the peak memory of this process in bytes."""
    # getrusage would include the memory of the parent, from which the process was forked.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def peak_memory(rounds: Rounds, *args: Any) -> int:
    """Returns the peak bytes that set-up and one round allocate, without code and libraries."""
    return in_own_process(_peak_of_one_round, rounds, args)


@contextmanager
def ranks(world_size: int, rounds: Rounds, *args: Any) -> Iterator[Callable[[], list[Any]]]:
    """Starts processes that join one `torch.distributed` group, with one thread each.

    Args:
        world_size: number of ranks.
        rounds: called as `rounds(process, *args)` on each rank.
        args: further arguments of `rounds`.

    Yields:
        A function that runs one round on all ranks at once and returns their results by rank. It
        raises BrokenProcessPool if a rank fails, whose error is printed.
    """
    port = free_port()
    with ExitStack() as stack:
        processes = [
            stack.enter_context(_new_process(_join_ranks, rank, world_size, port, rounds, args))
            for rank in range(world_size)
        ]

        def run_round() -> list[Any]:
            results = [process.submit(_run_round) for process in processes]
            return [result.result() for result in results]

        yield run_round


def slowest(seconds: Sequence[Seconds]) -> Seconds:
    """Returns the clock time of the slowest rank and the CPU time of all ranks together."""
    return Seconds(max(s.clock for s in seconds), sum(s.processor for s in seconds))


def free_port() -> int:
    """Returns a port of this machine that nothing listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _new_process(initializer: Callable[..., None] | None = None, *args: Any) -> ProcessPoolExecutor:
    context = multiprocessing.get_context(START_METHOD)
    return ProcessPoolExecutor(1, context, initializer, args)


def _one_thread() -> None:
    import torch

    from msrec.launch.distributed import quiet_libraries

    torch.set_num_threads(1)
    quiet_libraries()


def _peak_of_one_round(rounds: Rounds, args: tuple[Any, ...]) -> int:
    from msrec.tools.planner.command.verify import resident_memory

    _one_thread()
    before = resident_memory()["RssAnon"]
    Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's peak, VmHWM
    next(rounds(*args))
    after = resident_memory()
    return after["VmHWM"] - after["RssFile"] - after["RssShmem"] - before


def _join_ranks(
    rank: int, world_size: int, port: int, rounds: Rounds, args: tuple[Any, ...]
) -> None:
    from msrec.launch.distributed import process_group

    global _rounds_of_rank
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    _one_thread()

    def in_group() -> Iterator[Any]:
        with process_group("cpu") as process:
            yield from rounds(process, *args)

    _rounds_of_rank = in_group()


def _run_round() -> Any:
    try:
        return next(_rounds_of_rank)
    except BaseException:
        # The other ranks wait for this one; their collectives fail when its process ends.
        traceback.print_exc()
        os._exit(1)
