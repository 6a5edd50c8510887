"""What each rank says of itself while it trains, for whoever asks how a run is."""

import faulthandler
import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

import psutil
import torch
from pydantic import BaseModel, ConfigDict

from msrec.data.io.atomic_files import write_text
from msrec.data.loading.batch import Batch
from msrec.launch.distributed import Process

FOLDER = "ranks"
EVERY_S = 1.0
Phase = Literal["starts", "trains", "validates", "stopped", "done", "failed"]
ENDED: tuple[Phase, ...] = ("done", "stopped")
MARK_BYTES = 32
OWN_WORDS = 30
"""Words over which a rank's own time is taken, half a minute or more."""


class RankState(BaseModel):
    """The last word of a rank.

    Units:
        time: seconds since 1970, of the rank's own clock. step_s: a mean since the last word at
        another step. own_s: a mean over the last half minute of steps. start: seconds since 1970
        when rank 0 began, the same on all ranks. memory: resident bytes; of a GPU the most that
        tensors took.
    """

    model_config = ConfigDict(frozen=True)

    rank: int
    host: str
    pid: int
    time: float
    phase: Phase
    step: int = 0
    total_steps: int = 0
    validates: bool = False
    """Of a rank that failed, too: it did not fail in a training step."""
    step_s: float | None = None
    own_s: float | None = None
    """Of a step, without waiting for other ranks: processor time of the thread that trains (not on
    a GPU, where it waits actively) and waiting for data."""
    start: float = 0.0
    first_step: int = 0
    """The one that this start went on from."""
    memory: int = 0
    logs: str | None = None
    """Folder with stdout.log and stderr.log, where torchrun keeps them."""


class Heartbeat:
    """Writes `ranks/RANK.json` at most once a second, and the stack of a rank that hangs.

    Where it is stands besides in `ranks/RANK.step`, written in every step (some microseconds), so
    that it is known of a rank that was killed.

    Where no beat comes for `hang_s` (one second more or less), Python's fault handler writes the
    stack of every thread to `ranks/RANK.stack` and ends the process, so that a launcher can start
    it again. It is a thread in C, which needs no lock that a hung one may hold. Use it as a
    context.

    Args:
        run_dir: of the run.
        process: this rank.
        total_steps: of the run.
        hang_s: seconds without a beat; None waits for ever.
    """

    def __init__(
        self, run_dir: Path, process: Process, total_steps: int, hang_s: float | None
    ) -> None:
        folder = run_dir / FOLDER
        self._file, self._stack, self._mark = (
            folder / f"{process.rank}.{kind}" for kind in ("json", "stack", "step")
        )
        self._process, self._total, self._hang_s = process, total_steps, hang_s
        self._said, self._said_step, self._step = 0.0, 0, 0
        self._validates, self._start, self._first_step = False, 0.0, 0
        self._stream: IO[str] | None = None
        self._marks: IO[bytes] | None = None
        self._step_s: float | None = None
        self._own, self._cpu = 0.0, 0.0
        self._owns: deque[tuple[int, float]] = deque(maxlen=OWN_WORDS)

    def begin(self, step: int, start: float) -> None:
        """Before it is entered: the step that a start goes on from, and the start's number."""
        self._step = self._said_step = self._first_step = step
        self._start = start

    def __enter__(self) -> Self:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if self._process.is_main:
            for file in self._file.parent.iterdir():  # of an earlier start on more ranks
                if file.stem.isdigit() and int(file.stem) >= self._process.world_size:
                    file.unlink()
        self._stream = self._stack.open("w")
        self._marks = self._mark.open("wb", buffering=0)
        self._write_mark()
        self.beat("starts", self._step)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        assert self._stream is not None
        assert self._marks is not None
        self._stream.close()
        self._marks.close()
        self._stream = self._marks = None
        self._stack.unlink()  # nothing was written, for a rank that hangs does not come here
        if error is not None:
            self._say("failed")

    def beat(self, phase: Phase, step: int | None = None) -> None:
        """This rank is alive; call it after every step, with its number, and every batch."""
        self._step = self._step if step is None else step
        self._validates = phase == "validates"
        if self._marks is not None:
            self._write_mark()
        cpu = time.thread_time() if self._process.device.type == "cpu" else 0.0
        if phase == "trains":
            self._own += cpu - self._cpu
        self._cpu = cpu
        is_last = phase in ENDED
        if is_last or time.time() - self._said >= EVERY_S:
            self._say(phase)
            if self._hang_s is not None and self._stream is not None:
                faulthandler.dump_traceback_later(self._hang_s, file=self._stream, exit=True)

    def pause(self) -> None:
        """Something long begins that is no hang; the next beat ends it."""
        faulthandler.cancel_dump_traceback_later()
        self._said = 0.0

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; until one is there, this rank waits for nobody but itself."""
        while True:
            began, cpu = time.perf_counter(), time.thread_time()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._own += time.perf_counter() - began - (time.thread_time() - cpu)
            yield batch

    def _write_mark(self) -> None:
        assert self._marks is not None
        mark = f"{self._step} {int(self._validates)}".encode()
        os.pwrite(self._marks.fileno(), mark.ljust(MARK_BYTES), 0)

    def _own_s(self, steps: int) -> float | None:
        """Of a step, over the last words; None before the first step."""
        if steps > 0:
            self._owns.append((steps, self._own))
            self._own = 0.0
        total = sum(steps for steps, _ in self._owns)
        return sum(own for _, own in self._owns) / total if total else None

    def _say(self, phase: Phase) -> None:
        now = time.time()
        steps = self._step - self._said_step
        if steps > 0 and self._said:
            self._step_s = (now - self._said) / steps
        state = RankState(
            rank=self._process.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            time=now,
            phase=phase,
            step=self._step,
            total_steps=self._total,
            validates=self._validates,
            step_s=self._step_s,
            own_s=self._own_s(steps),
            start=self._start,
            first_step=self._first_step,
            memory=self._memory(),
            logs=_logs(),
        )
        write_text(self._file, state.model_dump_json())
        self._said, self._said_step = now, self._step

    def _memory(self) -> int:
        if self._process.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._process.device))
        return int(psutil.Process().memory_info().rss)


def _logs() -> str | None:
    """Torchrun has a rank's errors go where its output goes."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return None if error_file is None else str(Path(error_file).parent)


