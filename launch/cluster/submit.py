"""Submit a job by a site profile; the job's folder keeps what was submitted and where it runs."""

import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from torchx.components.dist import parse_nnodes
from torchx.runner import Runner, get_runner
from torchx.schedulers.api import Stream
from torchx.schedulers.local_scheduler import SignalException
from torchx.specs import AppDef, AppDryRunInfo, AppState, AppStatus, InvalidRunConfigException
from torchx.specs.finder import ComponentValidationException

from msrec.data.io.atomic_files import write_text
from msrec.launch.cluster.job_specs import Job, JobSpec
from msrec.launch.cluster.profiles import Profile
from msrec.launch.cluster.torchrun_role import torchrun_app

SUBMITTED = "submitted.json"
LOCAL = "local_cwd"
"""The scheduler whose jobs live as long as the process that submitted them."""


NEEDS = {
    "kubernetes": "kubernetes",
    "aws_batch": "boto3",
    "ray": "ray",
}
"""Scheduler -> the library it is a client of, which the extra of that name brings."""


class Submitted(BaseModel):
    """What a job's folder keeps of its last submission."""

    model_config = ConfigDict(frozen=True)

    job: Job
    profile: str
    scheduler: str
    handle: str
    nodes_and_ranks: str
    time: float
    pid: int
    """Of the process that submitted it, which a local job does not outlive."""
    exit_status: int | None = None
    """Of a job that was followed to its end."""


def app_of(work: JobSpec, profile: Profile, j: str) -> AppDef:
    """The torchx app.

    Raises:
        ValueError: `j` is not nodes x ranks.
    """
    try:
        parse_nnodes(j)
    except ValueError:
        raise ValueError(f"-j must be nodes x ranks per node, such as 2x8; got {j!r}.") from None
    return torchrun_app(
        work.job,
        list(work.args),
        j=j,
        image=profile.image,
        resource=profile.node,
        max_restarts=profile.max_restarts,
        max_retries=profile.max_retries,
        port=profile.port,
        python=profile.python,
        log_dir=str((work.folder / "logs").absolute()),
    )


def launch(
    work: JobSpec,
    profile: tuple[str, Profile],
    j: str,
    console: Console,
    *,
    dry_run: bool = False,
    wait: bool = False,
) -> int:
    """Submit a job; a local one is followed to its end.

    Args:
        work: what to do.
        profile: name and values.
        j: nodes x ranks per node.
        console: where to print.
        dry_run: print what would be submitted and stop.
        wait: also for jobs of a scheduler.

    Returns:
        The exit status: 1 where a job that was followed did not succeed.

    Raises:
        ValueError: a library is missing, or the scheduler refuses the job.
    """
    name, values = profile
    library = NEEDS.get(values.scheduler, "torchx")
    if find_spec(library) is None:
        raise ValueError(
            f"--on {name} needs the library {library}, which is not installed: pip install "
            f'"msrec[{values.scheduler}]"'
        )
    if work.config is not None:
        values.refuse_relative_paths(work.config)
    app = app_of(work, values, j)
    with get_runner() as runner:
        info = _dry_run(runner, app, values)
        if dry_run:
            console.print(str(info), markup=False, highlight=False, soft_wrap=True)
            return 0
        work.prepare()
        handle = runner.schedule(info)
        submitted = Submitted(
            job=work.job,
            profile=name,
            scheduler=values.scheduler,
            handle=handle,
            nodes_and_ranks=j,
            time=time.time(),
            pid=os.getpid(),
        )
        _keep(submitted, work.folder)
        console.print(
            f"submitted {handle}: msrec launch status {work.folder}",
            highlight=False,
            soft_wrap=True,
        )
        if values.scheduler != LOCAL and not wait:
            return 0
        try:
            ended = _followed(runner, handle, work.job, values.scheduler, console)
        except SignalException as stopped:
            said = f"{stopped.sigval.name}: the ranks save where they stand, and stop"
            console.print(said, highlight=False)
            ended = int(128 + stopped.sigval)  # closing the runner waits for them
        _keep(submitted.model_copy(update={"exit_status": ended}), work.folder)
        return ended


def _keep(submitted: Submitted, folder: Path) -> None:
    write_text(folder / SUBMITTED, submitted.model_dump_json(indent=1))


def _dry_run(runner: Runner, app: AppDef, profile: Profile) -> AppDryRunInfo[Any]:
    profile.refuse_unknown_options(runner.scheduler_run_opts(profile.scheduler))
    with TemporaryDirectory() as empty:
        # Ray wants a folder of code to send to the cluster, where msrec is installed already.
        workspace = empty if profile.scheduler == "ray" else None
        try:
            return runner.dryrun(app, profile.scheduler, profile.cfg, workspace)
        except (InvalidRunConfigException, ComponentValidationException) as error:
            raise ValueError(str(error)) from None


def _followed(runner: Runner, handle: str, job: Job, scheduler: str, console: Console) -> int:
    if scheduler == LOCAL:
        # To the end of the job: what its first node writes.
        for line in runner.log_lines(handle, job, 0, should_tail=True, streams=Stream.COMBINED):
            console.print(line.rstrip("\n"), markup=False, highlight=False, soft_wrap=True)
    status = runner.wait(handle, wait_interval=1)
    word = "unknown" if status is None else status.state.name
    console.print(f"{handle}: {word}", highlight=False, soft_wrap=True)
    return 0 if status is not None and status.state == AppState.SUCCEEDED else 1


def read_submitted(run_dir: Path) -> Submitted | None:
    """The last submission of a run; None where it was started by hand.

    Raises:
        ValueError: the file is not what `launch` writes.
    """
    file = run_dir / SUBMITTED
    if not file.is_file():
        return None
    try:
        return Submitted.model_validate_json(file.read_text())
    except ValidationError:
        raise ValueError(f"{file} must be what `msrec launch` writes; it is not.") from None


def scheduler_status(submitted: Submitted) -> AppStatus | None:
    """What the scheduler says of a job that is not local; None where it knows it no more."""
    with get_runner() as runner:
        return runner.status(submitted.handle)


def cancel(run_dir: Path) -> str:
    """End a run's job: SIGTERM, upon which it saves where it stands.

    Returns:
        A sentence on what was done.

    Raises:
        ValueError: it was not submitted by `msrec launch`, or does not run any more.
    """
    submitted = read_submitted(run_dir)
    if submitted is None:
        raise ValueError(f"{run_dir} must have been submitted by `msrec launch`; it was not.")
    if submitted.scheduler != LOCAL:
        with get_runner() as runner:
            if runner.status(submitted.handle) is None:
                raise ValueError(
                    f"{submitted.scheduler} must know {submitted.handle} to cancel it; it does not."
                )
            runner.cancel(submitted.handle)
        return f"cancelled {submitted.handle}"
    if not psutil.pid_exists(submitted.pid):
        raise ValueError(f"{run_dir} must run to be cancelled; process {submitted.pid} is gone.")
    os.kill(submitted.pid, signal.SIGTERM)
    return f"asked process {submitted.pid} to stop: msrec launch status {run_dir}"
