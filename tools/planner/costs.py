"""Estimated milliseconds of a shard: bytes over bandwidths, inside a node and between nodes.

Bytes are those that FBGEMM's kernels read and write and that NCCL's collectives send. TorchRec
returns float32 vectors for every precision, so vectors and their gradients count 4 bytes a value,
unless communication is quantised.
The distribution of ids is left out: TorchRec's pipeline overlaps it with the step before.

Source:
    Penalties of narrow vectors, of random rows of host memory and of a dense optimizer are the
    measured constants of TorchRec's planner (torchrec.distributed.planner.constants). Latencies of
    collectives are those of the ring in NCCL's tuning.cc.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from msrec.launch.reporting.byte_sizes import FLOAT_BYTES, HALF_BYTES
from msrec.tools.planner.hardware import Hardware
from msrec.tools.planner.sharding_options import Latency, ShardCost
from msrec.tools.planner.tables import Comms, Kernel, Optimizer, Sharding, TableLoad

ID_BYTES = 8
WEIGHT_BYTES = 4
WARP_COLUMNS = 128
"""Columns that a warp reads at once: 32 threads with 4 values each."""
PADDED_WIDTHS = ((32, 32 * 1.75), (64, 64 * 1.15), (128, 128.0))
"""Columns up to which a warp works as long as on that many; TorchRec's penalties of a quarter and
of a half block."""
SORT_PASSES = 5
"""Times that the backward kernel reads or writes each id while it sorts them."""
RANDOM_HOST_SHARE = 0.1
"""Share of the link's bandwidth that single rows of host memory reach."""
DENSE_OPTIMIZER_PASSES = 9.22
"""Times that a dense optimizer reads or writes a whole table."""
FORWARD_KERNELS, BACKWARD_KERNELS = 1, 10
"""Kernels that FBGEMM starts for a group of tables; backward sorts the ids first."""


@dataclass(frozen=True)
class Ranks:
    """Ranks of a job and their accelerator; turns bytes into milliseconds.

    Attributes:
        world, per_node: all ranks, and those of a node.
    """

    hardware: Hardware
    world: int
    per_node: int

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.world // self.per_node

    def all_to_all(self, num_bytes: float) -> float:
        """Returns the time of an all-to-all in which a rank sends `num_bytes`, some to itself.

        A rank's link in the node and its network card work at the same time; the slower one counts.
        """
        inside = num_bytes * (self.per_node - 1) / self.world
        between = num_bytes * (self.world - self.per_node) / self.world
        return max(self._ms(inside, self._intra), self._ms(between, self._inter))

    def ring(self, num_bytes: float) -> float:
        """Returns the time of a reduce-scatter or an all-gather of `num_bytes` over all ranks.

        The ring passes every byte but a rank's own share on once. Between nodes it uses all network
        cards of a node.
        """
        slowest = self._intra
        if self.nodes > 1:
            slowest = min(slowest, self._inter * self.per_node)
        return self._ms(num_bytes * (self.world - 1) / self.world, slowest)

    def node_then_nodes(self, num_bytes: float) -> float:
        """Returns the time of a reduce-scatter in each node, and an all-to-all between nodes.

        The gradient's all-to-all and all-gather take as long.
        """
        inside = self._ms(num_bytes * (self.per_node - 1) / self.per_node, self._intra)
        share = num_bytes / self.per_node
        return inside + self._ms(share * (self.nodes - 1) / self.nodes, self._inter)

    def memory(self, num_bytes: float) -> float:
        """Returns the time to read or write bytes of the accelerator's memory."""
        return self._ms(num_bytes, self.hardware.memory_gb_s)

    def host_rows(self, num_bytes: float) -> float:
        """Returns the time to read or write single rows of host memory."""
        return self._ms(num_bytes, self.hardware.host_link_gb_s * RANDOM_HOST_SHARE)

    @property
    def _intra(self) -> float:
        return self.hardware.intra_node_gb_s

    @property
    def _inter(self) -> float:
        return self.hardware.inter_node_gb_s

    @staticmethod
    def _ms(num_bytes: float, gb_s: float) -> float:
        return num_bytes / (gb_s * 1e6)

    def latencies(self, table: TableLoad, sharding: Sharding, kernel: str) -> tuple[Latency, ...]:
        """Returns the latencies that a shard shares with others of its module and sharding type."""
        hardware, group = self.hardware, (table.module, sharding)
        collectives = 2 * self._collective_us(sharding, table.kind == "sequence")
        if table.frozen:
            collectives, kernels = collectives / 2, FORWARD_KERNELS
        else:
            kernels = FORWARD_KERNELS + BACKWARD_KERNELS
        of_kernel = (*group, kernel, table.precision, str(table.weighted))
        return (
            Latency(group, collectives / 1e3, on_all=True),
            Latency(of_kernel, kernels * hardware.kernel_us / 1e3, on_all=False),
        )

    def _collective_us(self, sharding: Sharding, is_sequence: bool) -> float:
        """Returns the latency of the collectives of one direction, forward or backward."""
        hop, net, start = (
            self.hardware.node_hop_us,
            self.hardware.network_hop_us,
            self.hardware.collective_us,
        )
        if sharding == "data_parallel" or self.world == 1:
            return 0.0  # its gradients are in DDP's buckets, with those of the dense part
        direct = start + (net if self.nodes > 1 else hop)
        if sharding == "table_row_wise":
            ring = start + (self.per_node - 1) * hop
            return ring + (start + net if self.nodes > 1 else 0.0)
        if sharding == "row_wise" and not is_sequence:
            return start + (self.world - self.nodes) * hop + (self.nodes - 1) * net
        return direct


