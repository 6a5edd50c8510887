"""A plan: sharding and cost of each table, load of each rank; one JSON file with all of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from msrec.data.io.validation import StrictModel
from msrec.tools.planner.hardware import Hardware
from msrec.tools.planner.sharding_options import option_label
from msrec.tools.planner.tables import Sharding

TABLE_MEMORY = ("embedding weights", "optimizer state", "input buffers", "communication buffers")
"""Uses of a rank's memory that depend on the placement of tables."""


def step_of_parts(ms: Mapping[str, float]) -> float:
    """Returns the milliseconds of all parts; prefetch takes place during the others."""
    prefetch = ms.get("prefetch", 0.0)
    return max(sum(ms.values()) - prefetch, prefetch)


class TablePlan(StrictModel):
    """Sharding, cost and memory of a table, and its next best option.

    Units:
        weights, state, host: bytes over all ranks.
        ms: estimated milliseconds of its costliest shard, by part of the step.
        next_way: name of the next best sharding option; None if no other is allowed.
        next_step_ms: the whole step if this table alone had its next best option; None if that
            does not fit.
    """

    name: str
    rows: int
    dim: int
    sharding: Sharding
    kernel: str
    load_factor: float | None
    ranks: list[int]
    weights: int
    state: int
    host: int
    ms: dict[str, float]
    next_way: str | None
    next_step_ms: float | None

    @property
    def total_ms(self) -> float:
        """Milliseconds of the costliest shard, as if nothing but prefetch overlapped."""
        return step_of_parts(self.ms)

    @property
    def size(self) -> int:
        """Bytes of the weights over all ranks, in host memory too."""
        return self.weights + self.host

    @property
    def shard_bytes(self) -> float:
        """Mean bytes of weights and state of a shard on an accelerator."""
        return (self.weights + self.state) / len(self.ranks)

    @property
    def option(self) -> str:
        """Name of the sharding option for people."""
        return option_label(self.sharding, self.kernel, self.load_factor)

    @property
    def next_step(self) -> str:
        """Step time with the next best option, for people; empty if there is none."""
        if self.next_way is None:
            return ""
        return "does not fit" if self.next_step_ms is None else f"{self.next_step_ms:.2f} ms"


class RankLoad(StrictModel):
    """Bytes of a rank by use, and its estimated milliseconds by part of the step."""

    memory: dict[str, int]
    host: int
    ms: dict[str, float]

    @property
    def total_ms(self) -> float:
        """Milliseconds of a step, as if nothing but prefetch overlapped."""
        return step_of_parts(self.ms)

    @property
    def total_memory(self) -> int:
        """Bytes on the accelerator."""
        return sum(self.memory.values())


class PlannedPool(StrictModel):
    """Equal GPUs of a job with different ones; `capacity` is the usable bytes of each."""

    name: str
    specification: Hardware
    ranks: int
    capacity: int


class Plan(StrictModel):
    """Plan as `msrec plan` writes it, and as `msrec train plan=FILE` reads it.

    Attributes:
        modules: the sharding plan, in the format of `msrec.model.distributed.plan_files`.
        hash: of all other fields (see `plan_hash`); the same in every process.
        world_size, nodes, per_node: ranks that share one copy of the tables.
        copies: copies of the tables, each on that many ranks; averaged every `sync_every` steps.
        hardware, specification, capacity: of the first pool, if there are `pools`.
        per_host: ranks of a host, if a node, such as an NVL72 rack, has several hosts.
        batch: rows of a step on one rank.
        capacity: bytes of an accelerator that may be used.
        pools: of different GPUs, one after the other; empty if all GPUs are equal.
    """

    format: int = 1
    world_size: int
    modules: dict[str, dict[str, Any]]
    hash: str
    hardware: str
    specification: Hardware
    nodes: int
    per_node: int
    copies: int = 1
    sync_every: int = 1
    pools: list[PlannedPool] = []
    per_host: int | None = None
    batch: int
    optimizer: str
    estimator: str = "torchrec"
    """Whose estimates of time the plan has; plans without this field are older."""
    capacity: int
    tables: list[TablePlan]
    ranks: list[RankLoad]
    fits: bool

    @property
    def step_ms(self) -> float:
        """Estimated milliseconds of the tables' part of a step, on the critical rank."""
        return max(rank.total_ms for rank in self.ranks)

    @property
    def critical_rank(self) -> int:
        """The rank that the others wait for."""
        return int(np.argmax([rank.total_ms for rank in self.ranks]))

    @property
    def fullest_rank(self) -> int:
        """The rank with the largest share of its memory in use."""
        used = zip(self.ranks, self.capacities, strict=True)
        return int(np.argmax([rank.total_memory / capacity for rank, capacity in used]))

    @property
    def capacities(self) -> list[int]:
        """Bytes that may be used of each rank's accelerator."""
        if not self.pools:
            return [self.capacity] * self.world_size
        return [pool.capacity for pool in self.pools for _ in range(pool.ranks)]

    @property
    def host_capacities(self) -> list[int]:
        """Bytes of host memory of each rank."""
        if not self.pools:
            return [self.specification.host_memory] * self.world_size
        return [pool.specification.host_memory for pool in self.pools for _ in range(pool.ranks)]

    @property
    def ranks_name(self) -> str:
        """Nodes and ranks of a node for people, such as `2 x 8`."""
        if self.pools:
            return " + ".join(f"{p.ranks // self.per_node} x {self.per_node}" for p in self.pools)
        name = f"{self.nodes} x {self.per_node}"
        return name if self.copies == 1 else f"{self.copies} copies of {name}"

    @property
    def cluster_name(self) -> str:
        """Nodes, ranks of a node and GPUs for people, such as `2 x 8 h100`."""
        if not self.pools:
            return f"{self.ranks_name} {self.hardware}"
        nodes = ((pool.ranks // self.per_node, pool.name) for pool in self.pools)
        return " + ".join(f"{number} x {self.per_node} {name}" for number, name in nodes)

    @property
    def peak_memory(self) -> int:
        """Bytes in use on the fullest rank."""
        return self.ranks[self.fullest_rank].total_memory

    @property
    def imbalance(self) -> float:
        """Milliseconds of the critical rank over the mean of all ranks; 1 at best."""
        mean = sum(rank.total_ms for rank in self.ranks) / self.world_size
        return self.step_ms / mean if mean else 1.0

    @property
    def by_cost(self) -> list[TablePlan]:
        """Tables, the costliest first."""
        return sorted(self.tables, key=lambda table: (-table.total_ms, table.name))

    @property
    def groups(self) -> dict[str, list[TablePlan]]:
        """Name -> tables that differ in name and ranks only, the costliest group first."""
        groups: dict[tuple[object, ...], list[TablePlan]] = {}
        for table in self.by_cost:
            size, cost = (table.rows, table.dim), (table.total_ms, table.next_way)
            groups.setdefault((size, table.option, table.kernel, cost), []).append(table)
        return {
            group[0].name + (f" and {len(group) - 1} like it" if len(group) > 1 else ""): group
            for group in groups.values()
        }
