"""Prints the state of a run: its job, its error, its progress and its ranks.

It must start at once, so nothing here imports torch.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from msrec.launch.cluster.submitted import (
    ACTIVE_STATES,
    KUBERAY,
    Submitted,
    job_state,
    read_submitted,
)
from msrec.launch.console import duration
from msrec.launch.rank_errors import Failure, last_failure
from msrec.launch.rank_states import CRASH, ENDED, RANKS_FOLDER, RankState, read_ranks, read_stack
from msrec.launch.reporting.byte_sizes import format_bytes
from msrec.launch.training.metric_log import load_metric_log
from msrec.launch.training.run_status import CONTINUES, Status, status_of, stragglers

STACK_LINES = 12
HEADLINE_METRICS = (("train", ("loss", "auc/all")), ("valid", ("auc/all",)))
RANK_COLUMNS = (
    *("rank", "host", "pid", "phase", "step", "s/step", "own s/step", "memory"),
    "reported, s ago",
)
RESTART_S = 300.0
"""Seconds that agents wait for each other before ranks start again, see torchrun_role.py."""
FAILED_STATES = ("ended", "failed", "cancelled")
"""States of a job that has stopped without success, see `job_state`."""


def print_status(run_dir: Path, console: Console, now: float | None = None) -> Status:
    """Prints the state now, then the last error that matters, then ranks and stacks.

    An error matters if it ended the last start, or if the job has not ended since.

    Raises:
        FileNotFoundError: there is neither a job nor a rank.
    """
    now = time.time() if now is None else now
    submitted = read_submitted(run_dir)
    if submitted is None:  # started by torchx or by hand
        state, message, since = "", "", max(rank.start for rank in read_ranks(run_dir))
    else:
        (state, message), since = job_state(submitted), submitted.time
    failure = last_failure(run_dir / "logs", since)
    if submitted is not None and not _has_rank_since(run_dir, since):
        ranks: list[RankState] = []
        status = _status_without_ranks(submitted, state, failure)
    else:
        ranks = read_ranks(run_dir)
        status = _with_job_state(status_of(run_dir, now), state, now - max(r.time for r in ranks))
    _print(console, _headline(run_dir, status, ranks))
    if submitted is not None:
        job = f"{submitted.job} on {submitted.profile}, {submitted.nodes_and_ranks}"
        _print(console, f"{job}: {submitted.handle} {state}")
        if message and state not in ("running", "succeeded"):
            _print(console, f"{submitted.scheduler} reports:")
            _print_indented(console, message.splitlines()[-STACK_LINES:])
    for reason in [*status.reasons, *stragglers(ranks)]:
        _print(console, reason)
    stack = [] if failure is None else _print_failure(failure, ranks, status, console)
    if ranks:
        console.print(_ranks_table(ranks, now))
    for rank in ranks:
        _print_stack(run_dir, rank, console)
    if stack:
        _print(console, "The stack of the error:")
        _print_indented(console, stack)
    return status


def _print_failure(
    failure: Failure, ranks: Sequence[RankState], status: Status, console: Console
) -> list[str]:
    """Prints the last line of an error if it matters; returns its stack if the job failed."""
    lines = failure.message.splitlines() or [""]
    folder = f"its output is in {failure.folder}"
    began = max((rank.start for rank in ranks), default=0.0)
    if status.word in CONTINUES:
        which = "The last error, after which the ranks start again"
        which = "The job went on after an error" if failure.time < began else which
    elif status.word not in ENDED and failure.time >= began:
        which = "The error"
    else:
        return []  # the job has ended well, or its last start left no error
    _print(console, f"{which}{_rank_of(ranks, failure)} ({folder}): {lines[-1]}")
    return lines if len(lines) > 1 and status.word not in CONTINUES else []


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_indented(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        _print(console, f"  {line}")


def _print_stack(run_dir: Path, rank: RankState, console: Console) -> None:
    if (stack := read_stack(run_dir, rank.rank)) is not None:
        how = "crashed" if stack.startswith(CRASH) else "hung"
        _print(console, f"rank {rank.rank} {how} here:")
        _print_indented(console, stack.splitlines()[:STACK_LINES])


def _with_job_state(status: Status, state: str, silent_s: float) -> Status:
    """Corrects the status from the ranks' files: a rank that was killed could not write.

    Args:
        status: from the ranks' files.
        state: of the job, see `job_state`.
        silent_s: seconds since the last report of any rank.
    """
    if status.word == "failed" and state == "running" and silent_s < RESTART_S:
        return Status("restarts", status.reasons)
    if status.word in ENDED or (status.word == "failed" and state != "pending"):
        return status
    if state == "pending":
        return Status("waits", ["The job is back in the queue; the ranks' last reports are below."])
    if state in FAILED_STATES:
        reason = f"The job is {state}; its ranks were killed before they could report it."
        return Status("failed", [reason])
    return status


def _has_rank_since(run_dir: Path, since: float) -> bool:
    return any(file.stat().st_mtime >= since for file in (run_dir / RANKS_FOLDER).glob("*.json"))


def _status_without_ranks(submitted: Submitted, state: str, failure: Failure | None) -> Status:
    """Returns the status of a job of which no rank has reported."""
    is_training = submitted.job == "train"
    if state == "succeeded":
        return Status("done", [])
    if state in FAILED_STATES or (failure is not None and state not in ACTIVE_STATES):
        return Status("failed", ["No rank began to train." if is_training else "The job failed."])
    if state not in ACTIVE_STATES:
        return Status("forgotten", ["The scheduler does not know the job, and no rank reported."])
    if state != "running":
        return Status("waits", [])
    return Status("restarts" if failure else "starts" if is_training else "runs", [])


def _rank_of(ranks: Sequence[RankState], failure: Failure) -> str:
    """Returns the rank and host of an error, if that rank has reported since."""
    for rank in ranks:
        if rank.logs is not None and Path(rank.logs) == failure.folder:
            return f", of rank {rank.rank} on {rank.host}"
    return ""


def log_text(folder: Path, rank: int, stream: str) -> str:
    """Returns the output of a rank in its last attempt, see `log_file`.

    A job of KubeRay has no ranks: rank 0 is its command, and both streams are in one text.

    Raises:
        ValueError: KubeRay does not know the job, there is no output yet, or no such rank.
    """
    submitted = read_submitted(folder)
    if submitted is None or submitted.scheduler != KUBERAY:
        return log_file(folder, rank, stream).read_text()
    from torchx.runner import get_runner
    from torchx.runner.api import UnknownAppException

    with get_runner() as runner:
        try:
            return "".join(runner.log_lines(submitted.handle, submitted.job, rank))
        except UnknownAppException:
            raise ValueError(
                f"{KUBERAY} must know {submitted.handle} to print its output; it does not."
            ) from None


def log_file(run_dir: Path, rank: int, stream: str) -> Path:
    """Returns the file with a rank's output ("stdout" or "stderr") of its last attempt.

    Raises:
        FileNotFoundError: no rank began to train, or its output was not kept.
        ValueError: there is no such rank.
    """
    if not any((run_dir / RANKS_FOLDER).glob("*.json")):
        return _log_without_heartbeat(run_dir, rank, stream)
    ranks = {state.rank: state for state in read_ranks(run_dir)}
    if rank not in ranks:
        raise ValueError(f"the rank must be one of 0 to {max(ranks)}; got {rank}.")
    folder = ranks[rank].logs
    file = None if folder is None else Path(folder) / f"{stream}.log"
    if file is None or not file.is_file():
        raise FileNotFoundError(
            f"{run_dir} must have the output of rank {rank}; it has none. Only `msrec launch` "
            "keeps it, and this run was started without it."
        )
    return file


def _log_without_heartbeat(folder: Path, rank: int, stream: str) -> Path:
    """Finds the output of a rank of a job other than training, in torchrun's folders."""
    last: dict[Path, tuple[int, Path]] = {}  # agent's folder -> number and file of its last attempt
    for file in folder.glob(f"logs/*/attempt_*/{rank}/{stream}.log"):
        attempt = file.parents[1]
        number = int(attempt.name.removeprefix("attempt_"))
        last[attempt.parent] = max((number, file), last.get(attempt.parent, (-1, file)))
    submitted = read_submitted(folder)
    since = 0.0 if submitted is None else submitted.time
    files = [file for _, file in last.values() if file.stat().st_mtime >= since]
    if not files:
        raise FileNotFoundError(
            f"{folder}/logs must have the output of rank {rank}; it has none. Only `msrec launch` "
            "keeps it, from the start of the ranks on."
        )
    if len(files) > 1:
        names = "; ".join(map(str, sorted(files)))
        raise ValueError(f"each of {len(files)} nodes has a rank {rank} of its own; read {names}.")
    return files[0]


