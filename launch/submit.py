"""Submit a job by a site profile; the run's folder keeps what was submitted and where it runs."""

import os
import signal
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from torchx.components.dist import parse_nnodes
from torchx.runner import Runner, get_runner
from torchx.schedulers.api import Stream
from torchx.schedulers.local_scheduler import SignalException
from torchx.specs import AppDef, AppDryRunInfo, AppState, AppStatus, InvalidRunConfigException
from torchx.specs.finder import ComponentValidationException

from msrec.data.files import write_text
from msrec.launch.config import RunConfig, load_config, save_config
from msrec.launch.profiles import Profile
from msrec.launch.role import torchrun_app

Job = Literal["train", "encode"]
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
    """What the run's folder keeps of its last submission."""

    model_config = ConfigDict(frozen=True)

    job: Job
    profile: str
    scheduler: str
    handle: str
    nodes_and_ranks: str
    time: float
    pid: int
    """Of the process that submitted it, which a local job does not outlive."""


def app_of(job: Job, config: RunConfig, profile: Profile, j: str) -> tuple[AppDef, Path]:
    """The torchx app, and the resolved config that it will read.

    Raises:
        ValueError: `j` is not nodes x ranks.
    """
    try:
        parse_nnodes(j)
    except ValueError:
        raise ValueError(f"-j must be nodes x ranks per node, such as 2x8; got {j!r}.") from None
    file = config.run_dir / "submitted.yaml"
    app = torchrun_app(
        job,
        [str(file.absolute())],
        j=j,
        image=profile.image,
        resource=profile.node,
        max_restarts=profile.max_restarts,
        max_retries=profile.max_retries,
        port=profile.port,
        python=profile.python,
        log_dir=str((config.run_dir / "logs").absolute()),
    )
    return app, file


def launch(
    job: Job,
    source: Path,
    overrides: Sequence[str],
    profile: tuple[str, Profile],
    j: str,
    console: Console,
    *,
    dry_run: bool = False,
    wait: bool = False,
) -> int:
    """Submit a job; a local one is followed to its end.

    The config is resolved now and written to the run's folder, so that a later change of the file
    does not reach a job that waits or comes again; the run id stays the same, and with it the run.

    Args:
        job: what to do.
        source: the config's file.
        overrides: of the config.
        profile: name and values.
        j: nodes x ranks per node.
        console: where to print.
        dry_run: print what would be submitted and stop.
        wait: also for jobs of a scheduler.

    Returns:
        The exit status: 1 where a job that was followed did not succeed.

    Raises:
        FileNotFoundError, ValueError: of the config, or the scheduler refuses the job.
    """
    name, values = profile
    library = NEEDS.get(values.scheduler, "torchx")
    if find_spec(library) is None:
        raise ValueError(
            f"--on {name} needs the library {library}, which is not installed: pip install "
            f'"msrec[{values.scheduler}]"'
        )
    config = load_config(source, overrides)
    values.refuse_relative_paths(config)
    app, file = app_of(job, config, values, j)
    with get_runner() as runner:
        info = _dry_run(runner, app, values)
        if dry_run:
            console.print(str(info), markup=False, highlight=False, soft_wrap=True)
            return 0
        config.run_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, file)
        handle = runner.schedule(info)
        submitted = Submitted(
            job=job,
            profile=name,
            scheduler=values.scheduler,
            handle=handle,
            nodes_and_ranks=j,
            time=time.time(),
            pid=os.getpid(),
        )
        write_text(config.run_dir / SUBMITTED, submitted.model_dump_json(indent=1))
        console.print(
            f"submitted {handle}: msrec launch status {config.run_dir}",
            highlight=False,
            soft_wrap=True,
        )
        if values.scheduler != LOCAL and not wait:
            return 0
        try:
            return _followed(runner, handle, job, values.scheduler, console)
        except SignalException as stopped:
            said = f"{stopped.sigval.name}: the ranks save where they stand, and stop"
            console.print(said, highlight=False)
            return int(128 + stopped.sigval)  # closing the runner waits for them


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
