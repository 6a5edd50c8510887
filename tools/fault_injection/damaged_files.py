"""Damages a checkpoint and the data of a run, and compares each outcome with the expected one."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from rich.table import Table

from msrec.data.loading.loader import open_loader
from msrec.data.loading.quarantine import Policy, count_rows
from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.checkpointing.commit import COMMIT
from msrec.launch.checkpointing.dcp_storage import INDEX
from msrec.launch.config.run_config import RunConfig
from msrec.tools.fault_injection.killed_ranks import run_attempt


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


def damage_files(config: RunConfig) -> list[Fault]:
    """Trains a run and damages its newest checkpoint and a copy of its data, file by file."""
    run_attempt(config, 1, config.run_root / "ranks")
    newest = newest_checkpoint(config)
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
    expected = f"resumes from {newest_checkpoint(config).name}"
    faults.append(Fault("no COMMIT in the newest checkpoint", expected, _resume(config)))
    for name, damage in (("a truncated row group", _truncate), ("a missing file", Path.unlink)):
        faults += [_read_damaged(config, name, damage, policy) for policy in ("fail", "skip")]
    return faults


def faults_table(faults: Sequence[Fault]) -> Table:
    """Returns a table with a line per fault."""
    table = Table(title="damaged files", title_justify="left")
    for head in ("fault", "", "outcome"):
        table.add_column(head, overflow="fold")
    for fault in faults:
        table.add_row(fault.name, "well" if fault.is_well else "NOT WELL", fault.outcome)
    return table


def newest_checkpoint(config: RunConfig) -> Path:
    """Returns the folder of a run's newest committed checkpoint."""
    newest = Checkpoints(config.run_dir / "checkpoints").newest()
    assert newest is not None
    return newest


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
