"""`msrec bench convert`: converting random rows in parts, against one process."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer
from rich.table import Table

from msrec.data.io.outputs import FolderKind, emptied_folder
from msrec.tools.bench.conversion.raw_rows import write_raw_rows
from msrec.tools.bench.harness.options import comma_list
from msrec.tools.bench.harness.report import console

MARKER = "msrec-bench-convert.txt"
SCRATCH = FolderKind("a folder of msrec bench convert", MARKER, (MARKER, "*/**"))


class Cost(NamedTuple):
    """Cost of a command and of the processes that it waits for.

    Units:
        wall_s, cpu_s: seconds.
        peak_gib: memory of the largest process.
    """

    wall_s: float
    cpu_s: float
    peak_gib: float


def bench_convert(
    rows: Annotated[str, typer.Option(help="numbers of rows, separated by commas")] = "1000000",
    engines: Annotated[
        str, typer.Option(help="engines of `msrec convert tables`, separated by commas")
    ] = "polars,processes",
    workers: Annotated[int, typer.Option(min=1, help="workers of the engines with parts")] = 2,
    split: Annotated[
        Literal["random", "time", "user_last"], typer.Option(help="how the rows are divided")
    ] = "time",
    out: Annotated[
        Path, typer.Option(help="folder for scratch files, 150 bytes a row; deleted at the end")
    ] = Path("runs/bench/convert"),
) -> None:
    """Converting random rows in parts, against one process.

    The processor time of Ray's workers is not known to this command; its wall time is.

    Raises:
        ValueError: the datasets of two engines differ.
    """
    names = comma_list("engines", engines, str)
    table = Table(title=f"convert tables, {workers} workers, split by {split}")
    for head in ("rows", "engine", "wall s", "CPU s", "CPU us/row", "largest process GiB"):
        table.add_column(head, justify="left" if head == "engine" else "right")
    emptied_folder(out, SCRATCH)
    for count in comma_list("rows", rows, int):
        raw = out / "raw"
        write_raw_rows(raw, count)
        for engine in names:
            dataset = out / engine
            options = ["--split", split, "--engine", engine]
            if engine != "polars":
                options += ["--workers", str(workers)]
            cost = run_measured(["convert", "tables", str(raw), str(dataset), *options])
            figures = (f"{cost.wall_s:.1f}", f"{cost.cpu_s:.1f}", f"{cost.cpu_s / count * 1e6:.2f}")
            table.add_row(f"{count:,}", engine, *figures, f"{cost.peak_gib:.2f}")
            if engine != names[0]:
                _check_same(out / names[0], dataset)
                shutil.rmtree(dataset)
        shutil.rmtree(out / names[0])
        shutil.rmtree(raw)
    shutil.rmtree(out)
    console.print(table)


def run_measured(arguments: Sequence[str]) -> Cost:
    """Runs an msrec command and returns its cost.

    Raises:
        ValueError: the command fails.
    """
    code = "from msrec.tools.cli.main import main; main()"
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen did not see its end
    if status:
        raise ValueError(f"msrec {' '.join(arguments)} must end without an error; it did not.")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Cost(time.perf_counter() - start, cpu_s, usage.ru_maxrss / 2**20)


def _check_same(first: Path, second: Path) -> None:
    found = subprocess.run(["diff", "-rq", first, second], capture_output=True, text=True)
    if found.returncode:
        raise ValueError(f"the datasets of all engines must be the same; {found.stdout.strip()}.")
