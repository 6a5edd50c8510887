"""Reports findings: a table for people, and a JSON file with the machine and the command."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from msrec.data.io.atomic_files import write_json
from msrec.data.io.outputs import FileKind, check_output, contains
from msrec.launch.console import PlainConsole
from msrec.launch.distributed import quiet_libraries
from msrec.launch.versions import installed
from msrec.tools.bench.harness.measure import Finding, spread

OUT = Path("runs/bench")
"""Folder of the JSON files."""
BENCH_FILE = FileKind("a file of msrec bench", contains('{\n  "bench": "'))
BUSY_LOAD_PER_CORE = 0.5
"""Load from which the table calls the machine busy."""
PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy", "pyarrow", "polars")

console = PlainConsole(width=120, highlight=False)


def prepare(threads: int | None = 1) -> dict[str, Any]:
    """Silences the libraries and describes the machine; to be called before the first round.

    Args:
        threads: torch threads of this process; None leaves them as they are.
    """
    quiet_libraries()
    if threads is not None:
        torch.set_num_threads(threads)
    return machine()


def machine() -> dict[str, Any]:
    """Returns everything that the figures depend on: processor, load, versions and the command.

    Units:
        load: mean number of processes that were ready to run in the last 1, 5 and 15 minutes.
    """
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch_threads": torch.get_num_threads(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
        "command": " ".join(["msrec", *sys.argv[1:]]),
    }


def report(
    name: str,
    title: str,
    findings: Sequence[Finding],
    on: dict[str, Any],
    more: dict[str, Any] | None = None,
    file: Path | None = None,
) -> None:
    """Prints a table of the findings and writes them to a JSON file.

    Args:
        name: name of the bench.
        title: title of the table.
        findings: one row each.
        on: the machine, as `prepare` returned it.
        more: further entries of the file.
        file: file to write [default: runs/bench/NAME.json].
    """
    table = text_table(title, [_row(finding) for finding in findings])
    table.caption = _caption(on, max(len(finding.rounds) for finding in findings))
    console.print(table)
    file = file or OUT / f"{name}.json"
    check_output(file, BENCH_FILE)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [_line(finding) for finding in findings]
    write_json(file, {"bench": name, "machine": on, "findings": lines} | (more or {}))
    console.print(f"wrote {file}")


def text_table(title: str, rows: Sequence[Mapping[str, str]]) -> Table:
    """Returns a table with one column per key; the first column is left-aligned."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="right" if table.columns else "left")
    for row in rows:
        table.add_row(*row.values())
    return table


def _row(finding: Finding) -> dict[str, str]:
    deviation = spread(finding.rounds) / 2
    by_cpu = finding.processor_ratio
    state = {None: "", True: "reached", False: "MISSED"}[finding.is_reached]
    return {
        "": finding.what,
        "ours": _figure(finding.ours),
        "reference": _figure(finding.reference),
        "unit": finding.unit,
        "ratio": f"{finding.ratio:.2f}" + (f" ±{deviation:.0%}" if deviation else ""),
        "by CPU time": "" if by_cpu is None else f"{by_cpu:.2f}",
        "aim": "" if finding.aim is None else f"{finding.aim[0]} {finding.aim[1]:g}: {state}",
    }


def _line(finding: Finding) -> dict[str, Any]:
    return asdict(finding) | {
        "ratio": finding.ratio,
        "spread": spread(finding.rounds),
        "reached": finding.is_reached,
    }


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _caption(on: dict[str, Any], rounds: int) -> str:
    is_busy = on["load"][0] > BUSY_LOAD_PER_CORE * on["cores"]
    processors = ", ".join(filter(None, (on["gpu"], on["processor"])))
    return (
        f"{processors}, {on['cores']} cores ({'BUSY' if is_busy else 'quiet'}, load "
        f"{on['load'][0]}), {on['torch_threads']} torch threads; medians of {rounds} interleaved "
        "rounds, ± half the interquartile range"
    )


def processor_name() -> str:
    """Returns the processor's name; on other systems than Linux its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
