"""Slurm scheduler that needs no accounting and knows account, qos, gres and whole nodes."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torchx.schedulers.api import DescribeAppResponse, ListAppResponse
from torchx.schedulers.slurm_scheduler import SlurmBatchRequest, SlurmOpts, SlurmScheduler
from torchx.specs import AppDef, AppDryRunInfo, AppState, runopts

from msrec.launch.cluster.schedulers.responses import app_response
from msrec.launch.cluster.schedulers.slurm_states import (
    NAME_END,
    STATE_COMMANDS,
    components_of,
    slurm_answer,
    state_of,
    state_of_job,
)

OPTIONS = {
    "account": "account that is charged for the job",
    "qos": "quality of service",
    "gres": "generic resources of each node, such as gpu:8",
    "nodelist": "nodes to take",
    "reservation": "reservation to run in",
}
LIST_COMMANDS = ((STATE_COMMANDS[0], "--me"), (STATE_COMMANDS[1], "--starttime=1970-01-02"))
"""Commands that print the state of all jobs of this user."""
Jobs = list[ListAppResponse]


class MsrecSlurmScheduler(SlurmScheduler):  # type: ignore[misc]  # torchx is untyped
    """Slurm scheduler that asks `squeue` for states, and then `sacct` if it is there.

    torchx's own asks only `sacct`, which many clusters do not have, and fails on the state
    `CANCELLED by 0`. `squeue` knows a job for some minutes after its end (MinJobAge in slurm.conf).
    """

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """Returns the state of a job and of its nodes; None if Slurm no longer knows the job."""
        components = components_of(app_id)
        if not components:
            return None
        state = state_of_job([component.state for component in components])
        nodes = [(each.name, _app_state(each.state), each.host) for each in components]
        return app_response(app_id, _app_state(state), components[0].reason, nodes)

    def list(self) -> Jobs:
        """Returns the jobs of this user that squeue or sacct know.

        Raises:
            ValueError: neither of them answers.
        """
        states = defaultdict(set)
        answers = [slurm_answer([*command, option]) for command, option in LIST_COMMANDS]
        if all(answer is None for answer in answers):
            raise ValueError("squeue or sacct must list the jobs of Slurm; neither answers here.")
        for answer in answers:
            for number, _, state, _, _ in answer or []:
                states[number.partition("+")[0]].add(state_of(state))
        return [
            ListAppResponse(app_id=number, state=_app_state(state_of_job(each)))
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


def _app_state(state: str) -> AppState:
    return AppState[state.upper()]
