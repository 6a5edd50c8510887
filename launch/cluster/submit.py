"""Submits a job with a site profile, follows it and cancels it."""

import os
import signal
import socket
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from torchx.runner import Runner, get_runner
from torchx.schedulers.api import Stream
from torchx.schedulers.local_scheduler import SignalException
from torchx.specs import AppDef, AppDryRunInfo, AppState, InvalidRunConfigException
from torchx.specs.finder import ComponentValidationException

from msrec.launch.cluster.job_specs import JobSpec
from msrec.launch.cluster.profiles import Profile, Target
from msrec.launch.cluster.ray_role import ray_app
from msrec.launch.cluster.submitted import (
    ACTIVE_STATES,
    KUBERAY,
    LOCAL,
    Submitted,
    job_state,
    read_submitted,
)
from msrec.launch.cluster.torchrun_role import torchrun_app

CLIENT_LIBRARIES = {
    "kubernetes": ("kubernetes", "kubernetes"),
    KUBERAY: ("kubernetes", "kubernetes"),
    "aws_batch": ("boto3", "aws_batch"),
    "ray": ("ray", "ray"),
}
"""Scheduler -> the client library it needs, and the extra of msrec that has it."""


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
    """Returns the torchx app of a job; the ranks' output goes to `logs` in the job's folder.

    Raises:
        ValueError: the profile is one of Ray, and the job is not a command that can use Ray, or
            its `device` does not fit the nodes.
    """
    log_dir = str((spec.folder / "logs").absolute())
    options = target.profile.launch_options(target.nodes_and_ranks)
    if target.profile.scheduler == KUBERAY:
        return ray_app(spec.job, _ray_args(spec, target, options.resource.gpu), options)
    return torchrun_app(spec.job, list(spec.args), options, log_dir)


def _ray_args(spec: JobSpec, target: Target, gpus: int) -> list[str]:
    """Returns the arguments of a command on Ray; see `torchx_app`."""
    if spec.ray_args is None:
        raise ValueError(
            f"--on must name a profile whose scheduler runs ranks for {spec.job}; got "
            f"{target.name} of {KUBERAY}, which is for convert and encode."
        )
    device = "cpu" if spec.config is None else spec.config.device
    if (device == "auto" and gpus > 0) or (device == "cuda" and gpus == 0):
        raise ValueError(
            "device must be cuda for nodes with GPUs and cpu for others, since Ray gives a task "
            f"the GPUs that it asks for; got device={device} and {gpus} GPUs per node."
        )
    return list(spec.ray_args)


def _require_client_library(target: Target) -> None:
    scheduler = target.profile.scheduler
    library, extra = CLIENT_LIBRARIES.get(scheduler, ("torchx", ""))
    if find_spec(library) is None:
        raise ValueError(
            f"--on {target.name} needs the library {library}, which is not installed: pip install "
            f'"msrec[{extra}]"'
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
    if earlier is not None and (state := job_state(earlier).word) in ACTIVE_STATES:
        raise ValueError(
            f"{folder} must have one job at a time; {earlier.handle} is {state}. Wait for its end, "
            f"or stop it: msrec launch cancel {folder}"
        )


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
