"""`msrec bench convert`: converting random rows in parts, against one process."""

import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from msrec.data.io.outputs import emptied_folder
from msrec.tools.bench.conversion.measured import SCRATCH, run_measured
from msrec.tools.bench.conversion.raw_rows import write_raw_rows
from msrec.tools.bench.harness.options import comma_list
from msrec.tools.bench.harness.report import console


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


def _check_same(first: Path, second: Path) -> None:
    found = subprocess.run(["diff", "-rq", first, second], capture_output=True, text=True)
    if found.returncode:
        raise ValueError(f"the datasets of all engines must be the same; {found.stdout.strip()}.")
