"""Cost of msrec commands that run in processes of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from msrec.data.io.outputs import FolderKind

MARKER = "msrec-bench.txt"
SCRATCH = FolderKind("a folder of msrec bench", MARKER, (MARKER, "*/**"))


class Cost(NamedTuple):
    """Cost of a command and of the processes that it waits for.

    Units:
        wall_s, cpu_s: seconds.
        peak_gib: memory of the largest process.
    """

    wall_s: float
    cpu_s: float
    peak_gib: float


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
