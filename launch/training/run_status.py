"""State of a run, from the heartbeats of its ranks: running, finished, failed or silent."""

import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from msrec.launch.training.heartbeat import ENDED, RankState, read_ranks, read_stack

SILENT_S = 60.0
"""A rank that trains and has said nothing for so long is told of."""
SLOW, SLOW_SHARE = 2.0, 0.1
"""A rank is slow whose own time of a step is so many times that of the other ranks (the median),
and more than theirs by this share of the step."""


@dataclass(frozen=True)
class Status:
    """How a run is.

    Attributes:
        word: one for all: `waits`, `starts`, `trains`, `done`, `stopped` (by SIGTERM), `failed`,
            `silent`.
        reasons: sentences on whatever is not as it should be.
    """

    word: str
    reasons: list[str]

    @property
    def exit_status(self) -> int:
        """0 where nothing is wrong."""
        return 0 if self.word in ("trains", "waits", "starts", *ENDED) else 1


def status_of(run_dir: Path, now: float | None = None) -> Status:
    """Read what the ranks said.

    Args:
        run_dir: of the run.
        now: seconds since 1970; None is this moment.

    Raises:
        FileNotFoundError, ValueError: as `read_ranks`.
    """
    ranks = read_ranks(run_dir)
    reasons = list(_reasons(run_dir, ranks, time.time() if now is None else now))
    phases = {rank.phase for rank in ranks}
    if "failed" in phases:
        return Status("failed", reasons)
    for word in ENDED:
        if phases == {word}:
            return Status(word, reasons)
    return Status("silent" if reasons else "trains", reasons)


def stragglers(ranks: Sequence[RankState]) -> list[str]:
    """A sentence on each rank for which the others wait.

    Steps are in lockstep, so that all ranks take the same time; what a rank spends without waiting
    for others is its own.
    """
    found = []
    for rank in ranks:
        others = [each.own_s for each in ranks if each is not rank and each.own_s is not None]
        if rank.own_s is None or rank.step_s is None or not others:
            continue
        usual = statistics.median(others)
        if rank.own_s > SLOW * usual and rank.own_s - usual > SLOW_SHARE * rank.step_s:
            found.append(
                f"rank {rank.rank} on {rank.host} is slow: it takes {rank.own_s:.3g} s a step of "
                f"its own, the others {usual:.3g} s (median) and wait for it."
            )
    return found


def _reasons(run_dir: Path, ranks: Sequence[RankState], now: float) -> Iterator[str]:
    here = socket.gethostname()
    for rank in sorted(ranks, key=lambda rank: (rank.step, rank.time)):  # the first to fall silent
        where = f"rank {rank.rank} on {rank.host}"
        if rank.phase == "failed":
            yield f"{where} failed after step {rank.step:,}."
        elif rank.phase in ENDED:
            continue
        elif read_stack(run_dir, rank.rank) is not None:
            yield f"{where} hung after step {rank.step:,} and was ended; its stack is below."
        elif rank.host == here and not psutil.pid_exists(rank.pid):
            yield f"{where} is dead: no process {rank.pid}, no word after step {rank.step:,}."
        elif now - rank.time > SILENT_S:
            yield f"{where} has said nothing for {now - rank.time:.0f} s, since step {rank.step:,}."
