"""Sharding options of a table: sharding type, kernel, and what a shard of it costs and takes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from msrec.tools.planner.tables import Sharding

Span = Literal["rank", "node", "all"]
SPAN: dict[Sharding, Span] = {
    "table_wise": "rank",
    "column_wise": "rank",
    "table_column_wise": "rank",
    "table_row_wise": "node",
    "grid_shard": "node",
    "row_wise": "all",
    "data_parallel": "all",
}
"""Ranks that a table, or each of its column shards, is divided over: one, those of a node, or all.
Column shards are placed independently; those of a table-column-wise table on ranks of one node."""
NODE_SHARDINGS = ("table_row_wise", "table_column_wise", "grid_shard")
"""Sharding types that are the same as others if there is one node."""
SEARCHED: tuple[Sharding, ...] = tuple(s for s in SPAN if s != "table_column_wise")
"""Sharding types of a search that names none. A table-column-wise table costs as much as a
column-wise one, with fewer ranks to choose from."""
COST_PARTS = ("fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms")
EXTRA_PARTS = ("sync", "prefetch")
"""Parts that only some plans have: averages of copies, and rows fetched into a cache."""
RANK_PARTS = (*COST_PARTS, *EXTRA_PARTS, "latency")
"""Parts of a rank's step: those of its shards, and the latency that shards share."""


@dataclass(frozen=True)
class ShardCost:
    """Estimated milliseconds of a shard in one step.

    Attributes:
        sync: average of the copies of the tables, divided by the steps between two of them.
        prefetch: rows of the next batch, fetched into the cache while this batch is computed.
    """

    fwd_compute: float = 0.0
    fwd_comms: float = 0.0
    bwd_compute: float = 0.0
    bwd_comms: float = 0.0
    sync: float = 0.0
    prefetch: float = 0.0

    @cached_property
    def total(self) -> float:
        """Sum of all but `prefetch`; TorchRec adds them as if nothing overlapped."""
        parts = (self.fwd_compute, self.fwd_comms, self.bwd_compute, self.bwd_comms, self.sync)
        return sum(parts)

    @cached_property
    def busy(self) -> float:
        """Milliseconds of a rank with this shard alone."""
        return max(self.total, self.prefetch)

    def parts(self) -> dict[str, float]:
        """Returns the milliseconds by part; without the extra parts if they take no time."""
        extra = {part: getattr(self, part) for part in EXTRA_PARTS}
        return {part: getattr(self, part) for part in COST_PARTS} | {
            part: ms for part, ms in extra.items() if ms
        }


class Latency(NamedTuple):
    """Milliseconds that the shards of a group take together, however many they are.

    TorchRec has one collective for all tables of a module with the same sharding type, and one
    kernel for those that also have the same precision and kernel.

    Attributes:
        group: name of the group.
        on_all: whether all ranks take it (a collective) or only those with a shard (a kernel).
    """

    group: tuple[str, ...]
    ms: float
    on_all: bool


@dataclass(frozen=True)
class ShardingOption:
    """Sharding option of one table. All figures are those of its largest shard.

    Attributes:
        kernel: TorchRec's name of the compute kernel.
        column_shards: number of column shards, each placed on its own ranks.
        shape: rows and columns of a shard.
        cost: on a rank of the first pool of GPUs.
        other_costs: on a rank of each other pool.
        weights, state: bytes on the accelerator of values and of optimizer state.
        host: bytes in host memory.
        inputs, outputs: bytes of ids received and of vectors sent in one step.
        load_factor: share of the rows in the accelerator's cache; None without a cache.
        latencies: of the groups that the shard belongs to.
    """

    table: str
    sharding: Sharding
    kernel: str
    column_shards: int
    shape: tuple[int, int]
    cost: ShardCost
    weights: int
    state: int
    host: int
    inputs: int
    outputs: int
    load_factor: float | None = None
    latencies: tuple[Latency, ...] = ()
    other_costs: tuple[ShardCost, ...] = ()

    @property
    def span(self) -> Span:
        """Ranks that the table is divided over."""
        return SPAN[self.sharding]

    @property
    def label(self) -> str:
        """Name of the option for people."""
        return option_label(self.sharding, self.kernel, self.load_factor)

    @cached_property
    def memory(self) -> int:
        """Bytes of a shard on the accelerator. Vectors have two buffers, to send and to receive."""
        return self.weights + self.state + self.inputs + 2 * self.outputs

    def cost_on(self, pool: int) -> ShardCost:
        """Returns the cost of a shard on a rank of a pool."""
        return self.other_costs[pool - 1] if pool else self.cost

    def load_on(self, pool: int) -> tuple[float, int, int, float]:
        """Returns a shard's load of a rank of a pool.

        These are milliseconds, bytes on the accelerator, bytes in host memory, and milliseconds of
        prefetch.
        """
        cost = self.cost_on(pool)
        return cost.total, self.memory, self.host, cost.prefetch


def option_label(sharding: Sharding, kernel: str, load_factor: float | None) -> str:
    """Returns the name of a sharding option for people, such as `row_wise, 20% cached`."""
    if kernel == "fused_uvm":
        return f"{sharding}, in host memory"
    return sharding if load_factor is None else f"{sharding}, {100 * load_factor:g}% cached"
