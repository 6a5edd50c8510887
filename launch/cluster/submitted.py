"""Record of a job's last submission, `submitted.json`, and the state of that job.

`msrec launch status` imports this file and therefore neither torch nor torchx, unless a scheduler
other than Slurm must be asked.
"""

import socket
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from msrec.data.io.atomic_files import write_text

Job = Literal["convert", "encode", "train", "evaluate", "predict"]
SUBMITTED_FILE = "submitted.json"
LOCAL = "local_cwd"
"""The scheduler whose jobs end with the process that submitted them."""
SLURM = "slurm"
KUBERAY = "kuberay"
"""The scheduler whose jobs are commands that use a Ray cluster, without ranks."""
ACTIVE_STATES = ("submitted", "pending", "running")


class Submitted(BaseModel):
    """Record of a job's last submission."""

    model_config = ConfigDict(frozen=True)

    job: Job
    profile: str
    scheduler: str
    handle: str
    """The job's name for torchx, SCHEDULER://SESSION/ID."""
    nodes_and_ranks: str
    time: float
    """Seconds since 1970."""
    pid: int
    """Process that submitted the job. A local job does not outlive it."""
    host: str = ""
    """Host of that process."""
    exit_status: int | None = None
    """Exit status of a job that was followed to its end."""

    @property
    def is_followed(self) -> bool:
        """Whether the process that submitted the job still runs, on this host."""
        try:
            started = psutil.Process(self.pid).create_time()
        except psutil.NoSuchProcess:
            return False
        # A process that began later only has the number of the one that submitted.
        return self.host in ("", socket.gethostname()) and started <= self.time

    def save(self, folder: Path) -> None:
        """Writes the record to the job's folder."""
        write_text(folder / SUBMITTED_FILE, self.model_dump_json(indent=1))


class JobState(NamedTuple):
    """State of a job in one word, and the scheduler's message about it, which may be empty."""

    word: str
    message: str = ""


def job_state(submitted: Submitted) -> JobState:
    """Returns the scheduler's state of a job; `ended` for a local one whose launcher was killed."""
    if submitted.exit_status is not None:
        return JobState("succeeded" if submitted.exit_status == 0 else "failed")
    if submitted.scheduler == LOCAL:
        return JobState("running" if submitted.is_followed else "ended")
    if submitted.scheduler == SLURM:
        from msrec.launch.cluster.schedulers.slurm_states import components_of, state_of_job

        nodes = components_of(submitted.handle.rpartition("/")[2])
        return JobState(state_of_job([node.state for node in nodes]) if nodes else "forgotten")
    from torchx.runner import get_runner

    with get_runner() as runner:
        status = runner.status(submitted.handle)
    if status is None:
        return JobState("forgotten")
    return JobState(status.state.name.lower(), status.msg)


def read_submitted(folder: Path) -> Submitted | None:
    """Reads the last submission of a job; None if it was not started by `msrec launch`.

    Raises:
        ValueError: the file is not a record of `msrec launch`.
    """
    file = folder / SUBMITTED_FILE
    if not file.is_file():
        return None
    try:
        return Submitted.model_validate_json(file.read_text())
    except ValidationError:
        raise ValueError(f"{file} must be what `msrec launch` writes; it is not.") from None
