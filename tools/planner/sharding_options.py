"""Sharding options of a table: sharding type, kernel, and what a shard of it costs and takes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from msrec.tools.planner.tables import Sharding

Span = Literal["rank", "node", "all"]
SPAN: dict[Sharding, Span] = {
    "table_wise": "rank",
    "column_wise": "rank",
    "table_row_wise": "node",
    "row_wise": "all",
    "data_parallel": "all",
}
"""Ranks that a table is divided over: one, those of a node, or all. The column shards of a
column-wise table are placed independently, each on one rank."""
COST_PARTS = ("fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms")
RANK_PARTS = (*COST_PARTS, "latency")
"""Parts of a rank's step: those of its shards, and the latency that shards share."""


@dataclass(frozen=True)
class ShardCost:
    """Estimated milliseconds of a shard in one step."""

    fwd_compute: float = 0.0
    fwd_comms: float = 0.0
    bwd_compute: float = 0.0
    bwd_comms: float = 0.0

    @cached_property
    def total(self) -> float:
        """Sum of all four; TorchRec adds them as if nothing overlapped."""
        return self.fwd_compute + self.fwd_comms + self.bwd_compute + self.bwd_comms


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
        column_shards: number of column shards, each placed independently; 1 unless column-wise.
        shape: rows and columns of a shard.
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

    @property
    def load(self) -> tuple[float, int, int]:
        """Milliseconds, bytes on the accelerator and bytes in host memory of a shard."""
        return self.cost.total, self.memory, self.host


def option_label(sharding: Sharding, kernel: str, load_factor: float | None) -> str:
    """Returns the name of a sharding option for people, such as `row_wise, 20% cached`."""
    if kernel == "fused_uvm":
        return f"{sharding}, in host memory"
    return sharding if load_factor is None else f"{sharding}, {load_factor:.0%} cached"
