"""Slurm scheduler that needs no accounting and knows account, qos, gres and whole nodes."""

import shutil
import subprocess
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from torchx.schedulers.api import DescribeAppResponse, ListAppResponse
from torchx.schedulers.slurm_scheduler import (
    SLURM_STATES,
    SlurmBatchRequest,
    SlurmOpts,
    SlurmScheduler,
)
from torchx.specs import AppDef, AppDryRunInfo, AppState, runopts

from msrec.launch.cluster.schedulers.responses import app_response

OPTIONS = {
    "account": "account that is charged for the job",
    "qos": "quality of service",
    "gres": "generic resources of each node, such as gpu:8",
    "nodelist": "nodes to take",
    "reservation": "reservation to run in",
}
STATE_ORDER = (AppState.FAILED, AppState.CANCELLED, AppState.RUNNING, AppState.PENDING)
"""A job has the first of these states that one of its nodes has."""
STATE_COMMANDS = (
    ("squeue", "--noheader", "--states=all", "--format=%A|%j|%T|%N|%r"),
    (
        *("sacct", "--noheader", "--parsable2", "--allocations"),
        "--format=JobID,JobName,State,NodeList,Reason",
    ),
)
"""Both print job number, name, state, nodes and reason of each component of a job."""
LIST_COMMANDS = ((STATE_COMMANDS[0], "--me"), (STATE_COMMANDS[1], "--starttime=1970-01-02"))
"""The same commands for all jobs of this user."""
NAME_END = "."
"""Between the name that a user gave to a job and torchx's name of a node, such as train-0."""
Jobs = list[ListAppResponse]
Component = tuple[str, AppState, str, str]
"""Name, state, host and reason of a component, which is one node of the job."""


class MsrecSlurmScheduler(SlurmScheduler):  # type: ignore[misc]  # torchx is untyped
    """Slurm scheduler that asks `squeue` for states, and then `sacct` if it is there.

    torchx's own asks only `sacct`, which many clusters do not have, and fails on the state
    `CANCELLED by 0`. `squeue` knows a job for some minutes after its end (MinJobAge in slurm.conf).
    """

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """Returns the state of a job and of its nodes; None if Slurm no longer knows the job."""
        for command in STATE_COMMANDS:
            components = _components([*command, f"--jobs={app_id}"])
            if components:
                break
        else:
            return None
        states = [state for _, state, _, _ in components]
        state = _state_of_job(states)
        reason = components[0][3]
        return app_response(app_id, state, reason, [component[:3] for component in components])

    def list(self) -> Jobs:
        """Returns the jobs of this user that squeue or sacct know.

        Raises:
            ValueError: neither of them answers.
        """
        states = defaultdict(set)
        answers = [_answer([*command, option]) for command, option in LIST_COMMANDS]
        if all(answer is None for answer in answers):
            raise ValueError("squeue or sacct must list the jobs of Slurm; neither answers here.")
        for answer in answers:
            for number, _, state, _, _ in answer or []:
                states[number.partition("+")[0]].add(_state(state))
        return [
            ListAppResponse(app_id=number, state=_state_of_job(each))
            for number, each in states.items()
        ]

    def _run_opts(self) -> runopts:
        options = super()._run_opts()
        for name, purpose in OPTIONS.items():
            options.add(name, type_=str, help=purpose)
        options.add("exclusive", type_=bool, default=False, help="take whole nodes")
        return options

    def _submit_dryrun(self, app: AppDef, cfg: SlurmOpts) -> AppDryRunInfo[SlurmBatchRequest]:
        info = super()._submit_dryrun(app, cfg)
        values: Mapping[str, Any] = dict(cfg)
        options = {name: str(values[name]) for name in OPTIONS if values.get(name) is not None}
        for name, replica in info.request.replicas.items():
            replica.sbatch_opts.update(options)
            if values.get("exclusive"):
                replica.sbatch_opts["exclusive"] = None
            if app.name != app.roles[0].name:
                replica.name = f"{app.name}{NAME_END}{name}"
            # torchx gives variables to srun's --export, which ends a value at its first comma.
            variables = [f"{key}={value}" for key, value in replica.env.items()]
            replica.args = [*variables, replica.entrypoint, *replica.args]
            replica.entrypoint, replica.env = "env", {}
            replica.srun_opts["export"] = "ALL"
        return info


def create_scheduler(session_name: str, **kwargs: Any) -> MsrecSlurmScheduler:
    """Entry point for torchx."""
    return MsrecSlurmScheduler(session_name)


def _components(command: list[str]) -> list[Component]:
    """Reads what a command prints; empty if it is not installed or does not know the job."""
    rows = _answer(command) or []
    return [
        (name.rpartition(NAME_END)[2], _state(state), host, reason)
        for _, name, state, host, reason in rows
    ]


def _answer(command: list[str]) -> list[list[str]] | None:
    """Returns the fields of each line that a command prints; None if it fails or is missing."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None
    return [line.split("|") for line in done.stdout.split("\n")[:-1]]


def _state_of_job(states: Collection[AppState]) -> AppState:
    return next((each for each in STATE_ORDER if each in states), next(iter(states)))


def _state(text: str) -> AppState:
    # The first word only: `CANCELLED by 0` is a state too.
    return SLURM_STATES.get(text.split(" ")[0].rstrip("+"), AppState.UNKNOWN)
