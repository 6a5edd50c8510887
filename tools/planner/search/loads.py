"""Loads of ranks or of nodes while shards are assigned, with the least busy one at hand."""

import heapq
from collections.abc import Sequence

import numpy as np

from msrec.tools.planner.cluster import Cluster, Floats
from msrec.tools.planner.sharding_options import ShardingOption


class Loads:
    """Milliseconds, bytes, bytes in host memory and prefetch of each rank, or of each node.

    Lists and a heap for each pool, not arrays: a shard changes only a few numbers, and there are
    many shards. A heap entry whose milliseconds are out of date is dropped when it comes up.

    Args:
        cluster: the ranks.
        size: ranks that make one: 1, or those of a node.
        on_all: options of tables that are divided over all ranks.
    """

    def __init__(self, cluster: Cluster, size: int, on_all: Sequence[ShardingOption]) -> None:
        self.size, self._pools = size, cluster.pools
        self._pool_of = cluster.pool_of[::size]
        at_first = [_sum(on_all, pool) for pool in range(len(cluster.pools))]
        loads = [at_first[pool] for pool in self._pool_of]
        self.ms, self.memory = [load[0] for load in loads], [load[1] for load in loads]
        self.host, self.prefetch = [load[2] for load in loads], [load[3] for load in loads]
        self.busy = [max(ms, prefetch) for ms, _, _, prefetch in loads]
        self._heaps: list[list[tuple[float, int]]] = [[] for _ in cluster.pools]
        for index, pool in enumerate(self._pool_of):
            self._heaps[pool].append((self.busy[index], index))

    def least_busy(self, option: ShardingOption, among: Sequence[int] | None = None) -> int:
        """Returns the one that has room and is least busy with a shard.

        If none has room, it is the one with the least excess. `among` limits the choice.
        """
        if among is None:
            tops = (self._first_with_room(pool, option) for pool in range(len(self._pools)))
            found = [index for index in tops if index is not None]
        else:
            found = [index for index in among if self._has_room(index, option)]
        if len(found) == 1:
            return found[0]
        if found:
            return min(found, key=lambda index: self._busy_with(index, option))
        return min(range(len(self.ms)) if among is None else among, key=self._excess)

    def add(self, index: int, option: ShardingOption) -> None:
        """Adds a shard."""
        pool = self._pool_of[index]
        cost = option.cost_on(pool)
        self.ms[index] += cost.total
        self.memory[index] += option.memory
        self.host[index] += option.host
        self.prefetch[index] += cost.prefetch
        self.busy[index] = busy = max(self.ms[index], self.prefetch[index])
        heapq.heappush(self._heaps[pool], (busy, index))

    def raise_to(self, index: int, other: "Loads", other_index: int) -> None:
        """Raises the load of one to that of another, where the latter is larger."""
        self.ms[index] = max(self.ms[index], other.ms[other_index])
        self.memory[index] = max(self.memory[index], other.memory[other_index])
        self.host[index] = max(self.host[index], other.host[other_index])
        self.prefetch[index] = max(self.prefetch[index], other.prefetch[other_index])
        if other.busy[other_index] > self.busy[index]:
            self.busy[index] = other.busy[other_index]
            heapq.heappush(self._heaps[self._pool_of[index]], (self.busy[index], index))

    def values(self) -> Floats:
        """Returns (4, number of ranks or nodes), all loads."""
        return np.array([self.ms, self.memory, self.host, self.prefetch], dtype=np.float64)

    def _first_with_room(self, pool: int, option: ShardingOption) -> int | None:
        heap, taken = self._heaps[pool], list[tuple[float, int]]()
        chosen = None
        while heap and chosen is None:
            busy, index = entry = heapq.heappop(heap)
            if busy != self.busy[index]:
                continue  # out of date; a newer entry is in the heap
            taken.append(entry)
            if self._has_room(index, option):
                chosen = index
        for entry in taken:
            heapq.heappush(heap, entry)
        return chosen

    def _has_room(self, index: int, option: ShardingOption) -> bool:
        pool = self._pools[self._pool_of[index]]
        return (
            self.memory[index] + option.memory <= pool.memory
            and self.host[index] + option.host <= pool.host
        )

    def _excess(self, index: int) -> float:
        """Returns the bytes in use minus the bytes that there are."""
        pool = self._pools[self._pool_of[index]]
        return self.memory[index] - pool.memory + self.host[index] - pool.host

    def _busy_with(self, index: int, option: ShardingOption) -> float:
        cost = option.cost_on(self._pool_of[index])
        return max(self.ms[index] + cost.total, self.prefetch[index] + cost.prefetch)


def _sum(options: Sequence[ShardingOption], pool: int) -> tuple[float, float, float, float]:
    """Returns the load of options together on a rank of a pool."""
    loads = [option.load_on(pool) for option in options]
    ms, memory, host, prefetch = zip(*loads, strict=True) if loads else ((0,),) * 4
    return sum(ms), sum(memory), sum(host), sum(prefetch)