def read_ranks(run_dir: Path) -> list[RankState]:
    """What the ranks of a run said last, by rank.

    Raises:
        FileNotFoundError: the run has not begun to train.
        ValueError: a file is not what a rank writes.
    """
    files = sorted((run_dir / FOLDER).glob("*.json"), key=lambda file: int(file.stem))
    if not files:
        raise FileNotFoundError(
            f"{run_dir / FOLDER} must hold a file a rank; there is none: no rank began to train."
        )
    return [_read_rank(file) for file in files]


def ranks_of_last_start(run_dir: Path) -> list[RankState]:
    """What the ranks of the last start said; empty where a run never began to train."""
    files = (run_dir / FOLDER).glob("*.json")
    ranks = [_read_rank(file) for file in files]
    last = max((rank.start for rank in ranks), default=0.0)
    return [rank for rank in ranks if rank.start == last]


def _read_rank(file: Path) -> RankState:
    """What a rank said, and where it has been since."""
    try:
        state = RankState.model_validate_json(file.read_text())
        mark = file.with_suffix(".step")
        if state.phase in ENDED or not mark.is_file():
            return state
        # Empty between its opening and its first word.
        step, validates = (mark.read_text() or f"{state.step} {int(state.validates)}").split()
        return state.model_copy(update={"step": int(step), "validates": validates == "1"})
    except ValueError:
        raise ValueError(f"{file} must be what a rank writes of itself; it is not.") from None


def read_stack(run_dir: Path, rank: int) -> str | None:
    """The stack of a rank that hung, the innermost call of each thread first; None if none did."""
    file = run_dir / FOLDER / f"{rank}.stack"
    return file.read_text() or None if file.is_file() else None
