"""One training of the benchmark: run it in this process, keep its figures in one JSON file."""

import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict

from msrec.data.io.atomic_files import write_json
from msrec.data.schema import Split
from msrec.launch.config import load_config, save_config
from msrec.launch.distributed import process_group, quiet_libraries
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.results import Results
from msrec.launch.evaluation.slices import HISTORIES
from msrec.launch.training.trainer import Trainer
from msrec.tools.experiment.tuning import Choice

CELL_FILE = "cell.json"


class Cell(BaseModel):
    """What a training left. `results` are of the split that it was judged on, if any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choice: Choice = {}
    options: list[str]
    valid_auc: float | None
    """Of the best epoch; None where the loss became infinite."""
    epochs: int
    seconds: float
    """Of the whole cell, evaluation and all."""
    rows_per_s: float
    """Median of the training log."""
    parameters: int
    table_parameters: int
    results: Results | None = None


def run_msrec(*args: object) -> None:
    """Run a command in a process of its own.

    Raises:
        ValueError: it failed; with the last line it said.
    """
    command = [sys.executable, "-m", "msrec", *map(str, args)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing was said"]
        raise ValueError(f"`msrec {' '.join(command[3:5])} ...` failed: {said[-1]}")


def cell_processes(jobs: int) -> ProcessPoolExecutor:
    """Long-lived processes for cells, one thread each; they end with this one, however it ends."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before a process imports torch
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _end_with_parent)


def _end_with_parent() -> None:
    """Else the cells of a command that was killed would train on, and a new one beside them."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only processes of a pool are told to end with their parent"
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def load_cell(folder: Path) -> Cell | None:
    """The cell of a folder, None if it is not finished."""
    path = folder / CELL_FILE
    return Cell.model_validate_json(path.read_text()) if path.is_file() else None


def run_cell(
    folder: Path, config: Path, choice: Choice, options: list[str], judge: Split | None
) -> Cell:
    """Train in this process, and judge on a split; checkpoints are not kept.

    A cell that was killed begins again: it is one or two minutes.
    """
    logging.getLogger("msrec").setLevel(logging.WARNING)
    quiet_libraries()
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    places = [f"run_root={folder.parent}", f"run_id={folder.name}"]
    run = load_config(config, [*options, *places])
    save_config(run, run.run_dir / "config.yaml")
    with process_group("cpu") as process:
        trainer = Trainer(run, process)
        tables = sum(p.numel() for n, p in trainer.model.named_parameters() if ".ebc." in n)
        dense = sum(p.numel() for n, p in trainer.model.named_parameters() if ".ebc." not in n)
        try:
            progress = trainer.fit().progress
        except ValueError as error:
            if "the loss must be finite" not in str(error):
                raise
            progress = None
        results = evaluate(folder, process, judge, by=HISTORIES) if judge and progress else None
    cell = Cell(
        choice=choice,
        options=options,
        valid_auc=progress.best_auc if progress else None,
        epochs=progress.epoch if progress else 0,
        seconds=time.monotonic() - started,
        rows_per_s=_rows_per_s(folder),
        parameters=dense,
        table_parameters=tables,
        results=results,
    )
    for part in ("checkpoints", "predictions", "tensorboard"):
        shutil.rmtree(folder / part, ignore_errors=True)
    write_json(folder / CELL_FILE, cell.model_dump(mode="json"))
    return cell


def _rows_per_s(folder: Path) -> float:
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    speeds = [float(r["metrics"]["rows_per_s"]) for r in lines if r["split"] == "train"]
    return median(speeds) if speeds else 0.0