def _headline(run_dir: Path, status: Status, ranks: Sequence[RankState]) -> str:
    if not ranks:
        return f"{run_dir}: {status.word}"
    step, total = min(rank.step for rank in ranks), ranks[0].total_steps
    line = f"{run_dir}: {status.word}, step {step:,} of {total:,}"
    log = load_metric_log(run_dir)
    for split, names in HEADLINE_METRICS:
        last = {name: values[-1] for name in names if (values := log.curve(split, name)[1])}
        if last:
            line += f"; {split} {' '.join(f'{name} {value:.4f}' for name, value in last.items())}"
    if speed := log.curve("train", "rows_per_s")[1]:
        line += f"; {speed[-1]:,.0f} rows/s"
    step_s = [rank.step_s for rank in ranks if rank.step_s]
    if status.word == "trains" and step_s:
        left = duration(max(step_s) * (total - step))
        line += f"; up to {left} left without validations"
    return line


def _ranks_table(ranks: Sequence[RankState], now: float) -> Table:
    table = Table()
    for head in RANK_COLUMNS:
        table.add_column(head, justify="left" if head in ("host", "phase") else "right")
    for rank in ranks:
        seconds = ["" if s is None else f"{s:.3f}" for s in (rank.step_s, rank.own_s)]
        cells = (
            f"{rank.step:,}",
            *seconds,
            format_bytes(rank.memory),
            f"{max(now - rank.time, 0):.0f}",
        )
        table.add_row(str(rank.rank), rank.host, str(rank.pid), rank.phase, *cells)
    return table
