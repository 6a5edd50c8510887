"""Trains on several processes of this machine and kills all of them after a chosen step."""

import math
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from msrec.data.io.parquet_files import num_rows
from msrec.data.loading.batch import Batch
from msrec.launch.config.run_config import RunConfig
from msrec.launch.distributed import Process, quiet_libraries
from msrec.launch.training.repeated_failure import forget_failures
from msrec.launch.training.trainer import Trainer
from msrec.model.ranker import Outcome

TIMEOUT_S = 300.0
POLL_S = 0.001
JITTER_S = 0.02
"""Longest wait between a step and the kill, drawn at random."""
TRACE = "rows.npy"
"""File that all ranks map into memory. Row 0 holds the step that they resumed from, row N the row
ids of step N. What a rank wrote is there after a kill."""
NOT_MADE = -2
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Attempt:
    """A start of all ranks, up to its end or the kill.

    Attributes:
        started: step of the checkpoint that was loaded; 0 if there was none.
        rows: step (from 1) -> row ids of its global batch, rank after rank; -1 is padding.
    """

    started: int
    rows: dict[int, Rows]


def observe_outcomes(trainer: Trainer, observe: Callable[[Outcome, bool], None]) -> None:
    """Makes a trainer call `observe(outcome, is_training)` after each batch.

    A training step is observed before the trainer counts it in its progress.
    """
    outcomes = trainer.pipeline.outcomes

    def observed_outcomes(
        batches: Iterator[Batch], before_step: Callable[[], None] | None = None
    ) -> Iterator[Outcome]:
        for outcome in outcomes(batches, before_step):
            observe(outcome, before_step is not None)
            yield outcome

    trainer.pipeline.outcomes = observed_outcomes  # type: ignore[method-assign]


def run_attempt(
    config: RunConfig, world_size: int, folder: Path, kill_at: int | None = None
) -> Attempt:
    """Trains a run to its end, or kills all ranks together (SIGKILL) soon after a step.

    Args:
        config: config of the run.
        world_size: number of ranks.
        folder: folder for the logs and the trace; emptied first.
        kill_at: the step; None lets the run end.

    Raises:
        RuntimeError: a rank failed by itself or was too slow. Names the log.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    forget_failures(config.run_dir)  # two kills may hit the same step
    global_batch, epochs = config.trainer.global_batch, config.trainer.epochs
    steps = epochs * math.ceil(num_rows(config.dataset / "train") / global_batch)
    trace = np.lib.format.open_memmap(folder / TRACE, "w+", np.int64, (steps + 1, global_batch))
    trace[:] = NOT_MADE
    # The server has imported everything and started no thread, so a rank starts at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    values = config.model_dump(mode="json")  # its class is made at run time, which pickle cannot
    ranks = [
        context.Process(target=_train, args=(rank, world_size, values, folder))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        is_well = _wait(ranks, trace, kill_at)
    finally:
        for process in ranks:
            process.kill()
        for process in ranks:
            process.join()
    if not is_well:
        raise RuntimeError(f"a rank failed or did not end in time; see {folder}/rank-*.log")
    # A step counts when every rank has made it.
    made = np.flatnonzero((trace[1:] != NOT_MADE).all(axis=1)) + 1
    return Attempt(max(0, int(trace[0].min())), {int(step): trace[step].copy() for step in made})


def _wait(ranks: Sequence[BaseProcess], trace: Rows, kill_at: int | None) -> bool:
    """Waits for the step or for the end of all ranks; returns False if a rank failed."""
    deadline = time.monotonic() + TIMEOUT_S
    while any(process.is_alive() for process in ranks):
        if kill_at is not None and (trace[kill_at:, 0] != NOT_MADE).any():
            time.sleep(JITTER_S * random.Random(kill_at).random())
            return True
        if any(process.exitcode for process in ranks) or time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return not any(process.exitcode for process in ranks)


def _train(rank: int, world_size: int, values: dict[str, Any], folder: Path) -> None:
    """Trains as one rank and writes the rows of each step to this rank's part of the trace."""
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    torch.set_num_threads(1)
    quiet_libraries()
    rendezvous = f"file://{folder.absolute()}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    trainer = Trainer(RunConfig.model_validate(values), process)
    progress = trainer.resume()
    own_rows = np.split(np.load(folder / TRACE, mmap_mode="r+"), world_size, axis=1)[rank]
    own_rows[0] = progress.step

    def record(outcome: Outcome, is_training: bool) -> None:
        if is_training:
            own_rows[progress.step + 1] = outcome.row_id.cpu().numpy()

    observe_outcomes(trainer, record)
    trainer.fit(progress)
    dist.destroy_process_group()
