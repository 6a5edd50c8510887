"""Slurm without accounting, with account, qos, gres and whole nodes."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from torchx.schedulers.api import DescribeAppResponse
from torchx.schedulers.slurm_scheduler import (
    SLURM_STATES,
    SlurmBatchRequest,
    SlurmOpts,
    SlurmScheduler,
)
from torchx.specs import (
    AppDef,
    AppDryRunInfo,
    AppState,
    ReplicaStatus,
    Role,
    RoleStatus,
    runopts,
)

OPTIONS = {
    "account": "whom the job is charged to",
    "qos": "quality of service",
    "gres": "generic resources of each node, such as gpu:8",
    "nodelist": "nodes to take",
    "reservation": "a reservation to run in",
}
FORMAT = "%A|%j|%T|%N|%r"
"""squeue: number, name, state, nodes, reason."""
Row = tuple[str, AppState, str, str]
"""Of a component of the job: name, state, hosts, reason."""


class MsrecSlurmScheduler(SlurmScheduler):  # type: ignore[misc]  # torchx is untyped
    """Stock torchx asks `sacct`, which many clusters do not have, and knows no `CANCELLED by 0`.

    This one asks `squeue`, which knows a job for some minutes after its end (MinJobAge in
    slurm.conf), then `sacct` where there is one.
    """

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """The state of a job and of its nodes; None where Slurm knows it no more."""
        rows = _squeue(app_id) or _sacct(app_id)
        if not rows:
            return None
        states = [state for _, state, _, _ in rows]
        order = (AppState.FAILED, AppState.CANCELLED, AppState.RUNNING, AppState.PENDING)
        state = next((each for each in order if each in states), states[0])
        roles: dict[str, Role] = {}
        statuses: dict[str, RoleStatus] = {}
        for name, of_node, host, _ in rows:
            role, _, number = name.rpartition("-")
            if not role or not number.isdigit():
                continue
            roles.setdefault(role, Role(name=role, num_replicas=0, image="")).num_replicas += 1
            replica = ReplicaStatus(id=int(number), role=role, state=of_node, hostname=host)
            statuses.setdefault(role, RoleStatus(role, [])).replicas.append(replica)
        return DescribeAppResponse(
            app_id=app_id,
            roles=list(roles.values()),
            roles_statuses=list(statuses.values()),
            state=state,
            msg=rows[0][3],
        )

    def _run_opts(self) -> runopts:
        options = super()._run_opts()
        for name, told in OPTIONS.items():
            options.add(name, type_=str, help=told)
        options.add("exclusive", type_=bool, default=False, help="take whole nodes")
        return options

    def _submit_dryrun(self, app: AppDef, cfg: SlurmOpts) -> AppDryRunInfo[SlurmBatchRequest]:
        info = super()._submit_dryrun(app, cfg)
        given: Mapping[str, Any] = dict(cfg)
        for replica in info.request.replicas.values():
            for name in OPTIONS:
                if given.get(name) is not None:
                    replica.sbatch_opts[name] = str(given[name])
            if given.get("exclusive"):
                replica.sbatch_opts["exclusive"] = None
        return info


def create_scheduler(session_name: str, **kwargs: Any) -> MsrecSlurmScheduler:
    """For torchx."""
    return MsrecSlurmScheduler(session_name)


def _squeue(app_id: str) -> list[Row]:
    return _rows(["squeue", "--noheader", "--states=all", f"--jobs={app_id}", f"--format={FORMAT}"])


def _sacct(app_id: str) -> list[Row]:
    fields = "--format=JobID,JobName,State,NodeList,Reason"
    return _rows(
        ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={app_id}", fields]
    )


def _rows(command: Sequence[str]) -> list[Row]:
    """What a command prints; nothing where it is not there or does not know the job."""
    if shutil.which(command[0]) is None:
        return []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.split("\n")[:-1] if done.returncode == 0 else []
    rows = [line.split("|") for line in lines]
    return [(name, _state(state), host, reason) for _, name, state, host, reason in rows]


def _state(told: str) -> AppState:
    """By the first word: `CANCELLED by 0` is a state too."""
    return SLURM_STATES.get(told.split(" ")[0].rstrip("+"), AppState.UNKNOWN)
