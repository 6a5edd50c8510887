"""Placement of shards on ranks, once each table has a sharding option.

Tables divided over all ranks add the same to each rank. The others are assigned greedily, the
costliest first: each shard goes to the least busy rank (or node) that has memory for it.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from msrec.tools.planner.sharding_options import Latency, ShardingOption

Floats = npt.NDArray[np.float64]
SAME_MS_DIGITS = 4
"""Digits of a millisecond. Step times that are equal to a tenth of a microsecond are the same."""


@dataclass(frozen=True)
class Cluster:
    """Ranks, and the bytes that each has for tables: on its accelerator, and in host memory."""

    ranks: int
    ranks_per_node: int
    memory: int
    host: int

    def ranks_of(self, option: ShardingOption) -> int:
        """Returns the number of ranks that a table, or a column shard, is divided over."""
        return {"rank": 1, "node": self.ranks_per_node, "all": self.ranks}[option.span]


@dataclass(frozen=True)
class Placement:
    """Sharding option of each table and ranks of its shards.

    Attributes:
        options: table -> its sharding option.
        ranks: table -> ranks of its shards, in order.
        ms, memory, host: (ranks,), load of each rank: milliseconds with latency, bytes on the
            accelerator and bytes in host memory.
        excess: bytes by which ranks exceed their memory, summed over ranks; 0 if everything fits.
    """

    options: dict[str, ShardingOption]
    ranks: dict[str, list[int]]
    ms: Floats
    memory: Floats
    host: Floats
    excess: float

    @property
    def step_ms(self) -> float:
        """Milliseconds of the critical rank, which the others wait for."""
        return float(self.ms.max())

    @property
    def objective(self) -> tuple[float, float, float]:
        """Quantity to minimise: excess memory, then the step time, then the fullest rank."""
        return self.excess, round(self.step_ms, SAME_MS_DIGITS), float(self.memory.max())


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
    others.sort(key=lambda o: (-o.cost.total * noise.get(o.table, 1.0), -o.memory, o.table))
    ranks = {option.table: list(range(cluster.ranks)) for option in on_all}
    by_rank = _Loads(cluster.ranks, on_all)
    # A node's load is the largest of its ranks.
    by_node = _Loads(-(-cluster.ranks // node_size), on_all)
    for option in others:
        ranks[option.table] = []
        for _ in range(option.column_shards):
            if option.span == "node":
                node = by_node.least_busy(option, cluster)
                by_node.add(node, option)
                placed_on = list(range(node * node_size, (node + 1) * node_size))
                for rank in placed_on:
                    by_rank.add(rank, option)
            else:
                rank = by_rank.least_busy(option, cluster)
                by_rank.add(rank, option)
                by_node.raise_to(rank // node_size, by_rank, rank)
                placed_on = [rank]
            ranks[option.table] += placed_on
    loads = np.array([by_rank.ms, by_rank.memory, by_rank.host], dtype=np.float64)
    return _placement(options, ranks, loads, cluster)


def placement_on(
    options: Mapping[str, ShardingOption], ranks: Mapping[str, list[int]], cluster: Cluster
) -> Placement:
    """Returns the placement with the given options and ranks of shards."""
    loads = np.zeros((3, cluster.ranks))
    for table, option in options.items():
        for rank in ranks[table]:
            loads[:, rank] += option.load
    return _placement(options, ranks, loads, cluster)


def step_ms_with(placement: Placement, option: ShardingOption, cluster: Cluster) -> float | None:
    """Returns the step time if one table had another option; None if that has no room.

    All other tables stay where they are. The table's shards go to the least busy ranks, as in
    `assign_shards`.
    """
    loads = np.array([placement.ms, placement.memory, placement.host])
    for rank in placement.ranks[option.table]:  # a rank may have several column shards
        loads[:, rank] -= placement.options[option.table].load
    size = cluster.ranks_of(option)
    added = np.array(option.load)[:, np.newaxis]
    limits = np.array([[np.inf], [cluster.memory], [cluster.host]])
    for _ in range(option.column_shards):
        has_room = (loads + added <= limits).all(axis=0).reshape(-1, size).all(axis=1)
        if not has_room.any():
            return None
        busy = loads[0].reshape(-1, size).max(axis=1)
        first = size * int(np.argmin(np.where(has_room, busy, np.inf)))
        loads[:, first : first + size] += added
    return float(loads[0].max())


def _placement(
    options: Mapping[str, ShardingOption],
    ranks: Mapping[str, list[int]],
    loads: Floats,
    cluster: Cluster,
) -> Placement:
    ms, memory, host = loads
    ms = ms + shared_latency(options, ranks, cluster)
    over = np.maximum(memory - cluster.memory, 0) + np.maximum(host - cluster.host, 0)
    return Placement(dict(options), dict(ranks), ms, memory, host, float(over.sum()))


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


class _Loads:
    """Milliseconds, bytes and bytes in host memory of each rank, or of each node.

    Lists and a heap, not arrays: a shard changes only a few numbers, and there are many shards. A
    heap entry whose milliseconds are out of date is dropped when it comes up.
    """

    def __init__(self, count: int, on_all: Sequence[ShardingOption]) -> None:
        self.ms = [sum(option.cost.total for option in on_all)] * count
        self.memory = [sum(option.memory for option in on_all)] * count
        self.host = [sum(option.host for option in on_all)] * count
        self._heap = [(ms, index) for index, ms in enumerate(self.ms)]

    def least_busy(self, option: ShardingOption, cluster: Cluster) -> int:
        """Returns the least busy one that has room; if none has, the one with the most room."""
        max_memory, max_host = cluster.memory - option.memory, cluster.host - option.host
        full: list[tuple[float, int]] = []
        chosen = None
        while self._heap and chosen is None:
            ms, index = entry = heapq.heappop(self._heap)
            if ms != self.ms[index]:
                continue  # out of date; a newer entry is in the heap
            full.append(entry)
            if self.memory[index] <= max_memory and self.host[index] <= max_host:
                chosen = index
        for entry in full:
            heapq.heappush(self._heap, entry)
        if chosen is None:
            chosen = min(range(len(self.ms)), key=lambda i: self.memory[i] + self.host[i])
        return chosen

    def add(self, index: int, option: ShardingOption) -> None:
        """Adds a shard."""
        self.ms[index] += option.cost.total
        self.memory[index] += option.memory
        self.host[index] += option.host
        heapq.heappush(self._heap, (self.ms[index], index))

    def raise_to(self, index: int, other: "_Loads", other_index: int) -> None:
        """Raises the load of one to that of another, where the latter is larger."""
        self.memory[index] = max(self.memory[index], other.memory[other_index])
        self.host[index] = max(self.host[index], other.host[other_index])
        if other.ms[other_index] > self.ms[index]:
            self.ms[index] = other.ms[other_index]
            heapq.heappush(self._heap, (self.ms[index], index))
