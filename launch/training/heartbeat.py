"""Heartbeat files in which each rank of a training run reports its phase, step and speed."""

import faulthandler
import os
import re
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

import psutil
import torch
import torch.distributed as dist

from msrec.data.io.atomic_files import write_text
from msrec.data.loading.batch import Batch
from msrec.launch.distributed import Process
from msrec.launch.rank_states import ENDED, RANKS_FOLDER, Phase, RankState

INTERVAL_S = 1.0
"""Shortest time between two writes of a rank's state."""
STEP_FILE_BYTES = 32
VMSTAT = Path("/proc/vmstat")
_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
OWN_TIME_REPORTS = 30
"""Reports over which a rank's own time per step is averaged: half a minute or more."""


class Heartbeat:
    """Writes `ranks/RANK.json` at most once a second, and the stack of a rank that hangs.

    `ranks/RANK.step` holds the step alone and is written in every step (it takes microseconds), so
    that the step of a rank that was killed is known.

    After `hang_s` without a beat (one second more or less) Python's fault handler writes the stack
    of every thread to `ranks/RANK.stack` and ends the process, so that a launcher can start it
    again. The handler is a thread in C and needs no lock that a hung thread may hold. A rank that
    crashes (such as a segmentation fault) writes its stack there too.

    Use it as a context, after `start_from`.

    Args:
        run_dir: of the run.
        process: this rank.
        total_steps: of the run.
        hang_s: seconds without a beat; None waits forever.
    """

    def __init__(
        self, run_dir: Path, process: Process, total_steps: int, hang_s: float | None
    ) -> None:
        folder = run_dir / RANKS_FOLDER
        self._state_file = folder / f"{process.rank}.json"
        self._stack_file = folder / f"{process.rank}.stack"
        self._step_file = folder / f"{process.rank}.step"
        self._stack_stream: IO[str] | None = None
        self._step_stream: IO[bytes] | None = None
        self._process, self._total_steps, self._hang_s = process, total_steps, hang_s
        self._start, self._first_step, self._config = 0.0, 0, ""
        self._fault, self._had_fault_handler = False, False
        self._step, self._validates = 0, False
        self._reported_at, self._reported_step = 0.0, 0
        self._step_s: float | None = None
        self._thread_time, self._own_time = 0.0, 0.0
        self._own_times: deque[tuple[int, float]] = deque(maxlen=OWN_TIME_REPORTS)
        """Steps and own seconds of each of the last reports."""

    def start_from(self, step: int, start: float, config: str) -> None:
        """Sets the step to continue from, the time that identifies the start, and the config."""
        self._step = self._reported_step = self._first_step = step
        self._start, self._config = start, config

    def __enter__(self) -> Self:
        folder = self._state_file.parent
        folder.mkdir(parents=True, exist_ok=True)
        if self._process.is_main:
            for file in folder.iterdir():  # of an earlier start with more ranks
                if file.stem.isdigit() and int(file.stem) >= self._process.world_size:
                    file.unlink()
        self._stack_stream = self._stack_file.open("w")
        self._step_stream = self._step_file.open("wb", buffering=0)
        self._had_fault_handler = faulthandler.is_enabled()
        # If it is enabled, `enable` installs no handlers, and a library such as Ray may have
        # replaced them.
        faulthandler.disable()
        faulthandler.enable(self._stack_stream)
        self.beat("starts", self._step)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
        if self._had_fault_handler and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)
        for stream in (self._stack_stream, self._step_stream):
            assert stream is not None
            stream.close()
        self._stack_stream = self._step_stream = None
        self._stack_file.unlink()  # it is empty: a rank that hangs does not get here
        if error is not None:
            self._fault = not _is_from_outside(error)
            self._report("failed")

    def beat(self, phase: Phase, step: int | None = None) -> None:
        """Reports that this rank is alive; call it after every step and every validation batch."""
        self._step = self._step if step is None else step
        self._validates = phase == "validates"
        if self._step_stream is not None:
            content = f"{self._step} {int(self._validates)}".encode().ljust(STEP_FILE_BYTES)
            os.pwrite(self._step_stream.fileno(), content, 0)
        # All ranks take the same time for a step, because each waits for the others in collectives.
        # A blocked wait takes no processor time, so processor time shows the slow rank.
        thread_time = time.thread_time() if self._process.device.type == "cpu" else 0.0
        if phase == "trains":
            self._own_time += thread_time - self._thread_time
        self._thread_time = thread_time
        if phase in ENDED or time.time() - self._reported_at >= INTERVAL_S:
            self._report(phase)
            if self._hang_s is not None and self._stack_stream is not None:
                faulthandler.dump_traceback_later(self._hang_s, file=self._stack_stream, exit=True)

    def pause(self) -> None:
        """Stops the watch for hangs until the next beat, for something long such as a save."""
        faulthandler.cancel_dump_traceback_later()
        self._reported_at = 0.0

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields the same batches and counts the wait for each as own time of this rank."""
        while True:
            began, thread_time = time.perf_counter(), time.thread_time()
            try:
                batch = next(batches)
            except StopIteration:
                return
            # `beat` counts the processor time of the wait already.
            self._own_time += time.perf_counter() - began - (time.thread_time() - thread_time)
            yield batch

    def _own_s(self, steps: int) -> float | None:
        """Returns own seconds per step over the last reports; None before the first step."""
        if steps > 0:
            self._own_times.append((steps, self._own_time))
            self._own_time = 0.0
        total = sum(steps for steps, _ in self._own_times)
        return sum(seconds for _, seconds in self._own_times) / total if total else None

    def _report(self, phase: Phase) -> None:
        now = time.time()
        steps = self._step - self._reported_step
        if steps > 0 and self._reported_at:
            self._step_s = (now - self._reported_at) / steps
        # Under torchrun a rank's error file is in the same folder as its output.
        error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        state = RankState(
            rank=self._process.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            time=now,
            phase=phase,
            step=self._step,
            total_steps=self._total_steps,
            validates=self._validates,
            step_s=self._step_s,
            own_s=self._own_s(steps),
            start=self._start,
            first_step=self._first_step,
            fault=self._fault,
            config=self._config,
            oom_kills=oom_kills(),
            memory=self._memory(),
            logs=None if error_file is None else str(Path(error_file).parent),
        )
        write_text(self._state_file, state.model_dump_json())
        self._reported_at, self._reported_step = now, self._step

    def _memory(self) -> int:
        if self._process.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._process.device))
        return int(psutil.Process().memory_info().rss)


def _is_from_outside(error: BaseException) -> bool:
    """Returns whether another rank was lost, or someone stopped this one."""
    is_lost_rank = isinstance(error, dist.DistError) or "gloo" in str(error)
    return is_lost_rank or not isinstance(error, Exception)


def oom_kills() -> int:
    """Returns how many processes the kernel has killed for memory; 0 where it does not say."""
    counts = VMSTAT.read_text() if VMSTAT.is_file() else ""
    match = _OOM_KILLS.search(counts)  # every second, so without parsing 200 lines
    return int(match[1]) if match else 0
