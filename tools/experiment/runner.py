"""Runs a sweep: converts data, encodes users, then tunes, trains and times what is missing."""

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from msrec.data.io.exclusive_files import exclusive
from msrec.data.io.paths import AnyPath
from msrec.data.schema import SCHEMA_FILE
from msrec.launch.config.run_config import RunConfig, load_config
from msrec.launch.console import PlainConsole
from msrec.launch.reporting.result_tables import TITLES, format_value
from msrec.model.metrics.definitions import MAIN_METRIC
from msrec.tools.experiment.cell import Cell, PlannedTraining, train_cell
from msrec.tools.experiment.sweep import Sweep
from msrec.tools.experiment.trainings import Setting, SettingCells, load_cells, settings
from msrec.tools.experiment.tuning import best_trial, propose, search_space

Pending = Sequence[tuple[SettingCells, RunConfig]]
"""Settings with missing trainings, with their configs before tuning."""
Item = TypeVar("Item")
RANK_VARIABLES = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
}
"""Variables by which torchrun tells a process its place in a job."""
console = PlainConsole(highlight=False)


def run_sweep(sweep: Sweep, jobs: int, dry_run: bool) -> None:
    """Checks every config, then runs every training that has no cell.

    Args:
        sweep: the data sets, models, arms and seeds.
        jobs: trainings at the same time, one thread each.
        dry_run: only print what is missing.

    Raises:
        FileNotFoundError: a config, raw data or a dataset folder does not exist.
        ValueError: a config is not valid, optuna is not installed, trainings failed, or another
            sweep writes into the same folder.
    """
    loaded = [(load_cells(s), load_config(s.config, s.options)) for s in settings(sweep)]
    pending = [(cells, config) for cells, config in loaded if cells.missing]
    total = len(loaded) * (sweep.trials + sweep.seeds + (sweep.timed_steps > 0))
    done = total - sum(len(cells.missing) for cells, _ in pending)
    console.print(f"{done} of {total} trainings are done")
    if dry_run:
        for store in _stores(pending):
            console.print(f"  store: {store}")
        for cells, _ in pending:
            line = f"  {cells.setting}: {len(cells.missing)} to run: {' '.join(cells.missing)}"
            console.print(line, soft_wrap=True)
    elif pending:
        _leave_torchrun()
        if sweep.trials:
            search_space()  # raises without optuna
        with exclusive(sweep.out, f"{sweep.out} must be written"):
            _convert(sweep, pending)
            _encode(pending)
            _train(sweep, [cells.setting for cells, _ in pending], jobs)


def _leave_torchrun() -> None:
    """Forgets the job that runs the sweep: each training is a job of one rank by itself."""
    for name in list(os.environ):
        if name in RANK_VARIABLES or name.startswith("TORCHELASTIC_"):
            del os.environ[name]


def _convert(sweep: Sweep, pending: Pending) -> None:
    for cells, config in pending:
        if not (config.dataset / SCHEMA_FILE).is_file():
            arguments = sweep.datasets[cells.setting.dataset].convert
            if not arguments:
                raise FileNotFoundError(
                    f"{config.dataset} must be a dataset folder; make it with `msrec convert`."
                )
            source, raw, *options = arguments
            run_msrec("convert", source, sweep.raw / raw, config.dataset, *options)


def _encode(pending: Pending) -> None:
    """Encodes what the settings read of each store; ends quickly if nothing is missing in it."""
    for needs in _stores(pending).values():
        for need, setting in needs.items():
            items_option = f"llm.items={str('item' in need).lower()}"
            run_msrec("encode", setting.config, *setting.options, items_option)


def _stores(pending: Pending) -> dict[AnyPath, dict[frozenset[str], Setting]]:
    """Returns knowledge store -> levels and sources of items -> a setting that reads these.

    What another setting reads too, and more, is left out.
    """
    stores: dict[AnyPath, dict[frozenset[str], Setting]] = {}
    for cells, config in pending:
        need = frozenset([*config.knowledge_levels, *config.llm.sources])
        if config.llm.store is not None and need:
            needs = stores.setdefault(config.llm.store, {})
            if not any(need <= other for other in needs):
                kept = {other: setting for other, setting in needs.items() if not other < need}
                stores[config.llm.store] = kept | {need: cells.setting}
    return stores


def run_msrec(*args: object) -> None:
    """Runs a command in another process, with its output on the terminal.

    Raises:
        ValueError: the command failed.
    """
    command = [sys.executable, "-m", "msrec", *map(str, args)]
    if subprocess.run(command, check=False).returncode:
        raise ValueError(f"`msrec {args[0]} {args[1]} ...` must succeed; see its error above.")


def _train(sweep: Sweep, pending: Sequence[Setting], jobs: int) -> None:
    """Tunes, trains the seeds, then measures speed, one training at a time."""
    failures = run_all("tuning", tune, pending if sweep.trials else [], jobs)
    loaded = [load_cells(setting) for setting in pending]
    failures += run_all("training", train_cell, missing_seeds(sweep, loaded), jobs)
    if failures:
        raise ValueError(
            f"{len(failures)} trainings failed; run the command again after fixing the cause. "
            f"The first: {failures[0]}"
        )
    timed = [
        cells.setting.training("speed", 0, cells.choice)
        for cells in loaded
        if cells.choice is not None and None in cells.speed
    ]
    run_all("timing", train_cell, timed, 1)


def missing_seeds(sweep: Sweep, loaded: Sequence[SettingCells]) -> list[PlannedTraining]:
    """Returns the trainings to evaluate: a seed of all settings of a data set, then the next seed.

    So a sweep that is cut short has all arms of its first seeds.
    """
    return [
        cells.setting.training("seed", seed, cells.choice)
        for dataset in sweep.datasets
        for seed in range(sweep.seeds)
        for cells in loaded
        if cells.setting.dataset == dataset
        and cells.choice is not None
        and cells.seeds[seed] is None
    ]


def tune(setting: Setting) -> Cell:
    """Runs the missing trials of a setting in this process; returns the best trial.

    Raises:
        ValueError: no trial has a finite loss.
    """
    trials: list[Cell] = []
    for number in range(setting.sweep.trials):
        cell = setting.finished_trial(number)
        trials.append(cell or train_cell(setting.training("trial", number, propose(trials))))
    best = best_trial(trials)
    if best is None:
        raise ValueError("no trial ended with a finite loss")
    return best


def run_all(
    stage: str, function: Callable[[Item], Cell], items: Sequence[Item], jobs: int
) -> list[str]:
    """Calls a function on each item in worker processes, and prints the main metric of its cell.

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
    split, metric, value = "valid", cell.metric.removesuffix("/all"), cell.valid
    if cell.results is not None:
        split, metric = cell.results.split, MAIN_METRIC[cell.results.kind]
        value = getattr(cell.results.metrics.all, metric)
    return (
        f"{split} {TITLES.get(metric, metric)} {format_value(value)}, {cell.rows_per_s:,.0f} rows/s"
    )


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
