"""`msrec torture`: kills training and other commands, damages files, and counts what is lost."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import Progress
from rich.table import Table

from msrec.data.io.outputs import FolderKind, check_output, emptied_folder
from msrec.data.io.parquet_files import num_rows
from msrec.data.loading.global_order import GlobalOrder
from msrec.data.loading.loader import open_loader
from msrec.data.schema import load_schema
from msrec.launch.checkpointing.dcp_storage import read_tensors
from msrec.launch.config.run_config import RunConfig, load_config
from msrec.launch.console import wide_console
from msrec.launch.distributed import quiet_libraries
from msrec.tools.fault_injection.damaged_files import (
    Fault,
    damage_files,
    faults_table,
    newest_checkpoint,
)
from msrec.tools.fault_injection.killed_commands import (
    KilledCommand,
    check_commands,
    kill_commands,
    killed_commands_table,
)
from msrec.tools.fault_injection.killed_ranks import Attempt, Rows, run_attempt

STEPS_PER_EPOCH, EPOCHS, CHECKPOINT_EVERY_STEPS = 60, 2, 4
DROPOUT = 0.2
TORTURE = FolderKind(
    "a folder of msrec torture",
    ".msrec-torture",
    (".msrec-torture", "ranks-*/**", "faults/**", "commands/**"),
)


class RowCounts(NamedTuple):
    """Rows of the steps that made the final weights: lost, seen twice, or in another batch."""

    lost: int
    twice: int
    moved: int


@dataclass(frozen=True)
class KilledRun:
    """Results of a run that was killed and resumed many times, and of an undisturbed run.

    Attributes:
        name: numbers of ranks.
        kills: number of kills.
        resumes: attempts that began from a checkpoint.
        repeated_steps: steps that were trained again, because no checkpoint had them yet.
        rows: rows that the final weights lack or have too often.
        difference: largest difference between the two final states, optimizer included.
        difference_of_ranks: with several numbers of ranks, the same difference between two runs on
            the first and the last number without any kill. It is rounding, amplified by training.
    """

    name: str
    kills: int
    resumes: int
    repeated_steps: int
    rows: RowCounts
    difference: float
    difference_of_ranks: float | None = None

    @property
    def is_well(self) -> bool:
        """Whether no row is lost and, on a fixed number of ranks, the states are equal."""
        return not any(self.rows) and (self.difference == 0 or self.difference_of_ranks is not None)


def torture(
    dataset: Path,
    out: Path,
    kills: int,
    ranks: Sequence[int],
    seed: int,
    commands: Sequence[str] = (),
    command_kills: int = 5,
) -> bool:
    """Kills runs on a dataset and commands, damages files of the runs, and prints a table of each.

    Args:
        dataset: the dataset folder; it is not changed.
        out: folder for the runs; what an earlier call left there is deleted.
        kills: number of kills of each run.
        ranks: numbers of ranks. There is one run per number, and if there are several, one more
            that draws another number at each resume.
        seed: seed of the moments of the kills.
        commands: names in `COMMANDS`, to kill after the runs.
        command_kills: number of kills of each command.

    Returns:
        Whether nothing was lost, every fault had its expected outcome, and every command left only
        whole outputs.

    Raises:
        FileNotFoundError, ValueError: the dataset is missing or wrong.
        RuntimeError: training failed by itself.
    """
    check_commands(commands)
    check_output(out, TORTURE, [dataset])
    console = wide_console()
    quiet_libraries()
    choices = [[world_size] for world_size in ranks]
    choices += [list(ranks)] if len(ranks) > 1 else []
    configs = [_config(dataset, out, choice, ranks) for choice in choices]
    emptied_folder(out, TORTURE)
    runs = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("torture", total=len(choices) * (kills + 2))
        for config, choice in zip(configs, choices, strict=True):
            runs.append(_kill(config, choice, kills, seed, lambda: progress.advance(task)))
    console.print(killed_runs_table(runs))
    faults = damage_files(configs[0].model_copy(update={"run_root": out / "faults"}))
    console.print(faults_table(faults))
    killed = []
    if commands:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("commands", total=len(commands) * command_kills)
            killed = kill_commands(
                *(dataset, out / "commands", commands, command_kills, seed),
                on_kill=lambda: progress.advance(task),
            )
        console.print(killed_commands_table(killed))
    outcomes: list[KilledRun | Fault | KilledCommand] = [*runs, *faults, *killed]
    return all(each.is_well for each in outcomes)


def killed_runs_table(runs: Sequence[KilledRun]) -> Table:
    """Returns a table with a line per run."""
    table = Table("run", title="killed (SIGKILL) and resumed", title_justify="left")
    heads = ("kills", "resumes", "repeated steps", "rows lost", "rows twice", "rows moved")
    for head in (*heads, "largest difference of the final state"):
        table.add_column(head, justify="right")
    for run in runs:
        counts = (run.kills, run.resumes, run.repeated_steps, *run.rows)
        difference = "none, bit for bit" if run.difference == 0 else f"{run.difference:.1e}"
        if run.difference_of_ranks is not None:
            difference += f" (without a kill {run.difference_of_ranks:.1e})"
        table.add_row(run.name, *(f"{count:,}" for count in counts), difference)
    return table


def _config(dataset: Path, out: Path, choice: Sequence[int], ranks: Sequence[int]) -> RunConfig:
    """Returns a small model with its largest table split by rows, for sixty steps per epoch.

    The run uses the numbers of ranks in `choice`; its batch is a multiple of all `ranks`.
    """
    tables = load_schema(dataset).tables
    root = out / "-".join(["ranks", *map(str, choice)])
    # Dropout masks differ with the number of ranks; without them weights are comparable.
    dropout = DROPOUT if len(choice) == 1 else 0.0
    multiple = int(np.lcm.reduce(list(ranks)))
    batch = max(1, num_rows(dataset / "train") // STEPS_PER_EPOCH // multiple) * multiple
    options = [
        *(f"dataset={dataset}", f"run_root={root}", "run_id=run"),
        *("backbone.name=mmoe", f"backbone.dropout={dropout}", "embeddings.dim=8"),
        f"embeddings.sharding={{{max(tables, key=lambda name: tables[name])}: row_wise}}",
        *(f"trainer.global_batch={batch}", f"trainer.epochs={EPOCHS}", "trainer.patience=9"),
        *(f"trainer.checkpoint_every_steps={CHECKPOINT_EVERY_STEPS}", "trainer.log_every=7"),
        f"trainer.window_rows={batch * 16}",
    ]
    return load_config(None, options)


def _kill(
    config: RunConfig,
    world_sizes: Sequence[int],
    kills: int,
    seed: int,
    on_attempt: Callable[[], None],
) -> KilledRun:
    """Kills and resumes a run, and compares it with a run that ends undisturbed."""

    def train(config: RunConfig, world_size: int, kill_at: int | None = None) -> Attempt:
        attempt = run_attempt(config, world_size, config.run_root / "ranks", kill_at)
        on_attempt()
        return attempt

    whole = config.model_copy(update={"run_id": "whole"})
    train(whole, world_sizes[0])
    last = newest_checkpoint(whole).name
    steps = int(last.removeprefix("step-"))
    rng = random.Random(seed)
    moments = sorted(rng.sample(range(1, steps), min(kills, steps - 1)))
    sizes = [world_sizes[0], *(rng.choice(world_sizes) for _ in moments[1:])]
    attempts = [train(config, size, moment) for size, moment in zip(sizes, moments, strict=True)]
    attempts.append(train(config, world_sizes[0]))
    difference_of_ranks = None
    if len(world_sizes) > 1:
        other = config.model_copy(update={"run_id": "other"})
        run_attempt(other, world_sizes[-1], config.run_root / "ranks")
        difference_of_ranks = _difference(whole, other, last)
    order = _order(config)
    return KilledRun(
        name=f"ranks {', '.join(map(str, world_sizes))}",
        kills=len(moments),
        resumes=sum(attempt.started > 0 for attempt in attempts),
        repeated_steps=sum(len(attempt.rows) for attempt in attempts) - steps,
        rows=count_final_rows(attempts, _expected_rows(order), order.num_rows),
        difference=_difference(whole, config, last),
        difference_of_ranks=difference_of_ranks,
    )


def _difference(first: RunConfig, second: RunConfig, checkpoint: str) -> float:
    """Returns the largest difference between all tensors of two runs' checkpoints."""
    a, b = (read_tensors(run.run_dir / "checkpoints" / checkpoint) for run in (first, second))
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in a if a[n].numel())


