"""Is memory flat and speed constant as a dataset grows, and however its files are cut?"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from msrec.data.convert.dataset_writer import PartWriter, arrow_schema
from msrec.data.io.parquet_files import parquet_files, parquet_metadata
from msrec.data.loading.loader import open_loader
from msrec.data.schema import load_schema, save_schema
from msrec.data.synthetic.simulated_dataset import TRUTH, synthesize
from msrec.launch.distributed import quiet_libraries
from msrec.tools.bench.harness.own_process import in_own_process, peak_rss

USERS, ITEMS = 100_000, 50_000
MIN_ROWS = 1_000_000
BATCH = 4096
QUARTERS = 4
SPARE = 1.25
"""Of the disk that a dataset is expected to take."""


class Layout(NamedTuple):
    """How the rows of a split are cut."""

    row_group_rows: int
    file_rows: int


class Reading(NamedTuple):
    """A shuffled epoch, read by one rank."""

    rows_per_s: list[float]
    """Of each quarter of the epoch, in order."""
    peak: int
    """Bytes of memory, of the whole process."""


def bench_scale(sizes: Sequence[int], out: Path, layout_rows: int) -> None:
    """Stream the simulated app to disk at each size and read a shuffled epoch of it back.

    Each step runs in a process of its own, whose largest memory is told. Sizes that the disk has no
    room for are told with what they would take by the slope of the others.

    Args:
        sizes: rows, rising.
        out: folder for the data; emptied first and after each size.
        layout_rows: rows of the dataset that is cut in several ways; 0 leaves that out.

    Raises:
        ValueError: a size is too small for the app's users.
    """
    for rows in (*sizes, *([layout_rows] if layout_rows else [])):
        if rows < MIN_ROWS:
            raise ValueError(
                f"a size must be {MIN_ROWS:,} rows or more, for the app has {USERS:,} users; got "
                f"{rows:,}."
            )
    console = Console(width=120)
    table = Table(title="the simulated app, streamed to disk and read back, shuffled")
    heads = ("rows", "GB", "written, rows/s", "peak GiB", "read, rows/s", "by quarter", "peak GiB")
    for head in heads:
        table.add_column(head, justify="right")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    measured: dict[int, int] = {}
    for rows in sorted(sizes):
        expected = _by_slope(measured, rows)
        free = shutil.disk_usage(out).free
        if expected * SPARE > free:
            told = f"not run: about {expected / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            table.add_row(f"{rows:,}", told)
            continue
        console.print(f"{rows:,} rows ...", highlight=False)
        seconds, peak = in_own_process(_write, out / "app", rows)
        size = sum(f.stat().st_size for f in (out / "app").rglob("*.parquet"))
        measured[rows] = size
        reading = in_own_process(_read, out / "app")
        written = [f"{rows:,}", f"{size / 1e9:.2f}", f"{rows / seconds:,.0f}", _gib(peak)]
        table.add_row(*written, *_cells(reading))
        shutil.rmtree(out / "app")
    console.print(table)
    if layout_rows:
        console.print(_layouts(out, layout_rows, console))
    shutil.rmtree(out)


def _layouts(out: Path, rows: int, console: Console) -> Table:
    """The same rows cut into files and row groups of many sizes."""
    layouts = {
        "as written": None,
        "many small files": Layout(rows // 1000, rows // 1000),
        "one file": Layout(1 << 16, 1 << 40),
        "row groups of 1,024": Layout(1 << 10, 1 << 22),
        "row groups of 1,048,576": Layout(1 << 20, 1 << 22),
    }
    table = Table(title=f"{rows:,} rows, cut in other ways")
    for head in ("", "files", "row groups", "read, rows/s", "by quarter", "peak GiB"):
        table.add_column(head, justify="right" if head else "left")
    console.print(f"{rows:,} rows, cut in {len(layouts)} ways ...", highlight=False)
    in_own_process(_write, out / "app", rows)
    for name, layout in layouts.items():
        folder = out / "app" if layout is None else out / "cut"
        if layout is not None:
            shutil.rmtree(folder, ignore_errors=True)
            in_own_process(_cut, out / "app", folder, layout)
        files = parquet_files(folder / "train")
        groups = sum(parquet_metadata(file).num_row_groups for file in files)
        table.add_row(
            name, f"{len(files):,}", f"{groups:,}", *_cells(in_own_process(_read, folder))
        )
    return table


def _write(out: Path, rows: int) -> tuple[float, int]:
    """Seconds and peak memory."""
    started = time.perf_counter()
    synthesize(out, rows=rows, users=USERS, items=ITEMS)
    return time.perf_counter() - started, peak_rss()


def _read(dataset: Path) -> Reading:
    quiet_libraries()
    loader = open_loader(dataset, "train", BATCH)
    edges = [len(loader) * quarter // QUARTERS for quarter in range(QUARTERS + 1)]
    marks = [time.perf_counter()]
    rows = 0
    for number, batch in enumerate(loader.batches(), start=1):
        rows += int(batch.weight.sum())
        if number in edges:
            marks.append(time.perf_counter())
    assert rows == loader.reader.num_rows, "every row is read once"
    per_quarter = np.diff(edges) * BATCH / np.diff(marks)
    return Reading(per_quarter.tolist(), peak_rss())


def _cut(dataset: Path, out: Path, layout: Layout) -> None:
    schema = load_schema(dataset)
    target = arrow_schema(schema, extra=(TRUTH,))
    with PartWriter(out / "train", target, *layout) as writer:
        for file in parquet_files(dataset / "train"):
            for batch in pq.ParquetFile(file).iter_batches(1 << 19):
                writer.append(pa.Table.from_batches([batch]).cast(target))
    save_schema(schema, out)


def _by_slope(measured: dict[int, int], rows: int) -> float:
    """Bytes that a size will take; 60 a row where nothing is measured."""
    if not measured:
        return 60.0 * rows
    largest = max(measured)
    return measured[largest] / largest * rows


def _cells(reading: Reading) -> list[str]:
    whole = sum(1 / speed for speed in reading.rows_per_s)
    quarters = "  ".join(f"{speed / 1e6:.2f} M" for speed in reading.rows_per_s)
    return [f"{QUARTERS / whole:,.0f}", quarters, _gib(reading.peak)]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
