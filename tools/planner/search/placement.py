"""Placement of shards on ranks, once each table has a sharding option.

Tables divided over all ranks add the same to each rank. The others are assigned greedily, the
costliest first: each shard goes to the rank (or node) with memory for it that is least busy with
it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from msrec.tools.planner.cluster import Cluster, Floats
from msrec.tools.planner.search.loads import Loads
from msrec.tools.planner.sharding_options import Latency, ShardingOption

SAME_MS_DIGITS = 4
"""Digits of a millisecond. Step times that are equal to a tenth of a microsecond are the same."""


@dataclass(frozen=True)
class Placement:
    """Sharding option of each table and ranks of its shards.

    Attributes:
        options: table -> its sharding option.
        ranks: table -> ranks of its shards, in order.
        loads: (4, ranks), load of each rank by shards: milliseconds, bytes on the accelerator,
            bytes in host memory, milliseconds of prefetch.
        latency: (ranks,), milliseconds that the shards of a rank share.
        excess: bytes by which ranks exceed their memory, summed over ranks; 0 if everything fits.
        fullest: share of its memory that the fullest rank has in use.
    """

    options: dict[str, ShardingOption]
    ranks: dict[str, list[int]]
    loads: Floats
    latency: Floats
    excess: float
    fullest: float

    @property
    def ms(self) -> Floats:
        """(ranks,), milliseconds of each rank; prefetch takes place during all the rest."""
        return _busy(self.loads, self.latency)

    @property
    def memory(self) -> Floats:
        """(ranks,), bytes on the accelerator of each rank."""
        memory: Floats = self.loads[1]
        return memory

    @property
    def host(self) -> Floats:
        """(ranks,), bytes in host memory of each rank."""
        host: Floats = self.loads[2]
        return host

    @property
    def step_ms(self) -> float:
        """Milliseconds of the critical rank, which the others wait for."""
        return float(self.ms.max())

    @property
    def objective(self) -> tuple[float, float, float, float]:
        """Quantity to minimise: excess memory, step time, host memory, then the fullest rank."""
        step_ms, host = round(self.step_ms, SAME_MS_DIGITS), float(self.host.sum())
        return self.excess, step_ms, host, self.fullest


def assign_shards(
    options: Mapping[str, ShardingOption],
    cluster: Cluster,
    order_noise: Mapping[str, float] | None = None,
) -> Placement:
    """Assigns the shards of all tables to ranks, the costliest table first.

    `order_noise` (table -> factor) changes the costs for the order, and for nothing else.
    """
    noise, node_size = order_noise or {}, cluster.ranks_per_node
    on_all = [option for option in options.values() if option.span == "all"]
    others = [option for option in options.values() if option.span != "all"]
    others.sort(key=lambda o: (-o.cost.busy * noise.get(o.table, 1.0), -o.memory, o.table))
    ranks = {option.table: list(range(cluster.ranks)) for option in on_all}
    by_rank = Loads(cluster, 1, on_all)
    # A node's load is the largest of its ranks.
    by_node = Loads(cluster, node_size, on_all)
    for option in others:
        ranks[option.table] = []
        for _ in range(option.column_shards):
            if option.span == "node":
                node = by_node.least_busy(option)
                by_node.add(node, option)
                placed_on = list(range(node * node_size, (node + 1) * node_size))
                for rank in placed_on:
                    by_rank.add(rank, option)
            else:
                rank = _rank_for(option, ranks[option.table], by_rank, by_node)
                by_rank.add(rank, option)
                by_node.raise_to(rank // node_size, by_rank, rank)
                placed_on = [rank]
            ranks[option.table] += placed_on
    return _placement(options, ranks, by_rank.values(), cluster)


def _rank_for(option: ShardingOption, placed: list[int], by_rank: Loads, by_node: Loads) -> int:
    """Returns the rank of a table's next shard; `placed` are those of its other shards."""
    if option.sharding != "table_column_wise":
        return by_rank.least_busy(option)
    node_size = by_node.size
    node = placed[0] // node_size if placed else by_node.least_busy(option)
    return by_rank.least_busy(option, range(node * node_size, (node + 1) * node_size))


def placement_on(
    options: Mapping[str, ShardingOption], ranks: Mapping[str, list[int]], cluster: Cluster
) -> Placement:
    """Returns the placement with the given options and ranks of shards."""
    loads = np.zeros((4, cluster.ranks))
    for table, option in options.items():
        for rank in ranks[table]:
            loads[:, rank] += option.load_on(cluster.pool_of[rank])
    return _placement(options, ranks, loads, cluster)


def step_ms_with(placement: Placement, option: ShardingOption, cluster: Cluster) -> float | None:
    """Returns the step time if one table had another option; None if that has no room.

    All other tables stay where they are. The table's shards go to the least busy ranks, as in
    `assign_shards`.
    """
    loads = placement.loads.copy()
    pool_of = np.array(cluster.pool_of)
    for rank in placement.ranks[option.table]:  # a rank may have several column shards
        loads[:, rank] -= placement.options[option.table].load_on(pool_of[rank])
    size = cluster.ranks_of(option)
    added = np.array([option.load_on(p) for p in range(len(cluster.pools))])[pool_of].T
    allowed = np.ones(cluster.ranks, dtype=bool)
    for _ in range(option.column_shards):
        after = loads + added
        has_room = (after[1] <= cluster.memory) & (after[2] <= cluster.host) & allowed
        has_room = has_room.reshape(-1, size).all(axis=1)
        if not has_room.any():
            return None
        busy = _busy(after, placement.latency).reshape(-1, size).max(axis=1)
        first = size * int(np.argmin(np.where(has_room, busy, np.inf)))
        loads[:, first : first + size] = after[:, first : first + size]
        if option.sharding == "table_column_wise":
            node = first // cluster.ranks_per_node
            allowed = np.arange(cluster.ranks) // cluster.ranks_per_node == node
    return float(_busy(loads, placement.latency).max())


def _busy(loads: Floats, latency: Floats) -> Floats:
    """Returns (ranks,), milliseconds of each rank."""
    busy: Floats = np.maximum(loads[0] + latency, loads[3])
    return busy


def _placement(
    options: Mapping[str, ShardingOption],
    ranks: Mapping[str, list[int]],
    loads: Floats,
    cluster: Cluster,
) -> Placement:
    latency = shared_latency(options, ranks, cluster)
    over = np.maximum(loads[1] - cluster.memory, 0) + np.maximum(loads[2] - cluster.host, 0)
    fullest = float(cluster.fullness(loads[1]).max())
    return Placement(dict(options), dict(ranks), loads, latency, float(over.sum()), fullest)


def shared_latency(
    options: Mapping[str, ShardingOption], ranks: Mapping[str, list[int]], cluster: Cluster
) -> Floats:
    """Returns (ranks,), the milliseconds of latency of each rank: each group of it once."""
    found: dict[Latency, set[int]] = {}
    ms = np.zeros(cluster.ranks)
    for table, option in options.items():
        for latency in option.latencies:
            on = found.setdefault(latency, set())
            if not latency.on_all and option.span != "all":
                on.update(ranks[table])
            elif not on:
                on.update(range(cluster.ranks))
    for latency, on in found.items():
        ms[list(on)] += latency.ms
    return ms
