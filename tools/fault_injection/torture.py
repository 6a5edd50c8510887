"""`msrec torture`: kills and resumes a training run, damages its files, and counts what is lost."""

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from rich.progress import Progress
from rich.table import Table

from msrec.data.io.parquet_files import num_rows
from msrec.data.loading.global_order import GlobalOrder
from msrec.data.loading.loader import open_loader
from msrec.data.loading.quarantine import Policy, count_rows
from msrec.data.schema import load_schema
from msrec.launch.checkpointing.checkpoint import COMMIT, Checkpoints
from msrec.launch.checkpointing.dcp_storage import INDEX, read_tensors
from msrec.launch.config import RunConfig, load_config
from msrec.launch.console import wide_console
from msrec.launch.distributed import quiet_libraries
from msrec.tools.fault_injection.killed_ranks import Attempt, Rows, run_attempt

STEPS_PER_EPOCH, EPOCHS, CHECKPOINT_EVERY_STEPS = 60, 2, 4
DROPOUT = 0.2


class RowCounts(NamedTuple):
    """Rows of the steps that made the final weights: lost, seen twice, or in another batch."""

    lost: int
    twice: int
    moved: int


@dataclass(frozen=True)
class KilledRun:
    """A run that was killed and resumed again and again, compared with one that never was.

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


@dataclass(frozen=True)
class Fault:
    """A damaged file with the expected and the actual outcome."""

    name: str
    expected: str
    outcome: str

    @property
    def is_well(self) -> bool:
        """Whether the outcome contains the expected text."""
        return self.expected in self.outcome


def torture(dataset: Path, out: Path, kills: int, ranks: Sequence[int], seed: int) -> bool:
    """Kills runs on a dataset, damages their files, and prints a table of each.

    Args:
        dataset: the dataset folder; it is not changed.
        out: folder for the runs; emptied first.
        kills: number of kills of each run.
        ranks: numbers of ranks. There is one run per number, and if there are several, one more
            that draws another number at each resume.
        seed: seed of the moments of the kills.

    Returns:
        Whether nothing was lost and every fault had its expected outcome.

    Raises:
        FileNotFoundError, ValueError: the dataset is missing or wrong.
        RuntimeError: training failed by itself.
    """
    console = wide_console()
    quiet_libraries()
    shutil.rmtree(out, ignore_errors=True)
    choices = [[world_size] for world_size in ranks]
    choices += [list(ranks)] if len(ranks) > 1 else []
    runs = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("torture", total=len(choices) * (kills + 2))
        for world_sizes in choices:
            # Dropout masks differ with the number of ranks; without them weights are comparable.
            dropout = DROPOUT if len(world_sizes) == 1 else 0.0
            folder = out / "-".join(["ranks", *map(str, world_sizes)])
            config = _config(dataset, folder, ranks, dropout)
            runs.append(_kill(config, world_sizes, kills, seed, lambda: progress.advance(task)))
    console.print(killed_runs_table(runs))
    faults = _damage(_config(dataset, out / "faults", ranks, DROPOUT))
    console.print(faults_table(faults))
    return all(run.is_well for run in runs) and all(fault.is_well for fault in faults)


def killed_runs_table(runs: Sequence[KilledRun]) -> Table:
    """Returns a table with a line per run."""
    table = Table(title="killed (SIGKILL) and resumed", title_justify="left")
    table.add_column("run")
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


def faults_table(faults: Sequence[Fault]) -> Table:
    """Returns a table with a line per fault."""
    table = Table(title="damaged files", title_justify="left")
    for head in ("fault", "", "outcome"):
        table.add_column(head, overflow="fold")
    for fault in faults:
        table.add_row(fault.name, "well" if fault.is_well else "NOT WELL", fault.outcome)
    return table


def _config(dataset: Path, root: Path, ranks: Sequence[int], dropout: float) -> RunConfig:
    """Returns a small model with its largest table split by rows, for sixty steps per epoch."""
    tables = load_schema(dataset).tables
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


def _newest(config: RunConfig) -> Path:
    newest = Checkpoints(config.run_dir / "checkpoints").newest()
    assert newest is not None
    return newest


# Killed runs ----------------------------------------------------------------------------------


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
    last = _newest(whole).name
    steps = int(last.removeprefix("step-"))
    rng = random.Random(seed)
    moments = sorted(rng.sample(range(1, steps), min(kills, steps - 1)))
    sizes = [world_sizes[0], *(rng.choice(world_sizes) for _ in moments[1:])]
    attempts = [train(config, *pair) for pair in zip(sizes, moments, strict=True)]
    attempts.append(train(config, world_sizes[0]))
    difference_of_ranks = None
    if len(world_sizes) > 1:
        other = config.model_copy(update={"run_id": "other"})
        run_attempt(other, world_sizes[-1], config.run_root / "ranks")
        difference_of_ranks = _difference(whole, other, last)
    options = config.trainer
    loader = open_loader(
        config.dataset,
        "train",
        options.global_batch,
        seed=config.seed,
        window_rows=options.window_rows,
    )
    return KilledRun(
        name=f"ranks {', '.join(map(str, world_sizes))}",
        kills=len(moments),
        resumes=sum(attempt.started > 0 for attempt in attempts),
        repeated_steps=sum(len(attempt.rows) for attempt in attempts) - steps,
        rows=count_rows_of(attempts, _expected_rows(loader.order), loader.order.num_rows),
        difference=_difference(whole, config, last),
        difference_of_ranks=difference_of_ranks,
    )


def _difference(first: RunConfig, second: RunConfig, checkpoint: str) -> float:
    """Returns the largest difference between all tensors of two runs' checkpoints."""
    a, b = (read_tensors(run.run_dir / "checkpoints" / checkpoint) for run in (first, second))
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in a if a[n].numel())


