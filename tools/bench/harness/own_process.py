"""A step in a process of its own, whose memory and settings are its own. Imports no torch."""

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
START = "spawn"
"""How processes come into being; a fork would inherit the locks of polars' threads."""


def in_own_process(step: Callable[..., T], *args: Any) -> T:
    """What `step`, of module level, returns from a fresh process.

    Raises:
        BrokenProcessPool: the process ended before it answered, out of memory for one.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context(START)) as pool:
        return pool.submit(step, *args).result()


def peak_rss() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
