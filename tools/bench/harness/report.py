"""What a bench found: one table for people, one JSON file, and the machine it was measured on."""

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from msrec.data.io.atomic_files import write_json
from msrec.tools.bench.harness.measure import Finding

OUT = Path("runs/bench")
"""Gets NAME.json."""
BUSY = 0.5
"""Load beside us, a core, from which on the machine is told to be busy."""
PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "numpy", "pyarrow", "polars")


def machine() -> dict[str, Any]:
    """What figures depend on: processor, threads, versions, how busy the machine was, the command.

    Units:
        load: programs that wanted to run, means of the last 1, 5 and 15 minutes.
    """
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "command": " ".join(["msrec", *sys.argv[1:]]),
    }


def report(
    name: str,
    title: str,
    findings: Sequence[Finding],
    on: dict[str, Any],
    more: dict[str, Any] | None = None,
    console: Console | None = None,
) -> None:
    """Print the table and write `runs/bench/NAME.json`.

    Args:
        name: of the bench.
        title: of the table.
        findings: a line each.
        on: `machine()`, asked before the first round.
        more: kept in the file besides.
        console: where to print.
    """
    console = console or Console(width=120)
    table = Table(title=title, caption=_caption(on, findings))
    for column in ("", "ours", "reference", "unit", "ratio", "in processor time", "aim", ""):
        table.add_column(column, justify="left" if column in ("", "unit", "aim") else "right")
    for found in findings:
        ratio = f"{found.ratio:.2f}" + (f" ±{found.spread / 2:.0%}" if found.spread else "")
        processor = "" if found.processor_ratio is None else f"{found.processor_ratio:.2f}"
        figures = (_figure(found.ours), _figure(found.reference), found.unit)
        aim = "" if found.aim is None else f"{found.aim[0]} {found.aim[1]:g}"
        told = {None: "", True: "reached", False: "[bold]missed[/]"}[found.is_reached]
        table.add_row(found.what, *figures, ratio, processor, aim, told)
    console.print(table)
    for found in findings:
        if found.limit:
            console.print(f"{found.what}: {found.limit}", highlight=False)
    lines = [asdict(found) | {"reached": found.is_reached} for found in findings]
    OUT.mkdir(parents=True, exist_ok=True)
    write_json(
        OUT / f"{name}.json", {"bench": name, "machine": on, "findings": lines} | (more or {})
    )


def _caption(on: dict[str, Any], findings: Sequence[Finding]) -> str:
    rounds = max((len(found.rounds) for found in findings), default=0)
    busy = on["load"][0] > BUSY * on["cores"]
    state = f"BUSY, load {on['load'][0]}" if busy else f"quiet, load {on['load'][0]}"
    return (
        f"{on['processor']}, {on['cores']} cores ({state}), {on['torch_threads']} torch threads; "
        f"medians of {rounds} rounds in turn, ± half of the middle half"
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None
