"""Refuses to start a run whose last starts failed at the same step; records the step's rows."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from msrec.data.io.atomic_files import write_text
from msrec.data.loading.loader import Loader
from msrec.launch.rank_errors import NO_RESTART
from msrec.launch.rank_states import ENDED, RankState, ranks_of_last_start, read_stack
from msrec.launch.training.heartbeat import oom_kills
from msrec.model.distributed.collectives import from_rank_0

FAILED_STEP_FILE = "failed_step.json"
MAX_FAILURES = 2
"""Consecutive starts that may fail at the same step."""
BATCHES_IN_FLIGHT = 3
"""Batches that the pipeline holds while a step runs: the step's own, and the two after it."""
MAX_SHOWN = 3
"""Files, and rows of each, that the error message names."""


class RepeatedFailure(ValueError):
    """The last starts failed at the same step."""

    exit_status = NO_RESTART


class FailedStep(BaseModel):
    """The step at which the last start failed.

    Attributes:
        start: of the ranks, see `RankState.start`.
        step: number of the step, from 1; with `validates`, the last one before the validation.
        validates: whether it failed in a validation.
        times: consecutive starts that failed there.
        rows: step -> file -> row numbers in the file, for each batch in flight.
    """

    model_config = ConfigDict(frozen=True)

    start: float
    step: int
    validates: bool
    times: int = 1
    rows: Mapping[str, Mapping[str, list[int]]] = {}

    @property
    def position(self) -> tuple[int, bool]:
        """Step and kind of the failure."""
        return self.step, self.validates


def check_last_start(run_dir: Path, train: Loader, config: str) -> float:
    """Checks how the start before this one ended; every rank calls this.

    A start failed if a rank raised an error, hung, crashed, or was killed for memory. A start that
    was killed from outside says nothing about its step and does not count. A start that was stopped
    by SIGTERM or reached its end did not fail. Failures with another config are forgotten.

    Args:
        run_dir: of the run.
        train: the training rows.
        config: hash of the run's config, see `RankState`.

    Returns:
        Seconds since 1970, which identify this start; the same on all ranks.

    Raises:
        RepeatedFailure: the last two starts failed at the same step, or a file of the run folder is
            not what a rank or this module writes; raised on all ranks.
    """

    def checked() -> float:
        try:
            _check(run_dir, train, config)
        except ValueError as error:
            raise RepeatedFailure(str(error)) from None
        return time.time()

    return from_rank_0(checked)


def forget_failures(run_dir: Path) -> None:
    """Deletes the record of failures."""
    (run_dir / FAILED_STEP_FILE).unlink(missing_ok=True)


def _check(run_dir: Path, train: Loader, config: str) -> None:
    recorded = _read(run_dir / FAILED_STEP_FILE)
    ranks = ranks_of_last_start(run_dir)
    if not ranks or any(rank.phase in ENDED or rank.config != config for rank in ranks):
        forget_failures(run_dir)
        return
    if not any(_is_failure(run_dir, rank) for rank in ranks):
        return  # killed from outside
    failed = _failed_step(ranks)
    if recorded is None or recorded.start != failed.start:  # not counted yet
        before = 0
        if recorded is not None and recorded.position == failed.position:
            before = recorded.times
        rows = {} if failed.validates else _rows_in_flight(train, failed.step)
        recorded = failed.model_copy(update={"rows": rows, "times": before + 1})
        write_text(run_dir / FAILED_STEP_FILE, recorded.model_dump_json(indent=1))
    if recorded.times >= MAX_FAILURES:
        raise ValueError(_message(run_dir, recorded, len(train)))


def _is_failure(run_dir: Path, rank: RankState) -> bool:
    """Returns whether a rank ended by a fault of the run; it did not end as it should."""
    if rank.fault or read_stack(run_dir, rank.rank) is not None:
        return True
    # The kernel's SIGKILL for memory looks like any other, but it is counted.
    is_killed = rank.phase != "failed"
    return is_killed and rank.host == socket.gethostname() and oom_kills() > rank.oom_kills


def _failed_step(ranks: list[RankState]) -> FailedStep:
    """Returns where a start failed."""
    # Every step needs all ranks, so the run stopped where the last rank is.
    last = min(ranks, key=lambda rank: (rank.step, rank.validates))
    step = last.step if last.validates else last.step + 1
    return FailedStep(start=last.start, step=step, validates=last.validates)


def _rows_in_flight(train: Loader, step: int) -> dict[str, dict[str, list[int]]]:
    epoch, batch = divmod(step - 1, len(train))
    rows_of_step = {}
    for ahead in range(min(BATCHES_IN_FLIGHT, len(train) - batch)):
        window, number = divmod(batch + ahead, train.order.window_batches)
        rows = train.order.rows(epoch, window)[number]
        rows_of_step[str(step + ahead)] = train.reader.file_rows(np.sort(rows[rows >= 0]))
    return rows_of_step


def _message(run_dir: Path, failed: FailedStep, epoch_steps: int) -> str:
    if failed.validates:
        where, rows = f"the validation after step {failed.step:,}", ""
    else:
        epoch, batch = divmod(failed.step - 1, epoch_steps)
        where = f"step {failed.step:,} (batch {batch} of epoch {epoch})"
        files = failed.rows.get(str(failed.step), {})
        examples = "; ".join(
            f"{file} rows {', '.join(map(str, numbers[:MAX_SHOWN]))}"
            + ", ..." * (len(numbers) > MAX_SHOWN)
            for file, numbers in list(files.items())[:MAX_SHOWN]
        )
        rows = (
            f" Its batch has {sum(map(len, files.values())):,} rows: {examples}. "
            f"{FAILED_STEP_FILE} lists all of them, and those of the next batches, which the ranks "
            "already held."
        )
    return (
        f"{run_dir} must get past {where}, where its last {failed.times} starts failed; it is not "
        f"started again.{rows} `msrec launch status {run_dir}` shows the error. When its cause is "
        f"gone, change the config (faults=skip, a lower rate), or delete "
        f"{run_dir / FAILED_STEP_FILE} to go on (other data, more memory)."
    )


def _read(file: Path) -> FailedStep | None:
    if not file.is_file():
        return None
    try:
        return FailedStep.model_validate_json(file.read_text())
    except ValueError:
        raise ValueError(f"{file} must be the record of a failed step; delete it.") from None
