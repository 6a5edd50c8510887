"""Moves shards to emptier ranks, where that makes no step longer."""

import dataclasses

import numpy as np

from msrec.tools.planner.placement import Cluster, Floats, Placement, shared_latency

MAX_MOVES = 1000
RanksOf = dict[str, list[int]]
"""Table -> ranks of its shards."""
ShardOf = tuple[str, int]
"""A table and the number of its shard."""


def balanced(placement: Placement, cluster: Cluster) -> Placement:
    """Returns a placement with a less full fullest rank, and a step that is not longer.

    Shards that are on one rank move, alone or in exchange for others, as long as the fuller one of
    two ranks becomes less full. A placement that does not fit is returned as it is.
    """
    if placement.excess:
        return placement
    ranks = {table: list(on) for table, on in placement.ranks.items()}
    latency = shared_latency(placement.options, ranks, cluster)
    loads = np.array([placement.ms - latency, placement.memory, placement.host])
    limits = np.array([loads[0].max() + 1e-9, cluster.memory, cluster.host])
    for _ in range(MAX_MOVES):
        if not _move(placement, ranks, loads, limits):
            break
    ms = loads[0] + shared_latency(placement.options, ranks, cluster)
    moved = dataclasses.replace(placement, ranks=ranks, ms=ms, memory=loads[1], host=loads[2])
    return min(placement, moved, key=lambda each: each.objective)


def _move(placement: Placement, ranks: RanksOf, loads: Floats, limits: Floats) -> bool:
    """Moves a shard of the fullest rank to one of the emptiest; False if nothing helps."""
    full = int(loads[1].argmax())
    on_full, sizes = _shards_on(placement, ranks, full)
    if not on_full:
        return False
    for to in map(int, np.argsort(loads[1], kind="stable")[:-1]):
        on_to, others = _shards_on(placement, ranks, to)
        # Row 0 is a move alone, the others are an exchange.
        others = np.concatenate([np.zeros((1, 3)), others])
        change = sizes[:, np.newaxis] - others[np.newaxis]  # (shards, 1 + others, 3)
        after = np.stack([loads[:, full] - change, loads[:, to] + change])
        fuller = np.where((after <= limits).all(axis=(0, 3)), after[..., 1].max(axis=0), np.inf)
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


def _shards_on(placement: Placement, ranks: RanksOf, rank: int) -> tuple[list[ShardOf], Floats]:
    """Returns the shards on a rank that may be on any other one, and their loads, (shards, 3)."""
    shards = [
        (table, number)
        for table, option in placement.options.items()
        if option.span == "rank" and rank in ranks[table]
        for number, on in enumerate(ranks[table])
        if on == rank
    ]
    loads = [placement.options[table].load for table, _ in shards]
    return shards, np.array(loads, dtype=np.float64).reshape(-1, 3)
