"""Ranks of a job, and the memory that each has for tables."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from msrec.tools.planner.sharding_options import ShardingOption

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """Equal ranks, and the bytes that each has for tables.

    Attributes:
        ranks: number of them.
        memory, host: bytes on the accelerator, and in host memory.
    """

    ranks: int
    memory: int
    host: int


@dataclass(frozen=True)
class Cluster:
    """Ranks of one or several pools, pool after pool, in nodes of `ranks_per_node`."""

    ranks_per_node: int
    pools: tuple[Pool, ...]

    @cached_property
    def ranks(self) -> int:
        """Number of ranks."""
        return sum(pool.ranks for pool in self.pools)

    @cached_property
    def pool_of(self) -> list[int]:
        """Pool of each rank."""
        return [number for number, pool in enumerate(self.pools) for _ in range(pool.ranks)]

    @cached_property
    def memory(self) -> Floats:
        """(ranks,), bytes for tables on the accelerator of each rank."""
        return np.array([self.pools[pool].memory for pool in self.pool_of], dtype=np.float64)

    @cached_property
    def host(self) -> Floats:
        """(ranks,), bytes for tables in host memory of each rank."""
        return np.array([self.pools[pool].host for pool in self.pool_of], dtype=np.float64)

    def ranks_of(self, option: ShardingOption) -> int:
        """Returns the number of ranks that a table, or a column shard, is divided over."""
        return {"rank": 1, "node": self.ranks_per_node, "all": self.ranks}[option.span]

    def fullness(self, memory: Floats) -> Floats:
        """Returns (ranks,), the share of each rank's memory for tables that is in use."""
        return memory / np.maximum(self.memory, 1)
