"""States that the ranks of a training report in files, and the reading of them.

`msrec launch status` imports this file and therefore neither torch nor any model.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

RANKS_FOLDER = "ranks"
Phase = Literal["starts", "trains", "validates", "stopped", "done", "failed"]
ENDED: tuple[Phase, ...] = ("done", "stopped")
CRASH = "Fatal Python error"
"""First words of the stack of a rank that crashed; that of a rank that hung begins otherwise."""


class RankState(BaseModel):
    """State that a rank last reported; the content of `ranks/RANK.json`."""

    model_config = ConfigDict(frozen=True)

    rank: int
    host: str
    pid: int
    time: float
    """Time of the report, in seconds since 1970 on the rank's clock."""
    phase: Phase
    step: int = 0
    total_steps: int = 0
    validates: bool = False
    """Whether the rank is, or was when it failed, in a validation."""
    step_s: float | None = None
    """Mean seconds per step since the report before."""
    own_s: float | None = None
    """Seconds per step without waiting for other ranks, averaged over half a minute: processor time
    of the training thread (not on a GPU, where it waits actively) and waiting for data."""
    start: float = 0.0
    """Seconds since 1970 at which rank 0 started, the same on all ranks."""
    first_step: int = 0
    """Step from which this start continued."""
    fault: bool = False
    """Whether the rank's own error ended it, not the loss of another rank or Ctrl-C."""
    config: str = ""
    """Hash of the run's config."""
    oom_kills: int = 0
    """Processes that the kernel of this host has killed for memory, since it was booted."""
    memory: int = 0
    """Resident bytes or, on a GPU, peak memory of the tensors."""
    logs: str | None = None
    """Folder with stdout.log and stderr.log, if torchrun keeps them."""


def read_ranks(run_dir: Path) -> list[RankState]:
    """Returns the last state of each rank of a run, by rank.

    Raises:
        FileNotFoundError: the run has not started to train.
        ValueError: a file is not what a rank writes.
    """
    files = sorted((run_dir / RANKS_FOLDER).glob("*.json"), key=lambda file: int(file.stem))
    if not files:
        raise FileNotFoundError(
            f"{run_dir / RANKS_FOLDER} must hold a file per rank; there is none: no rank began to "
            "train."
        )
    return [_read_rank(file) for file in files]


def ranks_of_last_start(run_dir: Path) -> list[RankState]:
    """Returns the states of the ranks of the last start; empty if the run never started to train.

    Raises:
        ValueError: a file is not what a rank writes.
    """
    ranks = [_read_rank(file) for file in (run_dir / RANKS_FOLDER).glob("*.json")]
    last = max((rank.start for rank in ranks), default=0.0)
    return [rank for rank in ranks if rank.start == last]


def _read_rank(file: Path) -> RankState:
    """Reads a rank's state, with the step of its step file, which is newer."""
    try:
        state = RankState.model_validate_json(file.read_text())
        step_file = file.with_suffix(".step")
        content = step_file.read_text() if step_file.is_file() else ""
        if state.phase in ENDED or not content:  # empty between its opening and the first beat
            return state
        step, validates = content.split()
        return state.model_copy(update={"step": int(step), "validates": validates == "1"})
    except ValueError:
        raise ValueError(f"{file} must be the state that a rank writes; it is not.") from None


def read_stack(run_dir: Path, rank: int) -> str | None:
    """Returns the stacks of a rank that hung or crashed, innermost calls first; else None."""
    file = run_dir / RANKS_FOLDER / f"{rank}.stack"
    return file.read_text() or None if file.is_file() else None
