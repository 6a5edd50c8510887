"""Run any function on N gloo ranks by fork, with a time limit: several failures below us are hangs."""

import multiprocessing
import os
import socket
import traceback
from contextlib import closing
from datetime import timedelta


def run_ranks(function, world_size, *args, timeout_s=60):
    """Results of `function(rank, world_size, *args)` in rank order.

    The interpreter is forked after its imports, so a case costs a fraction of a second.

    Raises:
        AssertionError: a rank raised, died or did not finish in time; tells which and why.
    """
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    port = _free_port()
    processes = [
        context.Process(target=_rank, args=(queue, function, rank, world_size, port, args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    answers = {}
    for process in processes:
        process.join(timeout_s)
        if process.is_alive():
            for each in processes:
                each.kill()
            raise AssertionError(f"a rank did not finish in {timeout_s} s")
        while not queue.empty():
            rank, error, value = queue.get()
            answers[rank] = (error, value)
    errors = [error for error, _ in answers.values() if error]
    assert not errors, "\n".join(errors)
    missing = [rank for rank in range(world_size) if rank not in answers]
    assert not missing, f"ranks {missing} died with {[processes[r].exitcode for r in missing]}"
    return [answers[rank][1] for rank in range(world_size)]


def _rank(queue, function, rank, world_size, port, args):
    import torch
    import torch.distributed as dist

    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", rank=rank, world_size=world_size, timeout=timedelta(seconds=30)
        )
        queue.put((rank, None, function(rank, world_size, *args)))
        dist.destroy_process_group()
    except BaseException:
        queue.put((rank, f"rank {rank}:\n{traceback.format_exc()}", None))


def _free_port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
