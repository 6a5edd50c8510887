"""`msrec bench chain`: all commands from raw rows to metrics, each in a process of its own."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from msrec.data.io.atomic_files import write_json
from msrec.data.io.outputs import check_output, emptied_folder
from msrec.tools.bench.conversion.measured import SCRATCH, run_measured
from msrec.tools.bench.conversion.raw_rows import write_raw_rows
from msrec.tools.bench.harness.options import comma_list
from msrec.tools.bench.harness.report import BENCH_FILE, OUT, console, machine, text_table

CONFIG = """\
embeddings: { dim: 16 }
interaction: { bottom_dims: [32, 16] }
backbone: { name: dlrm }
trainer: { global_batch: 16384, epochs: 1 }
"""


def bench_chain(
    rows: Annotated[
        str, typer.Option(help="numbers of rows, separated by commas")
    ] = "1000000,10000000",
    workers: Annotated[int, typer.Option(min=1, help="workers of the conversion")] = 2,
    histories: Annotated[
        bool, typer.Option("--histories/--no-histories", help="also index the users' histories")
    ] = True,
    out: Annotated[
        Path, typer.Option(help="folder for scratch files, 250 bytes a row; deleted at the end")
    ] = Path("runs/bench/chain"),
) -> None:
    """Random rows from raw files to metrics: the cost of each command, and its memory.

    Convert, histories, train, evaluate, predict and drift: the cost of a row should stay the same,
    and the memory should not grow with the rows. The model is a DLRM with seven tables, trained for
    one epoch; the last tenth of the rows is test. Writes runs/bench/chain.json.

    Raises:
        ValueError: a command fails.
    """
    check_output(OUT / "chain.json", BENCH_FILE)
    on, lines = machine(), []
    for count in comma_list("rows", rows, int):
        emptied_folder(out, SCRATCH)
        write_raw_rows(out / "raw", count)
        (out / "conf.yaml").write_text(f"{CONFIG}dataset: {out / 'dataset'}\nrun_root: {out}\n")
        for name, arguments in _commands(out, workers, histories):
            cost = run_measured(arguments)
            lines.append({"rows": count, "command": name, **cost._asdict()})
            console.print(f"{count:,} rows, {name}: {cost.wall_s:.0f} s, {cost.cpu_s:.0f} CPU s")
        shutil.rmtree(out)
    shown = [
        {
            "rows": f"{line['rows']:,}",
            "command": line["command"],
            "wall s": f"{line['wall_s']:.0f}",
            "CPU s": f"{line['cpu_s']:.0f}",
            "CPU us/row": f"{line['cpu_s'] / line['rows'] * 1e6:.2f}",
            "largest process GiB": f"{line['peak_gib']:.2f}",
        }
        for line in lines
    ]
    console.print(text_table(f"from raw rows to metrics, {workers} workers", shown))
    (OUT / "chain.json").parent.mkdir(parents=True, exist_ok=True)
    write_json(OUT / "chain.json", {"bench": "chain", "machine": on, "findings": lines})
    console.print(f"wrote {OUT / 'chain.json'}")


def _commands(out: Path, workers: int, histories: bool) -> Iterator[tuple[str, list[str]]]:
    """Yields each command's name in the table and its arguments."""
    raw, dataset, run = (str(out / name) for name in ("raw", "dataset", "first"))
    parts = ["--split", "time", "--engine", "processes", "--workers", str(workers)]
    yield "convert", ["convert", "tables", raw, dataset, *parts]
    if histories:
        yield "histories", ["histories", dataset]
    yield "train", ["train", str(out / "conf.yaml"), "run_id=first"]
    yield "evaluate", ["evaluate", run]
    yield "predict", ["predict", run, f"data={dataset}/test", f"out={out / 'scores'}"]
    yield "drift", ["drift", f"{dataset}/train", f"{dataset}/test"]
