"""`msrec bench gpu`: whether a GPU does what the CPU does, and how fast, in one table."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from msrec.data.io.atomic_files import write_json
from msrec.data.io.outputs import check_output
from msrec.launch.console import wide_console
from msrec.launch.devices import rank_device
from msrec.tools.bench.gpu.lines import LINES, Line
from msrec.tools.bench.gpu.setting import Setting
from msrec.tools.bench.gpu.worker import Result, State, run_lines
from msrec.tools.bench.harness.report import BENCH_FILE, OUT, machine

COLOURS: dict[State, str] = {"ok": "green", "FAILED": "bold red", "skipped": "yellow"}
console = wide_console()


def bench_gpu(
    device: Annotated[
        Literal["cuda", "cpu"],
        typer.Option(help="cpu runs the same lines small, to test the command itself"),
    ] = "cuda",
    only: Annotated[
        list[str] | None, typer.Option(help="a line to run; may be repeated", show_default="all")
    ] = None,
    list_lines: Annotated[bool, typer.Option("--list", help="list the lines and stop")] = False,
    minutes: Annotated[float, typer.Option(min=0.1, help="time for all lines together")] = 10,
    out: Annotated[Path, typer.Option(help="JSON file; a .log file is written beside it")] = OUT
    / "gpu.json",
) -> None:
    """Checks of one GPU against the CPU, and its speed: twenty lines within ten minutes.

    Each line runs by itself and may fail by itself; the status is 1 if one failed. All data are
    made up, in a temporary folder. Start here on a new machine.

    Raises:
        ValueError: a line is unknown, or there is no GPU that torch and FBGEMM can use.
    """
    lines = chosen_lines(only or [])
    if list_lines:
        for name, line in lines.items():
            console.print(f"{name:12} {line.about}")
        return
    rank_device(device)
    log = out.with_suffix(".log")
    check_output(out, BENCH_FILE)
    out.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    on, results = machine(), list[Result]()
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(device, Path(folder))
        for result in run_lines(lines, setting, log, 60 * minutes):
            results.append(result)
            # After each line, so that what is known stays if the machine goes away.
            write_json(
                out, {"bench": "gpu", "machine": on, "device": device, "lines": as_json(results)}
            )
            console.print(
                f"{result.state:8} {result.name:12} {result.seconds:6.1f} s",
                style=COLOURS[result.state],
            )
    console.print(result_table(results))
    console.print(f"wrote {out}; output of the lines: {log}")
    if any(result.state == "FAILED" for result in results):
        raise typer.Exit(1)


def chosen_lines(names: Sequence[str]) -> dict[str, Line]:
    """Returns the lines with some names, in their own order; all without a name.

    Raises:
        ValueError: a name is unknown.
    """
    for name in names:
        if name not in LINES:
            raise ValueError(f"--only must be one of {', '.join(LINES)}; got {name!r}.")
    return {name: line for name, line in LINES.items() if not names or name in names}


def as_json(results: Sequence[Result]) -> list[dict[str, object]]:
    """Returns the entries of the JSON file."""
    return [result._asdict() for result in results]


def result_table(results: Sequence[Result]) -> Table:
    """Returns one row for each line."""
    counts = ", ".join(
        f"{sum(result.state == state for result in results)} {state}" for state in COLOURS
    )
    table = Table(title=f"msrec bench gpu: {counts}")
    for head in ("line", "state", "s", "found"):
        table.add_column(head, justify="right" if head == "s" else "left", overflow="fold")
    for result in results:
        row = (result.name, result.state, f"{result.seconds:.1f}", result.text)
        table.add_row(*row, style=None if result.state == "ok" else COLOURS[result.state])
    return table
