"""Lines for the worker of `msrec bench gpu` that end as lines on a GPU may."""

import os
import time

from msrec.tools.bench.gpu.lines import Line
from msrec.tools.bench.gpu.setting import Found, Skipped


def well(setting):
    """Finds the device, and the process."""
    return Found(f"on {setting.kind}", {"process": os.getpid()})


def wrong(setting):
    """Finds a fault."""
    raise ValueError("a loss must be finite")


def not_here(setting):
    """Does not apply."""
    raise Skipped("needs CUDA")


def crash(setting):
    """Ends its process, as a fault in a kernel does."""
    os.abort()


def hang(setting):
    """Never ends."""
    time.sleep(600)


FAULTS = {
    "before": Line(well),
    "wrong": Line(wrong),
    "not here": Line(not_here),
    "crash": Line(crash),
    "after": Line(well),
    "again": Line(well),
    "hang": Line(hang, limit_s=0.5),
}
