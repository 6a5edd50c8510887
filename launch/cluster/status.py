"""How a run is: what its ranks said last, who is behind, how long it will take."""

import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from msrec.launch.cluster.submit import LOCAL, Submitted, read_submitted, scheduler_status
from msrec.launch.rank_errors import Failure, first_failure
from msrec.launch.reporting.plan_table import format_bytes
from msrec.launch.training.heartbeat import (
    RANKS_FOLDER,
    RankState,
    ranks_of_last_start,
    read_ranks,
    read_stack,
)
from msrec.launch.training.metric_log import load_metric_log
from msrec.launch.training.run_status import Status, status_of, stragglers

STACK_LINES = 12


def tell_status(run_dir: Path, console: Console, now: float | None = None) -> Status:
    """Print it: one line of the run, one of each rank, then what is wrong."""
    submitted = read_submitted(run_dir)
    word = ""
    if submitted is not None:
        word = _scheduler_word(submitted)
        job = _of_job(run_dir, submitted, word, console)
        if job is not None:
            return job
    found = _with_scheduler(status_of(run_dir, now), word)
    ranks = read_ranks(run_dir)
    if submitted is None:  # by torchx itself
        _tell_failure(run_dir, max(rank.start for rank in ranks), console)
    console.print(_headline(run_dir, found, ranks), highlight=False, soft_wrap=True)
    console.print(_ranks_table(ranks, time.time() if now is None else now))
    for reason in [*found.reasons, *stragglers(ranks)]:
        console.print(reason, highlight=False, soft_wrap=True)
    for rank in ranks:
        if (stack := read_stack(run_dir, rank.rank)) is not None:
            console.print(f"rank {rank.rank} hung here:", highlight=False)
            for line in stack.splitlines()[:STACK_LINES]:
                console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    return found


def _scheduler_word(submitted: Submitted) -> str:
    """What the scheduler says of a job; `ended` of a local one whose launcher was killed."""
    if submitted.exit_status is not None:
        return "succeeded" if submitted.exit_status == 0 else "failed"
    if submitted.scheduler == LOCAL:
        return "running" if psutil.pid_exists(submitted.pid) else "ended"
    state = scheduler_status(submitted)
    return "forgotten" if state is None else state.state.name.lower()


def _with_scheduler(found: Status, word: str) -> Status:
    """What ranks said, where the scheduler knows better: those that were killed say nothing."""
    if found.word not in ("trains", "silent"):
        return found
    if word == "pending":
        return Status("waits", ["It was put back into the queue; the ranks' last words are above."])
    if word in ("ended", "failed", "cancelled"):
        return Status(
            "failed", [f"The job is {word}; its ranks were killed before they could say."]
        )
    return found


def _of_job(run_dir: Path, submitted: Submitted, word: str, console: Console) -> Status | None:
    """Print what a scheduler says; the status if no rank of that submission has said anything."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    on = f"{submitted.job} on {submitted.profile}, {submitted.nodes_and_ranks}"
    say(f"{on}: {submitted.handle} {word}")
    failure = _tell_failure(run_dir, submitted.time, console)
    since = [file.stat().st_mtime for file in (run_dir / RANKS_FOLDER).glob("*.json")]
    if max(since, default=0.0) >= submitted.time:
        return None
    if word == "succeeded":
        return Status("done", [])
    if failure is not None or word in ("ended", "failed", "cancelled"):
        reason = "No rank began to train." if submitted.job == "train" else "It did not succeed."
        say(reason)
        return Status("failed", [reason])
    return Status("waits" if word in ("pending", "submitted") else "starts", [])


def _tell_failure(run_dir: Path, since: float, console: Console) -> Failure | None:
    """Print the first error since a time, if there is one."""
    failure = first_failure(run_dir / "logs", since)
    if failure is not None:
        head = f"The first error{_whose(run_dir, failure)} output is in {failure.folder}:"
        lines = [head, *(f"  {line}" for line in failure.message.splitlines())]
        console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return failure


def _whose(run_dir: Path, failure: Failure) -> str:
    """Rank and host of an error, where that rank has said something since."""
    for rank in ranks_of_last_start(run_dir):
        if rank.logs is not None and Path(rank.logs) == failure.folder:
            return f" is of rank {rank.rank} on {rank.host}, its"
    return ", its rank's"


def log_file(run_dir: Path, rank: int, stream: str) -> Path:
    """What a rank writes in its last attempt.

    Raises:
        FileNotFoundError: no rank began to train, or its output is not kept.
        ValueError: there is no such rank.
    """
    ranks = {each.rank: each for each in read_ranks(run_dir)}
    if rank not in ranks:
        raise ValueError(f"the rank must be one of 0 to {max(ranks)}; got {rank}.")
    folder = ranks[rank].logs
    file = None if folder is None else Path(folder) / f"{stream}.log"
    if file is None or not file.is_file():
        raise FileNotFoundError(
            f"{run_dir}: the output of rank {rank} must be kept to be shown; `msrec launch` keeps "
            "it, this run was started otherwise."
        )
    return file


def _headline(run_dir: Path, found: Status, ranks: Sequence[RankState]) -> str:
    step, total = min(rank.step for rank in ranks), ranks[0].total_steps
    line = f"{run_dir}: {found.word}, step {step:,} of {total:,}"
    log = load_metric_log(run_dir)
    for split, names in (("train", ("loss", "auc/all")), ("valid", ("auc/all",))):
        last = {name: values[-1] for name in names if (values := log.curve(split, name)[1])}
        if last:
            line += f"; {split} {' '.join(f'{name} {value:.4f}' for name, value in last.items())}"
    if speed := log.curve("train", "rows_per_s")[1]:
        line += f"; {speed[-1]:,.0f} rows/s"
    speeds = [rank.step_s for rank in ranks if rank.step_s]
    if found.word == "trains" and speeds:
        line += f"; up to {max(speeds) * (total - step) / 60:.1f} min left without validations"
    return line


def _ranks_table(ranks: Sequence[RankState], now: float) -> Table:
    table = Table()
    heads = ("rank", "host", "pid", "it", "step", "s a step", "own", "memory", "said so, s ago")
    for head in heads:
        table.add_column(head, justify="left" if head in ("host", "it") else "right")
    for rank in ranks:
        speeds = ["" if s is None else f"{s:.3f}" for s in (rank.step_s, rank.own_s)]
        age_s = max(now - rank.time, 0)
        cells = (f"{rank.step:,}", *speeds, format_bytes(rank.memory), f"{age_s:.0f}")
        table.add_row(str(rank.rank), rank.host, str(rank.pid), rank.phase, *cells)
    return table
