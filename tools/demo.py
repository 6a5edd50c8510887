"""Demo in one command: simulate data, encode it, train with and without meta networks, compare."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from msrec.launch.config.run_config import Device
from msrec.launch.console import PlainConsole
from msrec.launch.devices import num_local_ranks
from msrec.launch.evaluation.results import load_results
from msrec.launch.reporting.comparison_tables import comparison_table
from msrec.launch.reporting.report import write_report

CONFIG = Path("configs/demo.yaml")
RUNS = {"bare": [], "LLM4MSR": ["meta.user=true", "meta.scenario=true"]}
"""Name of each run, and its options."""
console = PlainConsole()


def demo(folder: Path, device: Device = "auto") -> None:
    """Runs each step by its command, as a user would, and prints the results.

    Args:
        folder: folder of the dataset, the store, the runs and the report.
        device: of the ranks: one per GPU, or two on the CPU.

    Raises:
        FileNotFoundError: the current folder is not the root of a checkout.
        ValueError: a step failed.
    """
    if not CONFIG.is_file():
        raise FileNotFoundError(f"{CONFIG} must exist: run the demo from the root of a checkout.")
    started = time.monotonic()
    ranks = f"1x{num_local_ranks(device)}"
    config = [f"config={CONFIG}", f"dataset={folder}/data", f"run_root={folder}"]
    config += [f"llm.store={folder}/store", f"device={device}"]
    if not (folder / "data" / "dataset.yaml").is_file():
        _run("msrec", "synthetic", f"{folder}/data")
    _launch("encode", ranks, *config)
    for name, options in RUNS.items():
        _launch("train", ranks, *config, f"run_id={name}", *options)
        _launch("evaluate", ranks, f"run={folder}/{name}", f"device={device}")
    results = {name: load_results(folder / name) for name in RUNS}
    console.print(comparison_table(results, best=True))
    page = folder / "report.html"
    write_report(page, {name: folder / name for name in RUNS})
    console.print(f"report: {page}   ({time.monotonic() - started:.0f} s in all)")


def _launch(job: str, ranks: str, *args: str) -> None:
    _run("torchx", "run", "-s", "local_cwd", f"msrec.{job}", "-j", ranks, "--", *args)


def _run(program: str, *args: str) -> None:
    """Runs a program of this environment; its output goes to the terminal."""
    line = f"$ {shlex.join([program, *args])}"
    console.print(line, style="bold", soft_wrap=True, highlight=False)
    done = subprocess.run([Path(sys.executable).parent / program, *args], check=False)
    if done.returncode:
        raise ValueError(f"`{program} {' '.join(args[:4])} ...` failed; see its message above.")
