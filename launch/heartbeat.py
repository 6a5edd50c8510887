"""What each rank says of itself while it trains, for whoever asks how a run is."""

import faulthandler
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

import psutil
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from msrec.data.files import write_text
from msrec.launch.process import Process

FOLDER = "ranks"
EVERY_S = 1.0
Phase = Literal["starts", "trains", "validates", "stopped", "done", "failed"]


class RankState(BaseModel):
    """The last word of a rank.

    Units:
        time: seconds since 1970, of the rank's own clock. step_s: a mean since the word before.
        memory: resident bytes; of a GPU the most that tensors took.
    """

    model_config = ConfigDict(frozen=True)

    rank: int
    host: str
    pid: int
    time: float
    phase: Phase
    step: int = 0
    total_steps: int = 0
    step_s: float | None = None
    memory: int = 0
    logs: str | None = None
    """Folder with stdout.log and stderr.log, where torchrun keeps them."""


class Heartbeat:
    """Writes `ranks/RANK.json` at most once a second, and the stack of a rank that hangs.

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
        self._file, self._stack = (folder / f"{process.rank}.{kind}" for kind in ("json", "stack"))
        self._process, self._total, self._hang_s = process, total_steps, hang_s
        self._said, self._said_step, self._step = 0.0, 0, 0
        self._stream: IO[str] | None = None

    def __enter__(self) -> Self:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if self._process.is_main:
            for file in self._file.parent.iterdir():  # of an earlier start on more ranks
                if file.stem.isdigit() and int(file.stem) >= self._process.world_size:
                    file.unlink()
        self._stream = self._stack.open("w")
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
        self._stream.close()
        self._stack.unlink()  # nothing was written, for a rank that hangs does not come here
        if error is not None:
            self._say("failed")

    def beat(self, phase: Phase, step: int | None = None) -> None:
        """This rank is alive; call it after every step, with its number, and every batch."""
        self._step = self._step if step is None else step
        is_last = phase in ("stopped", "done")
        if is_last or time.time() - self._said >= EVERY_S:
            self._say(phase)
            if self._hang_s is not None and self._stream is not None:
                faulthandler.dump_traceback_later(self._hang_s, file=self._stream, exit=True)

    def pause(self) -> None:
        """Something long begins that is no hang; the next beat ends it."""
        faulthandler.cancel_dump_traceback_later()
        self._said = 0.0

    def _say(self, phase: Phase) -> None:
        now = time.time()
        steps = self._step - self._said_step
        state = RankState(
            rank=self._process.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            time=now,
            phase=phase,
            step=self._step,
            total_steps=self._total,
            step_s=(now - self._said) / steps if steps > 0 and self._said else None,
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
    found = []
    for file in files:
        try:
            found.append(RankState.model_validate_json(file.read_text()))
        except ValidationError:
            raise ValueError(f"{file} must be what a rank writes of itself; it is not.") from None
    return found


def read_stack(run_dir: Path, rank: int) -> str | None:
    """The stack of a rank that hung, the innermost call of each thread first; None if none did."""
    file = run_dir / FOLDER / f"{rank}.stack"
    return file.read_text() or None if file.is_file() else None
