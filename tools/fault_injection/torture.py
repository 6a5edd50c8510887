"""`msrec torture`: kill training and spoil its files in every way, and count what is lost."""

import random
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from msrec.data.io.parquet_files import num_rows
from msrec.data.loading.global_order import GlobalOrder
from msrec.data.loading.loader import open_loader
from msrec.data.loading.quarantine import Policy, count_rows
from msrec.data.schema import Schema, load_schema
from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.checkpointing.commit import COMMIT
from msrec.launch.checkpointing.dcp_storage import INDEX, read_tensors
from msrec.launch.config import RunConfig, load_config
from msrec.launch.distributed import quiet_libraries
from msrec.tools.fault_injection.killed_ranks import Attempt, run_ranks

STEPS, EPOCHS, SAVE_EVERY = 60, 2, 4
"""Steps of an epoch, epochs, and steps between two checkpoints, of a run that is tortured."""


@dataclass(frozen=True)
class Kills:
    """What a run came to that was killed and resumed again and again.

    again: steps that were trained once more, for no checkpoint had them yet.
    lost, twice, moved: rows of the steps that made the final weights.
    difference: the largest one between its final state, optimizer and all, and that of a run that
        nobody killed.
    usual: with several numbers of ranks, that difference between the first and the last number
        without any kill: rounding, which training makes larger.
    """

    name: str
    kills: int
    resumes: int
    again: int
    lost: int
    twice: int
    moved: int
    difference: float
    usual: float | None = None


@dataclass(frozen=True)
class Fault:
    """A spoilt file: what should come of it, and what did."""

    name: str
    wanted: str
    found: str

    @property
    def is_well(self) -> bool:
        """Whether that is what should have come of it."""
        return self.wanted in self.found


