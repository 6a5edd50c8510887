"""Worker processes that run the trainings of a sweep, with a progress bar."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from msrec.tools.experiment.cell import Cell

Item = TypeVar("Item")
console = Console(highlight=False)


def run_all(
    stage: str, function: Callable[[Item], Cell], items: Sequence[Item], jobs: int
) -> list[str]:
    """Calls a function on each item in worker processes, and prints the AUC of its cell.

    Args:
        stage: label of the progress bar.
        function: a function of a module.
        items: settings or trainings; they name themselves in messages.
        jobs: calls at the same time.

    Returns:
        Messages of the calls that failed.
    """
    if not items:
        return []
    failures = []
    columns = (TextColumn(stage), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, worker_pool(jobs) as workers:
        task = progress.add_task(stage, total=len(items))
        futures = {workers.submit(function, item): item for item in items}
        for future in as_completed(futures):
            error = future.exception()
            line = f"{futures[future]}: {error or _summary(future.result())}"
            if error is not None:
                failures.append(line)
            progress.advance(task)
            console.print(line, soft_wrap=True)
    return failures


def _summary(cell: Cell) -> str:
    split, auc = "valid", cell.valid_auc
    if cell.results is not None:
        split, auc = cell.results.split, cell.results.metrics.all.auc
    shown = "undefined" if auc is None else f"{auc:.4f}"
    return f"{split} AUC {shown}, {cell.rows_per_s:,.0f} rows/s"


def worker_pool(jobs: int) -> ProcessPoolExecutor:
    """Returns processes with one thread each; they end when this process ends, even by SIGKILL."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before a worker imports torch
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _end_with_parent)


def _end_with_parent() -> None:
    """Without this, workers would train on after a kill, alongside those of the next command."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a worker process has a parent"
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
