"""Builds torchx's description of a job from the states of its nodes."""

from collections.abc import Iterable

from torchx.schedulers.api import DescribeAppResponse
from torchx.specs import AppState, ReplicaStatus, Role, RoleStatus


def app_response(
    app_id: str, state: AppState, message: str, replicas: Iterable[tuple[str, AppState, str]]
) -> DescribeAppResponse:
    """Returns the description of a job.

    Args:
        app_id: the job's name for torchx.
        state: state of the whole job.
        message: reason of the state.
        replicas: name, state and host of each node. The name is ROLE-NUMBER; others are left out.
    """
    roles: dict[str, Role] = {}
    statuses: dict[str, RoleStatus] = {}
    for name, replica_state, host in replicas:
        role, _, number = name.rpartition("-")
        if role and number.isdigit():
            roles.setdefault(role, Role(name=role, num_replicas=0, image="")).num_replicas += 1
            replica = ReplicaStatus(id=int(number), role=role, state=replica_state, hostname=host)
            statuses.setdefault(role, RoleStatus(role, [])).replicas.append(replica)
    return DescribeAppResponse(
        app_id=app_id,
        roles=list(roles.values()),
        roles_statuses=list(statuses.values()),
        state=state,
        msg=message,
    )
