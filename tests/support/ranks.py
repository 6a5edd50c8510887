"""Run any function on N gloo ranks by fork, with a time limit: some failures below are hangs."""

import faulthandler
import gc
import multiprocessing
import os
import random
import socket
import time
import traceback
from contextlib import closing
from datetime import timedelta


def run_ranks(function, world_size, *args, timeout_s=120):
    """Results of `function(rank, world_size, *args)` in rank order.

    The interpreter is forked after its imports, so a case costs a fraction of a second.

    Raises:
        AssertionError: a rank raised, died or did not finish in time; tells which and why.
    """
    context = multiprocessing.get_context("fork")
    port = free_port()
    pipes, processes = [], []
    for rank in range(world_size):
        ours, theirs = context.Pipe(duplex=False)
        work = (theirs, function, rank, world_size, port, args)
        processes.append(context.Process(target=_rank, args=work))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    deadline = time.monotonic() + timeout_s
    answers = {}
    try:
        # A rank is read before it is joined: it cannot end while its answer fills the pipe.
        for rank, pipe in enumerate(pipes):
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                raise AssertionError(f"rank {rank} did not finish in {timeout_s} s")
            try:
                answers[rank] = pipe.recv()
            except EOFError:
                answers[rank] = (f"rank {rank} died without a word", None)
        errors = [error for error, _ in answers.values() if error]
        assert not errors, "\n".join(errors)
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return [answers[rank][1] for rank in range(world_size)]


def _rank(pipe, function, rank, world_size, port, args):
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
    # Garbage of the parent may own threads, which are not here: whoever frees it is aborted.
    gc.freeze()
    # pytest's own watchdog runs in the parent; in a fork its lock is held by nobody, for ever.
    faulthandler.dump_traceback_later = lambda *_, **__: None
    faulthandler.cancel_dump_traceback_later = lambda: None
    try:
        dist.init_process_group(
            "gloo", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
        )
        pipe.send((None, function(rank, world_size, *args)))
        dist.destroy_process_group()
    except BaseException:
        pipe.send((f"rank {rank}:\n{traceback.format_exc()}", None))


def free_port():
    """A port outside the kernel's range for outgoing connections: none of those takes it first."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
