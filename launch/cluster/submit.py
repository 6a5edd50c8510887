"""Submits a job with a site profile and cancels it; the job's folder keeps `submitted.json`."""

import os
import signal
import socket
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from torchx.runner import Runner, get_runner
from torchx.schedulers.api import Stream
from torchx.schedulers.local_scheduler import SignalException
from torchx.specs import AppDef, AppDryRunInfo, AppState, InvalidRunConfigException
from torchx.specs.finder import ComponentValidationException

from msrec.data.io.atomic_files import write_text
from msrec.launch.cluster.job_specs import Job, JobSpec
from msrec.launch.cluster.profiles import Profile, Target
from msrec.launch.cluster.torchrun_role import torchrun_app

SUBMITTED_FILE = "submitted.json"
LOCAL = "local_cwd"
"""The scheduler whose jobs end with the process that submitted them."""
ACTIVE_STATES = ("submitted", "pending", "running")
CLIENT_LIBRARIES = {"kubernetes": "kubernetes", "aws_batch": "boto3", "ray": "ray"}
"""Scheduler -> the client library it needs. The extra of msrec has the scheduler's name."""


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


def submit(
    spec: JobSpec, target: Target, console: Console, *, dry_run: bool = False, wait: bool = False
) -> int:
    """Submits a job and follows a local one to its end.

    Args:
        spec: the job.
        target: profile, nodes and ranks.
        console: console for messages and the output of a local job.
        dry_run: print what would be submitted and stop.
        wait: follow jobs of other schedulers to their end too.

    Returns:
        The exit status: 1 if a job that was followed did not succeed.

    Raises:
        ValueError: a library is missing, or the scheduler refuses the job.
    """
    profile = target.profile
    _require_client_library(target)
    if spec.config is not None:
        profile.refuse_relative_paths(spec.config)
    with get_runner() as runner:
        info = _dry_run(runner, torchx_app(spec, target), profile)
        if dry_run:
            console.print(str(info), markup=False, highlight=False, soft_wrap=True)
            return 0
        _refuse_second(spec.folder)
        spec.prepare()
        submitted = Submitted(
            job=spec.job,
            profile=target.name,
            scheduler=profile.scheduler,
            handle=runner.schedule(info),
            nodes_and_ranks=target.nodes_and_ranks,
            time=time.time(),
            pid=os.getpid(),
            host=socket.gethostname(),
        )
        submitted.save(spec.folder)
        message = f"submitted {submitted.handle}: msrec launch status {spec.folder}"
        console.print(message, highlight=False, soft_wrap=True)
        if profile.scheduler != LOCAL and not wait:
            return 0
        exit_status = _follow(runner, submitted, console)
        submitted.model_copy(update={"exit_status": exit_status}).save(spec.folder)
        return exit_status


def torchx_app(spec: JobSpec, target: Target) -> AppDef:
    """Returns the torchx app of a job; the ranks' output goes to `logs` in the job's folder."""
    log_dir = str((spec.folder / "logs").absolute())
    options = target.profile.launch_options(target.nodes_and_ranks)
    return torchrun_app(spec.job, list(spec.args), options, log_dir)


def _require_client_library(target: Target) -> None:
    scheduler = target.profile.scheduler
    library = CLIENT_LIBRARIES.get(scheduler, "torchx")
    if find_spec(library) is None:
        raise ValueError(
            f"--on {target.name} needs the library {library}, which is not installed: pip install "
            f'"msrec[{scheduler}]"'
        )


def _dry_run(runner: Runner, app: AppDef, profile: Profile) -> AppDryRunInfo[Any]:
    cfg = profile.scheduler_options(runner.scheduler_run_opts(profile.scheduler))
    with TemporaryDirectory() as empty:
        # Ray requires a folder of code for the cluster. msrec is already installed there.
        workspace = empty if profile.scheduler == "ray" else None
        try:
            return runner.dryrun(app, profile.scheduler, cfg, workspace)
        except (InvalidRunConfigException, ComponentValidationException) as error:
            raise ValueError(str(error)) from None


def _follow(runner: Runner, submitted: Submitted, console: Console) -> int:
    """Waits for the end of a job; returns its exit status."""
    handle, job = submitted.handle, submitted.job
    try:
        if submitted.scheduler == LOCAL:
            # Prints the output of the first node until the job ends.
            for line in runner.log_lines(handle, job, 0, should_tail=True, streams=Stream.COMBINED):
                console.print(line.rstrip("\n"), markup=False, highlight=False, soft_wrap=True)
        status = runner.wait(handle, wait_interval=1)
    except SignalException as stopped:
        message = f"{stopped.sigval.name}: the ranks save a checkpoint and stop"
        console.print(message, highlight=False)
        return int(128 + stopped.sigval)  # closing the runner waits for the ranks
    state = "unknown" if status is None else status.state.name
    console.print(f"{handle}: {state}", highlight=False, soft_wrap=True)
    return 0 if status is not None and status.state == AppState.SUCCEEDED else 1


def _refuse_second(folder: Path) -> None:
    """Refuses a job whose last submission still waits or runs.

    Raises:
        ValueError: it does; names its handle.
    """
    earlier = read_submitted(folder)
    if earlier is not None and (state := job_state(earlier)) in ACTIVE_STATES:
        raise ValueError(
            f"{folder} must have one job at a time; {earlier.handle} is {state}. Wait for its end, "
            f"or stop it: msrec launch cancel {folder}"
        )


def job_state(submitted: Submitted) -> str:
    """Returns the scheduler's state of a job; `ended` for a local one whose launcher was killed."""
    if submitted.exit_status is not None:
        return "succeeded" if submitted.exit_status == 0 else "failed"
    if submitted.scheduler == LOCAL:
        return "running" if submitted.is_followed else "ended"
    with get_runner() as runner:
        status = runner.status(submitted.handle)
    return "forgotten" if status is None else status.state.name.lower()


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


def cancel(folder: Path) -> str:
    """Stops a job with SIGTERM, so that it saves a checkpoint first.

    Returns:
        A sentence on what was done.

    Raises:
        ValueError: the job was not submitted by `msrec launch`, or no longer runs.
    """
    submitted = read_submitted(folder)
    if submitted is None:
        raise ValueError(f"{folder} must have been submitted by `msrec launch`; it was not.")
    if submitted.scheduler == LOCAL:
        if not submitted.is_followed:
            raise ValueError(
                f"{folder} must run on this host to be cancelled; process {submitted.pid} of "
                f"{submitted.host or 'this host'} is gone or elsewhere."
            )
        os.kill(submitted.pid, signal.SIGTERM)
        return f"asked process {submitted.pid} to stop: msrec launch status {folder}"
    with get_runner() as runner:
        if runner.status(submitted.handle) is None:
            raise ValueError(
                f"{submitted.scheduler} must know {submitted.handle} to cancel it; it does not."
            )
        runner.cancel(submitted.handle)
    return f"cancelled {submitted.handle}"