def _expected_rows(order: GlobalOrder) -> dict[int, Rows]:
    """Returns step -> row ids of its global batch, as the global order defines them."""
    batches = [
        batch
        for epoch in range(EPOCHS)
        for window in range(order.num_windows)
        for batch in order.rows(epoch, window)
    ]
    return dict(enumerate(batches, start=1))


def count_rows_of(
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


# Damaged files --------------------------------------------------------------------------------


def _damage(config: RunConfig) -> list[Fault]:
    """Damages a checkpoint and the data of a run, one file at a time."""
    run_attempt(config, 1, config.run_root / "ranks")
    newest = _newest(config)
    faults = []
    for name in (INDEX, "__0_0.distcp"):
        data = (newest / name).read_bytes()
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        (newest / name).write_bytes(flipped)
        fault = f"a bit flipped in {name} of the newest checkpoint"
        faults.append(Fault(fault, "CRC", _resume(config)))
        (newest / name).write_bytes(data)
    (newest / COMMIT).unlink()
    expected = f"resumes from {_newest(config).name}"
    faults.append(Fault("no COMMIT in the newest checkpoint", expected, _resume(config)))
    for name, damage in (("a truncated row group", _truncate), ("a missing file", Path.unlink)):
        faults += [_read_damaged(config, name, damage, policy) for policy in ("fail", "skip")]
    return faults


def _resume(config: RunConfig) -> str:
    """Resumes the run and returns the outcome."""
    folder = config.run_root / "ranks"
    try:
        return f"resumes from step-{run_attempt(config, 1, folder).started:08d}"
    except RuntimeError:
        log = (folder / "rank-0.log").read_text().strip().splitlines()
        return "refused: " + (log[-1].partition(": ")[2] if log else "no message")


def _read_damaged(
    config: RunConfig, name: str, damage: Callable[[Path], None], policy: Policy
) -> Fault:
    """Reads a copy of the data, one of whose files is damaged once the loader is open."""
    copy = config.run_root / "data"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(str(config.dataset), copy)
    loader = open_loader(copy, "train", config.trainer.global_batch, prefetch=0, faults=policy)
    file = Path(str(loader.reader.groups[0].path))
    damage(file)
    try:
        read = sum(int(batch.weight.sum()) for batch in loader.batches())
        skipped = count_rows(loader.reader.quarantine.bad_rows)
        outcome = f"{skipped:,} rows skipped and counted, {read:,} read"
        if read + skipped != loader.order.num_rows or skipped == 0:
            outcome = f"of {loader.order.num_rows:,} rows {skipped:,} skipped, {read:,} read"
    except ValueError as error:
        outcome = f"refused: {error}"
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    expected = f"refused: {file}" if policy == "fail" else "skipped and counted"
    return Fault(f"{name}, faults={policy}", expected, outcome)


def _truncate(path: Path) -> None:
    """Overwrites the start of the first row group and keeps the footer."""
    column = pq.read_metadata(path).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(64))