def shard_cost(
    ranks: Ranks,
    table: TableLoad,
    sharding: Sharding,
    kernel: Kernel,
    hit_rate: float | None,
    shape: tuple[int, int],
    batch: int,
    optimizer: Optimizer,
    comms: Comms,
) -> ShardCost:
    """Returns the estimated milliseconds of a shard in one step, without latency.

    Args:
        ranks: of the job.
        table: with its lookups.
        sharding: sharding type.
        kernel: compute kernel of a sharded table.
        hit_rate: share of lookups that find their row in the accelerator's cache; None without one.
        shape: rows and columns of the shard.
        batch: rows of a step on one rank.
        optimizer: of the table.
        comms: type in which vectors are sent.
    """
    rows, columns = shape
    ids, vectors = lookups(ranks, table, sharding, batch)
    width = kernel_width(columns) / columns * table.row_bytes(columns)
    made = vectors * columns * FLOAT_BYTES
    sent = made if comms == "fp32" else made * HALF_BYTES / FLOAT_BYTES
    distinct = rows * -math.expm1(-ids / rows)

    def row_ms(number: float) -> float:
        """Returns the time to read or write a number of rows, wherever they are."""
        if kernel == "fused":
            return ranks.memory(number * width)
        hits = 0.0 if hit_rate is None else hit_rate
        return ranks.memory(number * hits * width) + ranks.host_rows(number * (1 - hits) * width)

    of_ids = ids * (ID_BYTES + (WEIGHT_BYTES if table.weighted else 0))
    forward = row_ms(ids) + ranks.memory(of_ids + made)
    send = _sending(ranks, table, sharding)
    if table.frozen:
        return ShardCost(forward, send(sent))
    if sharding == "data_parallel":
        size = rows * columns * FLOAT_BYTES
        update = ranks.memory(made + ids * width + size * DENSE_OPTIMIZER_PASSES)
        return ShardCost(forward, 0.0, update, 2 * ranks.ring(size))
    state = FLOAT_BYTES * (1 if optimizer == "rowwise_adagrad" else 2 * columns)
    sort = SORT_PASSES * ids * ID_BYTES
    update = 2 * row_ms(distinct) + ranks.memory(made + sort + 2 * distinct * state)
    if table.weighted:
        update += row_ms(ids)  # the gradient of each weight reads its row again
    return ShardCost(forward, send(sent), update, send(sent))


def lookups(ranks: Ranks, table: TableLoad, sharding: Sharding, batch: int) -> tuple[float, float]:
    """Returns the ids that a shard looks up in one step, and the vectors that it makes.

    A shard has the ids of its rows from the batches of all ranks. It makes a vector of each bag of
    these batches, a partial sum if rows are divided, or, for sequences, a vector of each id.
    """
    batches = 1 if sharding == "data_parallel" else ranks.world
    parts = {"row_wise": ranks.world, "table_row_wise": ranks.per_node}.get(sharding, 1)
    rows = (table.batch or batch) * batches * table.features
    # An empty bag has a vector too, and the kernel writes it.
    ids = rows * max(table.pooling, table.bags) / parts
    return ids, ids if table.kind == "sequence" else rows * table.bags


def kernel_width(columns: int) -> float:
    """Returns the columns of a full warp that take as long as `columns` of a row.

    Example:
        >>> [kernel_width(columns) for columns in (16, 64, 128, 192, 256)]
        [56.0, 73.6, 128.0, 201.6, 256.0]
    """
    whole, rest = divmod(columns, WARP_COLUMNS)
    padded = next(width for limit, width in PADDED_WIDTHS if rest <= limit) if rest else 0.0
    return whole * WARP_COLUMNS + padded


def _sending(ranks: Ranks, table: TableLoad, sharding: Sharding) -> Callable[[float], float]:
    """Returns the time of the vectors' collective, by bytes."""
    if sharding == "table_row_wise" and table.kind == "pooled":
        return ranks.node_then_nodes
    if sharding == "row_wise" and table.kind == "pooled":
        return ranks.ring
    return ranks.all_to_all
