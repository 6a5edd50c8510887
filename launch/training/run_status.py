"""Status of a run from the heartbeats of its ranks: training, ended, failed or silent."""

import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from msrec.launch.rank_states import CRASH, ENDED, RankState, read_ranks, read_stack

CONTINUES = ("waits", "starts", "runs", "trains", "restarts")
"""Words of a job that has not ended and has no known problem."""
SILENT_S = 60.0
"""Seconds without a report after which a rank counts as silent."""
SLOW_FACTOR, SLOW_STEP_SHARE = 2.0, 0.1
"""A rank is slow if its own time per step is more than `SLOW_FACTOR` times the median of the other
ranks, and exceeds it by more than `SLOW_STEP_SHARE` of the step."""


@dataclass(frozen=True)
class Status:
    """Status of a run.

    Attributes:
        word: `waits`, `starts`, `runs` (a job other than training), `trains`, `restarts`, `done`,
            `stopped` (by SIGTERM), `failed`, `silent` or `forgotten` (by the scheduler).
        reasons: one sentence per problem.
    """

    word: str
    reasons: list[str]

    @property
    def exit_status(self) -> int:
        """0 if nothing is wrong, 1 otherwise."""
        return 0 if self.word in (*CONTINUES, *ENDED) else 1


def status_of(run_dir: Path, now: float | None = None) -> Status:
    """Returns the status of a run from the last states of its ranks.

    Args:
        run_dir: of the run.
        now: seconds since 1970; None is the current time.

    Raises:
        FileNotFoundError, ValueError: as `read_ranks`.
    """
    ranks = read_ranks(run_dir)
    reasons = list(_problems(run_dir, ranks, time.time() if now is None else now))
    phases = {rank.phase for rank in ranks}
    if "failed" in phases:
        return Status("failed", reasons)
    for word in ENDED:
        if phases == {word}:
            return Status(word, reasons)
    return Status("silent" if reasons else "trains", reasons)


def stragglers(ranks: Sequence[RankState]) -> list[str]:
    """Returns a sentence for each slow rank.

    All ranks take the same time for a step, because each waits for the others. So ranks are
    compared by their own time, without that wait.
    """
    sentences = []
    for rank in ranks:
        others = [other.own_s for other in ranks if other is not rank and other.own_s is not None]
        if rank.own_s is None or rank.step_s is None or not others:
            continue
        median = statistics.median(others)
        excess = rank.own_s - median
        if rank.own_s > SLOW_FACTOR * median and excess > SLOW_STEP_SHARE * rank.step_s:
            sentences.append(
                f"rank {rank.rank} on {rank.host} is slow: its own work takes {rank.own_s:.3g} s "
                f"per step, that of the other ranks, which wait for it, {median:.3g} s (median)."
            )
    return sentences


def _problems(run_dir: Path, ranks: Sequence[RankState], now: float) -> Iterator[str]:
    here = socket.gethostname()
    for rank in sorted(ranks, key=lambda rank: (rank.step, rank.time)):  # first silent, first shown
        name = f"rank {rank.rank} on {rank.host}"
        silent_s = now - rank.time
        if rank.phase == "failed":
            yield f"{name} failed after step {rank.step:,}."
        elif rank.phase in ENDED:
            continue
        elif (stack := read_stack(run_dir, rank.rank)) is not None:
            how = "crashed" if stack.startswith(CRASH) else "hung"
            yield f"{name} {how} after step {rank.step:,} and was ended; its stack is below."
        elif rank.host == here and not psutil.pid_exists(rank.pid):
            yield f"{name} is dead: no process {rank.pid}, no report after step {rank.step:,}."
        elif silent_s > SILENT_S:
            yield f"{name} has not reported for {silent_s:.0f} s, since step {rank.step:,}."
