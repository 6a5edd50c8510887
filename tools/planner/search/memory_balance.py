"""Moves shards to emptier ranks, where that makes no step longer."""

import numpy as np

from msrec.tools.planner.cluster import Cluster, Floats
from msrec.tools.planner.search.placement import Placement, placement_on

MAX_MOVES = 1000
RanksOf = dict[str, list[int]]
"""Table -> ranks of its shards."""
ShardOf = tuple[str, int]
"""A table and the number of its shard."""


def balanced(placement: Placement, cluster: Cluster) -> Placement:
    """Returns a placement with a less full fullest rank, and a step that is not longer.

    Shards that are on one rank move, alone or in exchange for others, to another rank of the same
    pool, as long as the fuller one of two ranks becomes less full. A placement that does not fit is
    returned as it is.
    """
    if placement.excess:
        return placement
    ranks = {table: list(on) for table, on in placement.ranks.items()}
    loads = placement.loads.copy()
    ms = np.full(cluster.ranks, loads[0].max() + 1e-9)
    # Prefetch may last as long as the step.
    prefetch = np.full(cluster.ranks, max(placement.step_ms, loads[3].max()))
    limits = np.array([ms, cluster.memory, cluster.host, prefetch])
    for _ in range(MAX_MOVES):
        if not _move(placement, ranks, loads, limits, cluster):
            break
    moved = placement_on(placement.options, ranks, cluster)
    return min(placement, moved, key=lambda each: each.objective)


def _move(
    placement: Placement, ranks: RanksOf, loads: Floats, limits: Floats, cluster: Cluster
) -> bool:
    """Moves a shard of the fullest rank to one of the emptiest; False if nothing helps."""
    full = int(cluster.fullness(loads[1]).argmax())
    pool = cluster.pool_of[full]
    on_full, sizes = _shards_on(placement, ranks, full, pool)
    if not on_full:
        return False
    emptiest = (int(rank) for rank in np.argsort(loads[1], kind="stable") if rank != full)
    for to in (rank for rank in emptiest if cluster.pool_of[rank] == pool):
        on_to, others = _shards_on(placement, ranks, to, pool)
        # Row 0 is a move alone, the others are an exchange.
        others = np.concatenate([np.zeros((1, 4)), others])
        change = sizes[:, np.newaxis] - others[np.newaxis]  # (shards, 1 + others, 4)
        after = np.stack([loads[:, full] - change, loads[:, to] + change])
        # Both ranks are of one pool, and have the same limits.
        is_allowed = (after <= limits[:, full]).all(axis=(0, 3))
        fuller = np.where(is_allowed, after[..., 1].max(axis=0), np.inf)
        shard, other = np.unravel_index(int(fuller.argmin()), fuller.shape)
        if fuller[shard, other] >= loads[1, full] * (1 - 1e-6):
            continue
        loads[:, full], loads[:, to] = after[:, shard, other]
        table, number = on_full[shard]
        ranks[table][number] = to
        if other:
            table, number = on_to[other - 1]
            ranks[table][number] = full
        return True
    return False


def _shards_on(
    placement: Placement, ranks: RanksOf, rank: int, pool: int
) -> tuple[list[ShardOf], Floats]:
    """Returns the shards on a rank that may be on any other one, and their loads, (shards, 4)."""
    shards = [
        (table, number)
        for table, option in placement.options.items()
        if option.span == "rank" and option.sharding != "table_column_wise" and rank in ranks[table]
        for number, on in enumerate(ranks[table])
        if on == rank
    ]
    loads = [placement.options[table].load_on(pool) for table, _ in shards]
    return shards, np.array(loads, dtype=np.float64).reshape(-1, 4)