def _order(config: RunConfig) -> GlobalOrder:
    batch, window = config.trainer.global_batch, config.trainer.window_rows
    return open_loader(config.dataset, "train", batch, seed=config.seed, window_rows=window).order


def _expected_rows(order: GlobalOrder) -> dict[int, Rows]:
    """Returns step -> row ids of its global batch, as the global order defines them."""
    batches = [
        batch
        for epoch in range(EPOCHS)
        for window in range(order.num_windows)
        for batch in order.rows(epoch, window)
    ]
    return dict(enumerate(batches, start=1))


def count_final_rows(
    attempts: Sequence[Attempt], expected: Mapping[int, Rows], num_rows: int
) -> RowCounts:
    """Compares the rows behind the final weights with the expected ones, over all epochs.

    Args:
        attempts: all starts of the run. Steps after the checkpoint that the next one loaded do not
            count, because their result was lost.
        expected: step -> row ids of its global batch; -1 is padding.
        num_rows: rows of the split.
    """
    final: dict[int, Rows] = {}
    for attempt in attempts:
        final = {step: rows for step, rows in final.items() if step <= attempt.started}
        final |= attempt.rows
    empty = np.empty(0, np.int64)
    lost = twice = 0
    for steps in np.array_split(sorted(expected), EPOCHS):
        rows = np.concatenate([final.get(step, empty) for step in steps])
        counts = np.bincount(rows[rows >= 0], minlength=num_rows)
        lost += int((counts == 0).sum())
        twice += int(np.maximum(counts - 1, 0).sum())
    moved = sum(len(np.setdiff1d(rows, expected.get(n, empty))) for n, rows in final.items())
    return RowCounts(lost, twice, moved)
