"""The whole way in one command: simulate, encode, train bare and with meta networks, compare."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from msrec.launch.evaluation.results import load_results
from msrec.launch.reporting.report import write_report
from msrec.launch.reporting.result_tables import comparison_table

CONFIG = Path("configs/demo.yaml")
RUNS = {"bare": [], "LLM4MSR": ["meta.user=true", "meta.scenario=true"]}


def demo(folder: Path) -> None:
    """Run every step through its own command, as a user would, and show what came out.

    Raises:
        FileNotFoundError: not started from a checkout.
        ValueError: a step failed.
    """
    if not CONFIG.is_file():
        raise FileNotFoundError(f"{CONFIG} must exist: run the demo from the root of a checkout.")
    console = Console()
    started = time.monotonic()
    places = [f"dataset={folder}/data", f"run_root={folder}", f"llm.store={folder}/store"]
    if not (folder / "data" / "dataset.yaml").is_file():
        _run(console, "msrec", "synthetic", f"{folder}/data")
    _torchx(console, "encode", f"config={CONFIG}", *places)
    for name, options in RUNS.items():
        _torchx(console, "train", f"config={CONFIG}", *places, f"run_id={name}", *options)
        _torchx(console, "evaluate", f"run={folder}/{name}")
    results = {name: load_results(folder / name) for name in RUNS}
    console.print(comparison_table(results, best=True))
    page = folder / "report.html"
    write_report(page, {name: folder / name for name in RUNS})
    console.print(f"report: {page}   ({time.monotonic() - started:.0f} s in all)")


def _torchx(console: Console, job: str, *args: str) -> None:
    _run(console, "torchx", "run", "-s", "local_cwd", f"msrec.{job}", "-j", "1x2", "--", *args)


def _run(console: Console, program: str, *args: str) -> None:
    """Run a console script of this environment; its output goes to the terminal."""
    console.print(f"[bold]$ {shlex.join([program, *args])}[/]", soft_wrap=True, highlight=False)
    done = subprocess.run([Path(sys.executable).parent / program, *args], check=False)
    if done.returncode:
        raise ValueError(f"`{program} {' '.join(args[:4])} ...` failed; its message stands above.")
