"""Makes plans: by a search for the best one, or from the sharding plan that a run used."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from msrec.model.distributed.plan_files.plan_entries import plan_hash, shard_entry, table_entry
from msrec.tools.planner.estimator import Estimator
from msrec.tools.planner.plan import TABLE_MEMORY, Plan, PlannedPool, RankLoad, TablePlan
from msrec.tools.planner.request import PlanRequest
from msrec.tools.planner.search.colocation import groups_of, merged, split
from msrec.tools.planner.search.memory_balance import balanced
from msrec.tools.planner.search.placement import Placement, placement_on, step_ms_with
from msrec.tools.planner.search.solver import solve, total_cost_ms
from msrec.tools.planner.sharding_options import SPAN, ShardCost, ShardingOption
from msrec.tools.planner.tables import TableLoad

ALTERNATIVES = 2
"""Other options of a table, the cheapest ones, from which its next best option is taken."""


def make_plan(request: PlanRequest) -> Plan:
    """Places the tables and returns the estimated load of each rank and table.

    A plan that does not fit is returned too (see `Plan.fits`), to show which memory is short.

    Raises:
        ValueError: a table has no allowed sharding option.
    """
    options = sharding_options(request)
    groups, cluster = groups_of(request.tables), request.cluster
    found = balanced(solve(merged(options, groups), cluster), cluster)
    return _plan(request, options, split(found, options, groups, cluster) if groups else found)


def sharding_options(request: PlanRequest) -> dict[str, list[ShardingOption]]:
    """Returns table -> its allowed sharding options, one or more.

    Raises:
        ValueError: a table has none.
    """
    options = _options(request, _estimators(request))
    for table in request.tables:
        if not options[table.name]:
            allowed = [table.sharding] if table.sharding else request.allowed_shardings
            kernel = "" if table.kernel is None else f" with kernel {table.kernel}"
            raise ValueError(
                f"table {table.name!r} must have a sharding option; {', '.join(allowed)}{kernel} "
                f"cannot place its {table.rows:,} rows of {table.dim} on {request.nodes} x "
                f"{request.per_node} ranks. Allow table_wise and kernel fused."
            )
    return options


def plan_as_placed(request: PlanRequest, entries: Mapping[str, Any]) -> Plan:
    """Returns the estimates for a sharding plan that exists already.

    Args:
        request: that the plan was made for.
        entries: table -> its entry in the plan's file.

    Raises:
        ValueError: the request has other tables, or a table's sharding has no estimate.
    """
    names = {table.name for table in request.tables}
    if names != set(entries):
        different = ", ".join(sorted(names ^ set(entries))[:3])
        raise ValueError(
            f"the plan must have the tables of the model; only one of the two has {different}."
        )
    estimators = _estimators(request)
    chosen, ranks = {}, {}
    for table in request.tables:
        entry = entries[table.name]
        kernel: Any = entry["compute_kernel"].replace("dense", "fused")
        factor = entry.get("load_factor")
        sharding, option = entry["sharding_type"], None
        if sharding in SPAN:
            option = _of_pools([e.option(table, sharding, kernel, factor) for e in estimators])
        # Also: fewer rows than ranks, so that some shards are empty, or narrow shards of columns.
        if option is None:
            raise ValueError(
                f"table {table.name!r} must have a sharding with an estimate; it is {sharding}, "
                f"with {table.rows:,} rows of {table.dim} on {request.world_size} ranks."
            )
        chosen[table.name] = option
        ranks[table.name] = list(entry["ranks"]) or list(range(request.table_ranks))
    options = _options(request, estimators)
    return _plan(request, options, placement_on(chosen, ranks, request.cluster))


def _estimators(request: PlanRequest) -> list[Estimator]:
    """Returns an estimator for each pool of GPUs."""
    job = (request.rows_per_rank, request.optimizer, request.comms, request.estimator)
    return [Estimator(request.tables, ranks, *job) for ranks in request.ranks]


def _options(
    request: PlanRequest, estimators: Sequence[Estimator]
) -> dict[str, list[ShardingOption]]:
    """Returns table -> its sharding options, with the costs in each pool."""
    allowed = (request.allowed_shardings, request.load_factors)
    first, *others = [estimator.options(*allowed) for estimator in estimators]
    if not others:
        return first
    return {
        table: [
            option
            for of_pools in zip(of_table, *(other[table] for other in others), strict=True)
            if (option := _of_pools(of_pools)) is not None
        ]
        for table, of_table in first.items()
    }


def _of_pools(options: Sequence[ShardingOption | None]) -> ShardingOption | None:
    """Returns one option with the costs in all pools; None if it does not divide the table."""
    first, *others = options
    if first is None or not others:
        return first
    costs = tuple(option.cost for option in others if option is not None)
    return dataclasses.replace(first, other_costs=costs)


def _plan(
    request: PlanRequest, options: Mapping[str, Sequence[ShardingOption]], placement: Placement
) -> Plan:
    tables = sorted(request.tables, key=lambda table: table.name)
    modules: dict[str, dict[str, Any]] = {}
    per_host = request.hardware.ranks_per_host(request.per_node)
    for table in tables:
        modules.setdefault(table.module, {})[table.name] = _entry(table, placement, request)
    _check_caches([t for t in tables if placement.options[t.name].load_factor is not None])
    plan = Plan(
        world_size=request.table_ranks,
        modules=modules,
        hash="",
        hardware=request.hardware_name,
        specification=request.hardware,
        nodes=request.table_ranks // request.table_per_node,
        per_node=request.table_per_node,
        copies=request.copies,
        sync_every=request.sync_every,
        pools=[
            PlannedPool(
                name=pool.name,
                specification=pool.hardware,
                ranks=pool.ranks,
                capacity=request.capacity_of(pool.hardware),
            )
            for pool in request.pools
        ],
        per_host=per_host if per_host < request.table_per_node else None,
        batch=request.rows_per_rank,
        optimizer=request.optimizer,
        estimator=request.estimator,
        capacity=request.capacity,
        tables=[_table_plan(t, options[t.name], placement, request) for t in tables],
        ranks=_rank_loads(placement, request),
        fits=not placement.excess,
    )
    return plan.model_copy(update={"hash": plan_hash(plan.model_dump(mode="json"))})


def _table_plan(
    table: TableLoad, options: Sequence[ShardingOption], placement: Placement, request: PlanRequest
) -> TablePlan:
    option, ranks = placement.options[table.name], placement.ranks[table.name]
    next_best, next_step_ms = _next_best(option, options, placement, request)
    copies = request.table_ranks if option.sharding == "data_parallel" else 1
    cost = max((option.cost_on(request.cluster.pool_of[rank]) for rank in ranks), key=_busy)
    return TablePlan(
        name=table.name,
        rows=table.rows,
        dim=table.dim,
        sharding=option.sharding,
        kernel=option.kernel,
        load_factor=option.load_factor,
        ranks=ranks,
        weights=option.weights * len(ranks) if option.host else table.num_bytes * copies,
        state=option.state * len(ranks),
        host=option.host * len(ranks),
        ms=cost.parts(),
        next_way=None if next_best is None else next_best.label,
        next_step_ms=next_step_ms,
    )


def _next_best(
    option: ShardingOption,
    options: Sequence[ShardingOption],
    placement: Placement,
    request: PlanRequest,
) -> tuple[ShardingOption | None, float | None]:
    """Returns the next best option of a table and the step time with it, None if it has no room."""
    cluster = request.cluster
    others = [other for other in options if other != option]
    others.sort(key=lambda other: total_cost_ms(other, cluster))
    steps = [(step_ms_with(placement, other, cluster), other) for other in others[:ALTERNATIVES]]
    if not steps:
        return None, None
    step_ms, next_best = min(steps, key=lambda pair: math.inf if pair[0] is None else pair[0])
    return next_best, step_ms


def _rank_loads(placement: Placement, request: PlanRequest) -> list[RankLoad]:
    ranks, pool_of = range(request.table_ranks), request.cluster.pool_of
    without_tables = dict.fromkeys(TABLE_MEMORY, 0) | request.fixed_memory
    memory = [dict(without_tables) for _ in ranks]
    host = [request.fixed_host for _ in ranks]
    ms = [ShardCost().parts() for _ in ranks]
    for table, option in placement.options.items():
        sizes = (option.weights, option.state, option.inputs, 2 * option.outputs)
        for rank in placement.ranks[table]:
            for use, size in zip(TABLE_MEMORY, sizes, strict=True):
                memory[rank][use] += size
            host[rank] += option.host
            for part, of_shard in option.cost_on(pool_of[rank]).parts().items():
                ms[rank][part] = ms[rank].get(part, 0.0) + of_shard
    for rank in ranks:
        ms[rank]["latency"] = float(placement.latency[rank])
    return [RankLoad(memory=m, host=h, ms=t) for m, h, t in zip(memory, host, ms, strict=True)]


def _entry(table: TableLoad, placement: Placement, request: PlanRequest) -> dict[str, Any]:
    """Returns a table's entry in the format of `msrec.model.distributed.plan_files`."""
    option, ranks = placement.options[table.name], placement.ranks[table.name]
    rows, columns = option.shape
    shards = []
    row_shards = request.cluster.ranks_of(option)
    for number, rank in enumerate(ranks if option.sharding != "data_parallel" else []):
        column_shard, row_shard = divmod(number, row_shards)
        # The last shards of a table may be empty.
        row, column = min(row_shard * rows, table.rows), column_shard * columns
        sizes = [min(rows, table.rows - row), columns]
        is_gpu = request.hardware.device == "cuda"
        per_host = request.hardware.ranks_per_host(request.per_node)
        device = f"cuda:{rank % per_host}" if is_gpu else "cpu"
        shards.append(shard_entry([row, column], sizes, f"rank:{rank}/{device}"))
    return table_entry(
        option.sharding, option.kernel, ranks, option.load_factor, shards, table.cache
    )


def _check_caches(cached: Sequence[TableLoad]) -> None:
    """Refuses a plan with caches of both policies, because only one of them is prefetched."""
    by_policy = {table.cache: table.name for table in cached}
    if len(by_policy) > 1:
        raise ValueError(
            "all cached tables must have the same policy, because a pipeline prefetches all or "
            f"none; {by_policy['lru']} is lru and {by_policy['lfu']} is lfu. Set `cache` of all."
        )


def _busy(cost: ShardCost) -> float:
    return cost.busy
