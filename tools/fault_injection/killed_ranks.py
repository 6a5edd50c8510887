"""Ranks that train, say what they trained on, and are killed at a chosen step."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from msrec.data.loading.batch import Batch
from msrec.launch.batch_pipeline import BatchPipeline
from msrec.launch.config import RunConfig
from msrec.launch.distributed import Process, quiet_libraries
from msrec.launch.training.repeated_failure import forget_failures
from msrec.launch.training.trainer import Trainer
from msrec.model.ranker import Outcome

TIMEOUT_S = 300.0
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Attempt:
    """One start of the ranks: the step it began from, and what each of its steps trained on.

    rows: step (from 1) -> row ids of the global batch, rank after rank; -1 is padding.
    """

    started: int
    rows: dict[int, Rows]


class TracedPipeline(BatchPipeline):
    """Records the row ids of each training step in a file, and counts the steps.

    Args:
        trainer: whose batches it runs.
        step: the step from which this start continues.
        trace: gets one array per step: the step, then the rows.
        counter: shared with the process that kills this one.
    """

    def __init__(
        self, trainer: Trainer, step: int, trace: Path, counter: "Synchronized[int]"
    ) -> None:
        super().__init__(trainer.model, trainer.process, trainer.optimizer)
        self._step, self._is_main = step, trainer.process.is_main
        self._trace, self._counter = trace.open("ab", buffering=0), counter

    def outcomes(
        self, batches: Iterator[Batch], before_step: Callable[[], None] | None = None
    ) -> Iterator[Outcome]:
        """Yields the outcomes; records those of training steps."""
        for outcome in super().outcomes(batches, before_step):
            if before_step is not None:
                self._step += 1
                rows = outcome.row_id.cpu().numpy()
                np.save(self._trace, np.concatenate([[self._step], rows]))
                if self._is_main:
                    self._counter.value = self._step
            yield outcome


def run_ranks(
    config: RunConfig, world_size: int, folder: Path, kill_at: int | None, jitter_s: float = 0.02
) -> Attempt:
    """Train on so many processes of this machine, to the end or until a step is done.

    All ranks are killed together (SIGKILL), up to `jitter_s` after the step.

    Args:
        config: of the run.
        world_size: ranks.
        folder: gets logs and traces; emptied first.
        kill_at: step; None lets the run end.
        jitter_s: longest wait after that step, drawn at random.

    Raises:
        RuntimeError: a rank failed by itself or nothing moved; names its log.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    forget_failures(config.run_dir)  # two kills may hit the same step
    # A server that has imported everything and started no thread: a rank is there in an instant.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["msrec.tools.fault_injection.killed_ranks"])
    counter: Synchronized[int] = context.Value("q", 0, lock=False)
    values = config.model_dump(mode="json")  # its class is made at run time, which pickle cannot
    ranks = [
        context.Process(target=_rank, args=(rank, world_size, values, folder, counter))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    deadline, failed = time.monotonic() + TIMEOUT_S, False
    try:
        while any(process.is_alive() for process in ranks):
            if kill_at is not None and counter.value >= kill_at:
                time.sleep(jitter_s * random.Random(kill_at).random())
                break
            failed = any(p.exitcode for p in ranks) or time.monotonic() > deadline
            if failed:
                break
            time.sleep(0.001)
        else:
            failed = any(p.exitcode for p in ranks)
    finally:
        for process in ranks:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
        for process in ranks:
            process.join()
    if failed:
        raise RuntimeError(f"a rank failed or stood still; see {folder}/rank-*.log")
    traces = [_read_trace(folder / f"trace-{rank}.npy") for rank in range(world_size)]
    started = min(int(trace[0][0]) for trace in traces) if all(traces) else 0
    # A step counts when every rank has trained on it: a gradient needs all of them.
    steps = set.intersection(*({int(r[0]) for r in trace[1:]} for trace in traces))
    by_step = [{int(r[0]): r[1:] for r in trace[1:]} for trace in traces]
    rows = {step: np.concatenate([own[step] for own in by_step]) for step in sorted(steps)}
    return Attempt(started, rows)


def _rank(
    rank: int,
    world_size: int,
    values: dict[str, Any],
    folder: Path,
    counter: "Synchronized[int]",
) -> None:
    config = RunConfig.model_validate(values)
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    torch.set_num_threads(1)
    quiet_libraries()
    where = f"file://{folder.absolute()}/rendezvous"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=world_size)
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    trace = folder / f"trace-{rank}.npy"
    trainer = Trainer(config, process)
    progress = trainer.resume()
    trainer.pipeline = TracedPipeline(trainer, progress.step, trace, counter)
    with trace.open("ab", buffering=0) as file:
        np.save(file, np.array([progress.step]))
    trainer.fit(progress)
    dist.destroy_process_group()


def _read_trace(path: Path) -> list[Rows]:
    """The arrays of a trace; the last one may have been cut by the kill."""
    found: list[Rows] = []
    if not path.is_file():
        return found
    with path.open("rb") as file:
        while True:
            try:
                found.append(np.load(file))
            except (EOFError, ValueError):
                return found
