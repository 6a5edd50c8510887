"""Search for the fewest GPUs with room for the tables, and for the best size of groups."""

import dataclasses

import numpy as np

from msrec.launch.reporting.byte_sizes import format_bytes
from msrec.tools.planner.plan import Plan
from msrec.tools.planner.request import MAX_NODES, PlanRequest
from msrec.tools.planner.search.make_plan import make_plan, sharding_options
from msrec.tools.planner.search.solver import total_shards


def fewest_gpus(request: PlanRequest) -> Plan:
    """Returns the plan on the fewest GPUs that have room.

    These are some GPUs of one host, whole hosts of a node of `request.per_node` GPUs, or whole
    nodes. Sizes are tried in doubled steps until the plan fits, then by bisection.

    Raises:
        ValueError: a table fits nowhere, or even `MAX_NODES` have no room.
    """
    if request.group_ranks is not None:
        raise ValueError("the fewest GPUs are those of one group; leave out --group-ranks.")
    largest = _sizes_of_node(request) + MAX_NODES - 1
    _refuse_too_large(_resized(request, largest))
    number, plan = 1, _plan_if_room(_resized(request, 1))
    while plan is None:
        if number == largest:
            raise ValueError(
                f"some number of nodes up to {MAX_NODES} must have room for the tables; none has."
            )
        number = min(2 * number, largest)
        plan = _plan_if_room(_resized(request, number))
    too_few = number // 2
    while number - too_few > 1:
        middle = (too_few + number) // 2
        smaller = _plan_if_room(_resized(request, middle))
        if smaller is None:
            too_few = middle
        else:
            number, plan = middle, smaller
    return plan


def plans_of_groups(request: PlanRequest) -> dict[int, Plan]:
    """Returns number of ranks of a group -> its plan, if it fits, for all numbers that can be.

    Raises:
        ValueError: the tables or the GPUs of the request cannot be those of groups.
    """
    size, node = request.world_size, request.per_node
    numbers = [n for n in range(1, size + 1) if size % n == 0 and max(n, node) % min(n, node) == 0]
    asked = [dataclasses.replace(request, group_ranks=number) for number in numbers]
    plans = {number: _plan_if_room(of) for number, of in zip(numbers, asked, strict=True)}
    return {number: plan for number, plan in plans.items() if plan is not None}


def _resized(request: PlanRequest, number: int) -> PlanRequest:
    """Returns the request for the `number`-th size of a cluster, the smallest being 1."""
    host = request.hardware.ranks_per_host(request.per_node)
    of_node = number if number <= host else (number - host + 1) * host
    nodes = 1 + max(number - _sizes_of_node(request), 0)
    return dataclasses.replace(request, nodes=nodes, per_node=min(of_node, request.per_node))


def _sizes_of_node(request: PlanRequest) -> int:
    """Returns the number of sizes up to a node: 1 GPU, ..., one host, two hosts, ..., all hosts."""
    host = request.hardware.ranks_per_host(request.per_node)
    return host + request.per_node // host - 1


def _plan_if_room(request: PlanRequest) -> Plan | None:
    """Returns the plan, None if it does not fit.

    The search runs only if all shards together need less memory than all ranks have.
    """
    options = sharding_options(request)
    cluster = request.cluster
    needed = sum(
        min((o.memory + o.host) * total_shards(o, cluster) for o in of) for of in options.values()
    )
    if needed > float((np.maximum(cluster.memory, 0) + np.maximum(cluster.host, 0)).sum()):
        return None
    plan = make_plan(request)
    return plan if plan.fits else None


def _refuse_too_large(request: PlanRequest) -> None:
    """Refuses a table of which every shard is too large for a GPU, however many GPUs there are."""
    memory = request.cluster.pools[0].memory
    for table, options in sharding_options(request).items():
        smallest = min(options, key=lambda o: max(o.weights + o.state - memory, 0))
        if smallest.weights + smallest.state > memory:
            raise ValueError(
                f"each shard of a table must fit on a GPU; table {table} is {smallest.label} and a "
                f"shard of it takes {format_bytes(smallest.weights + smallest.state)}, of which a "
                f"{request.hardware_name} has {format_bytes(max(memory, 0))}. No number of "
                "GPUs helps: allow row_wise, host memory (--cached 0.2), or a smaller dim."
            )
