"""A run that failed twice at the same step is not started a third time; which step, which rows."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, ValidationError

from msrec.data.io.atomic_files import write_text
from msrec.data.loading.loader import Loader
from msrec.launch.rank_errors import NO_RESTART
from msrec.launch.training.heartbeat import ENDED, RankState, ranks_of_last_start

FILE = "failed_step.json"
MOST = 2
"""Starts that may fail at the same step, one after the other."""
IN_HAND = 3
"""Batches that the pipeline holds while a step runs: its own, and the two after it."""
SHOWN = 3


class RepeatedFailure(ValueError):
    """The last starts failed at the same step."""

    exit_status = NO_RESTART


class FailedStep(BaseModel):
    """Where the last start failed that did not reach its end.

    Attributes:
        start: which one, see `RankState.start`.
        step: the one that it was at, from 1; with `validates`, the last one before the validation.
        times: starts, one after the other, that failed there.
        rows: step -> file -> rows of the file, of the batches that the ranks had in hand.
    """

    model_config = ConfigDict(frozen=True)

    start: float
    step: int
    validates: bool
    times: int = 1
    rows: Mapping[str, Mapping[str, list[int]]] = {}


def begin(run_dir: Path, train: Loader) -> float:
    """Look at how the start before this one ended; every rank calls this.

    What counts is the step, whether a rank raised an error, hung or was killed; a start that
    was asked to stop or came to its end does not count.

    Returns:
        A number for this start, the same on all ranks.

    Raises:
        RepeatedFailure: the last two starts failed at the same step; all ranks raise it.
        ValueError: a file in the run's folder is not what a rank or this module writes.
    """
    told: list[str | float] = [0.0]
    if dist.get_rank() == 0:
        try:
            told = [_refusal(run_dir, train) or time.time()]
        except ValueError as error:
            told = [str(error)]
    dist.broadcast_object_list(told, src=0)
    if isinstance(told[0], str):
        raise RepeatedFailure(told[0])
    return told[0]


def forget(run_dir: Path) -> None:
    """The failures so far were no fault of the run."""
    (run_dir / FILE).unlink(missing_ok=True)


def _refusal(run_dir: Path, train: Loader) -> str | None:
    before = _read(run_dir / FILE)
    found = _failed(ranks_of_last_start(run_dir))
    if found is None:
        forget(run_dir)
        return None
    if before is not None and before.start == found.start:
        found = before  # this one was counted when it was found
    else:
        same = before is not None and _place(before) == _place(found)
        rows = {} if found.validates else _rows_in_hand(train, found.step)
        times = before.times + 1 if before is not None and same else 1
        found = found.model_copy(update={"rows": rows, "times": times})
        write_text(run_dir / FILE, found.model_dump_json(indent=1))
    return None if found.times < MOST else _sentence(run_dir, found, len(train))


def _failed(ranks: list[RankState]) -> FailedStep | None:
    """Where a start failed; None where it did not, or where there is none."""
    if not ranks or any(rank.phase in ENDED for rank in ranks):
        return None
    # All ranks need each other in every step: the one that is behind is where it stopped.
    behind = min(ranks, key=lambda rank: (rank.step, rank.validates))
    step = behind.step if behind.validates else behind.step + 1
    return FailedStep(start=behind.start, step=step, validates=behind.validates)


def _place(failed: FailedStep) -> tuple[int, bool]:
    return failed.step, failed.validates


def _rows_in_hand(train: Loader, step: int) -> dict[str, dict[str, list[int]]]:
    epoch, batch = divmod(step - 1, len(train))
    found = {}
    for ahead in range(min(IN_HAND, len(train) - batch)):
        window, place = divmod(batch + ahead, train.order.window_batches)
        rows = train.order.rows(epoch, window)[place]
        found[str(step + ahead)] = train.reader.file_rows(np.sort(rows[rows >= 0]))
    return found


def _sentence(run_dir: Path, failed: FailedStep, steps_an_epoch: int) -> str:
    if failed.validates:
        where = f"the validation after step {failed.step:,}"
        rows = ""
    else:
        epoch, batch = divmod(failed.step - 1, steps_an_epoch)
        where = f"step {failed.step:,} (batch {batch} of epoch {epoch})"
        files = failed.rows.get(str(failed.step), {})
        count = sum(map(len, files.values()))
        some = "; ".join(
            f"{file} rows {', '.join(map(str, rows[:SHOWN]))}{', ...' * (len(rows) > SHOWN)}"
            for file, rows in list(files.items())[:SHOWN]
        )
        rows = (
            f" The {count:,} rows of its batch are in {FILE}, beside those of the batches that "
            f"were in hand: {some}."
        )
    return (
        f"{run_dir} must get past {where}, where its last {failed.times} starts failed; it is not "
        f"started again.{rows} `msrec launch status {run_dir}` tells the error. When its cause is "
        f"gone (other data, faults=skip, a lower rate, more memory), delete {run_dir / FILE} to go "
        "on."
    )


def _read(file: Path) -> FailedStep | None:
    if not file.is_file():
        return None
    try:
        return FailedStep.model_validate(json.loads(file.read_text()))
    except (ValidationError, ValueError):
        raise ValueError(f"{file} must be what a run writes of its failures; delete it.") from None