def torture(dataset: Path, out: Path, kills: int, ranks: Sequence[int], seed: int) -> bool:
    """Run the kill and the fault matrix on a dataset and print both.

    Args:
        dataset: the dataset folder; it is not changed.
        out: gets the runs; emptied first.
        kills: of each run.
        ranks: numbers of ranks: each alone, then, where there are several, from kill to kill
            another one.
        seed: of the moments.

    Returns:
        Whether nothing was lost and every fault came to what it should.

    Raises:
        FileNotFoundError, ValueError: of the dataset.
        RuntimeError: training failed by itself.
    """
    console = Console(width=None if sys.stdout.isatty() else 120)
    quiet_libraries()
    schema = load_schema(dataset)
    shutil.rmtree(out, ignore_errors=True)
    choices = [[world] for world in ranks] + ([list(ranks)] if len(ranks) > 1 else [])
    columns = (TextColumn("torture"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    found = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("torture", total=len(choices) * (kills + 1) + len(choices))
        for worlds in choices:
            name = "ranks " + ", ".join(map(str, worlds))
            # Masks of dropout differ with the number of ranks; else the weights are comparable.
            dropout = 0.2 if len(worlds) == 1 else 0.0
            folder = out / name.replace(", ", "-").replace(" ", "-")
            config = _config(dataset, schema, folder, ranks, dropout)
            found.append(_kill(name, config, worlds, kills, seed, lambda: progress.advance(task)))
    console.print(kills_table(found))
    faults = _faults(_config(dataset, schema, out / "faults", ranks, 0.2))
    console.print(faults_table(faults))
    lossless = all(not (k.lost or k.twice or k.moved) for k in found)
    same = all(k.difference == 0 for k in found if "," not in k.name)
    return lossless and same and all(fault.is_well for fault in faults)


def kills_table(found: Sequence[Kills]) -> Table:
    """One row a run."""
    table = Table(title="killed (SIGKILL) and resumed", title_justify="left")
    heads = ("kills", "resumes", "steps again", "rows lost", "rows twice", "rows moved")
    table.add_column("run")
    for head in (*heads, "largest difference of the final state"):
        table.add_column(head, justify="right")
    for k in found:
        numbers = (k.kills, k.resumes, k.again, k.lost, k.twice, k.moved)
        told = "none, bit for bit" if k.difference == 0 else f"{k.difference:.1e}"
        told += "" if k.usual is None else f" (without a kill {k.usual:.1e})"
        table.add_row(k.name, *(f"{number:,}" for number in numbers), told)
    return table


def faults_table(faults: Sequence[Fault]) -> Table:
    """One row a fault."""
    table = Table(title="spoilt files", title_justify="left")
    for head in ("fault", "", "what came of it"):
        table.add_column(head, overflow="fold")
    for fault in faults:
        table.add_row(fault.name, "well" if fault.is_well else "NOT WELL", fault.found)
    return table


def _config(
    dataset: Path, schema: Schema, root: Path, ranks: Sequence[int], dropout: float
) -> RunConfig:
    """A small model with a table split by rows, some sixty steps an epoch."""
    multiple = int(np.lcm.reduce(list(ranks)))
    rows = num_rows(dataset / "train")
    batch = max(1, rows // STEPS // multiple) * multiple
    largest = max(schema.tables, key=lambda name: schema.tables[name])
    options = [
        *(f"dataset={dataset}", f"run_root={root}", "run_id=run"),
        *("backbone.name=mmoe", f"backbone.dropout={dropout}", "embeddings.dim=8"),
        f"embeddings.sharding={{{largest}: row_wise}}",
        *(f"trainer.global_batch={batch}", f"trainer.epochs={EPOCHS}", "trainer.patience=9"),
        *(f"trainer.checkpoint_every_steps={SAVE_EVERY}", "trainer.log_every=7"),
        f"trainer.window_rows={batch * 16}",
    ]
    return load_config(None, options)


def _kill(
    name: str,
    config: RunConfig,
    worlds: Sequence[int],
    kills: int,
    seed: int,
    advance: Callable[[], None],
) -> Kills:
    root = config.run_root
    whole = config.model_copy(update={"run_id": "whole"})
    run_ranks(whole, worlds[0], root / "ranks", None)
    advance()
    drawn = random.Random(seed)
    last = Checkpoints(whole.run_dir / "checkpoints").newest()
    assert last is not None
    total = int(last.name.removeprefix("step-"))
    attempts = []
    for number, moment in enumerate(sorted(drawn.sample(range(1, total), min(kills, total - 1)))):
        world = worlds[0] if number == 0 else drawn.choice(list(worlds))
        attempts.append(run_ranks(config, world, root / "ranks", moment))
        advance()
    attempts.append(run_ranks(config, worlds[0], root / "ranks", None))
    advance()
    trainer = config.trainer
    loader = open_loader(
        config.dataset,
        "train",
        trainer.global_batch,
        seed=config.seed,
        window_rows=trainer.window_rows,
    )
    order = loader.order
    lost, twice, moved = _judge(attempts, _expected(order), order.num_rows)
    usual = None
    if len(worlds) > 1:
        other = config.model_copy(update={"run_id": "other"})
        run_ranks(other, worlds[-1], root / "ranks", None)
        usual = _difference(whole, other, last.name)
    trained = sum(len(attempt.rows) for attempt in attempts)
    resumes = sum(attempt.started > 0 for attempt in attempts)
    difference = _difference(whole, config, last.name)
    counts = (len(attempts) - 1, resumes, trained - total, lost, twice, moved)
    return Kills(name, *counts, difference, usual)


def _difference(one: RunConfig, other: RunConfig, checkpoint: str) -> float:
    """The largest one between all tensors of two runs' checkpoints."""
    a, b = (read_tensors(run.run_dir / "checkpoints" / checkpoint) for run in (one, other))
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in a if a[n].numel())


def _expected(order: GlobalOrder) -> dict[int, Any]:
    """Step -> the row ids of its global batch, by the contract of the global order."""
    found = {}
    for epoch in range(EPOCHS):
        batches = np.concatenate([order.rows(epoch, w) for w in range(order.num_windows)])
        for number, rows in enumerate(batches):
            found[epoch * order.num_batches + number + 1] = rows
    return found


def _judge(
    attempts: Sequence[Attempt], expected: dict[int, Any], num_rows: int
) -> tuple[int, int, int]:
    """Rows lost, twice and in another batch, over the steps that made the final weights."""
    made: dict[int, Any] = {}
    for attempt in attempts:
        made = {step: rows for step, rows in made.items() if step <= attempt.started}
        made |= attempt.rows
    lost = twice = moved = 0
    for epoch in range(EPOCHS):
        steps = [s for s in expected if (s - 1) * EPOCHS // len(expected) == epoch]
        rows = [made[step] for step in steps if step in made]
        seen = np.concatenate(rows) if rows else np.empty(0, np.int64)
        count = np.bincount(seen[seen >= 0], minlength=num_rows)
        lost += int((count == 0).sum())
        twice += int(np.maximum(count - 1, 0).sum())
    for step, rows in made.items():
        wanted = expected.get(step, np.empty(0, np.int64))
        moved += len(np.setdiff1d(rows, wanted))
    return lost, twice, moved


# Spoilt files ---------------------------------------------------------------------------------


def _faults(config: RunConfig) -> list[Fault]:
    """Spoil a checkpoint and the data of a run in turn."""
    ranks = config.run_root / "ranks"
    run_ranks(config, 1, ranks, None)
    checkpoints = Checkpoints(config.run_dir / "checkpoints")
    newest = checkpoints.newest()
    assert newest is not None
    found = []
    for name in (INDEX, "__0_0.distcp"):
        kept = (newest / name).read_bytes()
        _flip(newest / name)
        found.append(_resumed(f"a bit flipped in {name} of the newest checkpoint", config, "CRC"))
        (newest / name).write_bytes(kept)
    (newest / COMMIT).unlink()
    older = checkpoints.newest()
    assert older is not None
    wanted = f"goes on from {older.name}"
    found.append(_resumed("no COMMIT in the newest checkpoint", config, wanted))
    copy = config.run_root / "data"
    for harm, spoil in (("a truncated row group", _truncate), ("a file that is gone", _remove)):
        for policy in ("fail", "skip"):
            found.append(_read_spoilt(config, copy, harm, spoil, policy))
    return found


def _resumed(name: str, config: RunConfig, wanted: str) -> Fault:
    folder = config.run_root / "ranks"
    try:
        attempt = run_ranks(config, 1, folder, None)
        said = f"goes on from step-{attempt.started:08d}"
    except RuntimeError:
        log = (folder / "rank-0.log").read_text().strip().splitlines()
        said = "refused: " + (log[-1].partition(": ")[2] if log else "without a word")
    return Fault(name, wanted, said)


def _read_spoilt(
    config: RunConfig,
    copy: Path,
    harm: str,
    spoil: Callable[[Path], None],
    policy: Policy,
) -> Fault:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(str(config.dataset), copy)
    loader = open_loader(copy, "train", config.trainer.global_batch, prefetch=0, faults=policy)
    where = str(loader.reader.groups[0].path)
    spoil(Path(where))
    wanted = f"refused: {where}" if policy == "fail" else "left out and counted"
    rows = 0
    try:
        for batch in loader.batches():
            rows += int(batch.weight.sum())
        left = count_rows(loader.reader.quarantine.bad_rows)
        whole = rows + left == loader.order.num_rows and left > 0
        said = f"{left:,} rows left out and counted, {rows:,} trained on"
        said = (
            said if whole else f"of {loader.order.num_rows:,} rows {left:,} left out, {rows:,} not"
        )
    except ValueError as error:
        said = f"refused: {error}"
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return Fault(f"{harm}, faults={policy}", wanted, said)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    """Overwrite the beginning of the first row group; the footer stays."""
    column = pq.read_metadata(path).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(64))


def _remove(path: Path) -> None:
    path.unlink()
