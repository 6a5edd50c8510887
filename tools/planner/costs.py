"""Estimated milliseconds of a shard: bytes over bandwidths, inside a node and between nodes.

Bytes are those that FBGEMM's kernels read and write and that NCCL's collectives send. TorchRec
returns float32 vectors for every precision, so vectors and their gradients count 4 bytes a value,
unless communication is quantised. Ids that are not equally popular have fewer distinct rows.
The distribution of ids is left out: TorchRec's pipeline overlaps it with the step before.

Source:
    Penalties of narrow vectors, of random rows of host memory and of a dense optimizer are the
    measured constants of TorchRec's planner (torchrec.distributed.planner.constants). Latencies of
    collectives are those of the ring in NCCL's tuning.cc.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from msrec.launch.reporting.byte_sizes import FLOAT_BYTES, HALF_BYTES
from msrec.tools.planner.hardware import Hardware
from msrec.tools.planner.popularity import Popularity
from msrec.tools.planner.sharding_options import Latency, ShardCost
from msrec.tools.planner.tables import (
    CachePolicy,
    Comms,
    Kernel,
    Optimizer,
    Sharding,
    TableLoad,
)

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
FORWARD_KERNELS, BACKWARD_KERNELS, CACHE_KERNELS = 1, 10, 10
"""Kernels that FBGEMM starts for a group of tables; backward and a cache sort the ids first."""
SLOT_BYTES = 4
"""Bytes of an id's slot in the cache; it is written once, and read by the lookup and the update."""


@dataclass(frozen=True)
class Ranks:
    """Ranks of a job and their accelerator; turns bytes into milliseconds.

    Attributes:
        world, per_node: ranks that share the tables, and those of them on a node.
        replicas: ranks with the same shard in all copies of the tables; None with one copy.
        sync_every: steps between two averages of the copies.
    """

    hardware: Hardware
    world: int
    per_node: int
    replicas: "Ranks | None" = None
    sync_every: int = 1

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

    def sync(self, num_bytes: float) -> float:
        """Returns the time to average `num_bytes` of all copies, divided by `sync_every`.

        An all-reduce is twice around the ring; the sum is then read and divided.
        """
        if self.replicas is None:
            return 0.0
        return (2 * self.replicas.ring(num_bytes) + self.memory(2 * num_bytes)) / self.sync_every

    def memory(self, num_bytes: float) -> float:
        """Returns the time to read or write bytes of the accelerator's memory."""
        return self._ms(num_bytes, self.hardware.memory_gb_s)

    def host_rows(self, num_bytes: float) -> float:
        """Returns the time to read or write single rows of host memory."""
        return self._ms(num_bytes, self.hardware.host_link_gb_s * RANDOM_HOST_SHARE)

    def host_link(self, num_bytes: float) -> float:
        """Returns the time to copy rows between the accelerator's cache and host memory."""
        return self._ms(num_bytes, self.hardware.host_link_gb_s)

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
        if kernel == "fused_uvm_caching":
            kernels += CACHE_KERNELS
        of_kernel = (*group, kernel, table.precision, str(table.weighted))
        shared = (
            Latency(group, collectives / 1e3, on_all=True),
            Latency(of_kernel, kernels * hardware.kernel_us / 1e3, on_all=False),
        )
        if self.replicas is None or table.frozen:
            return shared
        ring_us = 2 * self.replicas._collective_us("row_wise", is_sequence=False)
        return (*shared, Latency(("sync",), ring_us / self.sync_every / 1e3, on_all=True))

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
        if sharding in ("table_row_wise", "grid_shard"):
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
    load_factor: float | None,
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
        load_factor: share of rows that the accelerator's cache holds; None without one.
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
    popularity = table.popularity.divided(_row_parts(ranks, sharding))
    distinct = popularity.distinct(ids)
    direct = _host_access(popularity, ids, rows, kernel, load_factor, table.cache)

    def row_ms(number: float, in_host: float) -> float:
        """Returns the time to read or write rows, some of them in host memory."""
        return ranks.memory((number - in_host) * width) + ranks.host_rows(in_host * width)

    of_ids = ids * (ID_BYTES + (WEIGHT_BYTES if table.weighted else 0))
    if load_factor is not None:
        of_ids += ids * (SORT_PASSES * ID_BYTES + 3 * SLOT_BYTES)
    forward = row_ms(ids, direct.lookups) + ranks.memory(of_ids + made)
    send = _sending(ranks, table, sharding)
    # A row that comes into the cache takes the place of another one, which goes back unless it is
    # read only.
    prefetch = ranks.host_link(direct.fetched * table.row_bytes(columns) * (2 - table.frozen))
    if table.frozen:
        return ShardCost(forward, send(sent), prefetch=prefetch)
    if sharding == "data_parallel":
        size = rows * columns * FLOAT_BYTES
        update = ranks.memory(made + ids * width + size * DENSE_OPTIMIZER_PASSES)
        return ShardCost(forward, 0.0, update, 2 * ranks.ring(size))
    state = FLOAT_BYTES * (1 if optimizer == "rowwise_adagrad" else 2 * columns)
    sort = SORT_PASSES * ids * ID_BYTES
    update = 2 * row_ms(distinct, direct.rows) + ranks.memory(made + sort)
    # FBGEMM has a number per row on the accelerator, and larger state beside the rows.
    is_beside = kernel != "fused" and optimizer == "adam"
    update += (ranks.host_rows if is_beside else ranks.memory)(2 * distinct * state)
    if table.weighted:
        update += row_ms(ids, direct.lookups)  # the gradient of a weight reads its row again
    averaged = rows * (table.row_bytes(columns) + state)
    sync = ranks.sync(averaged)
    return ShardCost(forward, send(sent), update, send(sent), sync, prefetch)


class _HostAccess(NamedTuple):
    """Rows of host memory in a step: looked up there, updated there, fetched into the cache."""

    lookups: float = 0.0
    rows: float = 0.0
    fetched: float = 0.0


def _host_access(
    popularity: Popularity,
    ids: float,
    rows: int,
    kernel: Kernel,
    load_factor: float | None,
    cache: CachePolicy,
) -> _HostAccess:
    """Returns the rows of host memory that a shard of `rows` reads and updates in one step."""
    if kernel == "fused":
        return _HostAccess()
    distinct = popularity.distinct(ids)
    if load_factor is None:
        return _HostAccess(ids, distinct)
    slots = load_factor * rows
    if cache == "lfu":  # a row that is not among the most popular ones is never fetched
        missed, lookups = popularity.lfu_misses(ids, slots)
        return _HostAccess(lookups, missed)
    # While a batch is computed, the rows of the next one have slots too. Rare rows that find none
    # are read where they are.
    left_over = min(max(popularity.distinct(2 * ids) - slots, 0.0), distinct)
    fetched = max(popularity.lru_misses(ids, slots) - left_over, 0.0)
    return _HostAccess(left_over, left_over, fetched)


def lookups(ranks: Ranks, table: TableLoad, sharding: Sharding, batch: int) -> tuple[float, float]:
    """Returns the ids that a shard looks up in one step, and the vectors that it makes.

    A shard has the ids of its rows from the batches of all ranks. It makes a vector of each bag of
    these batches, a partial sum if rows are divided, or, for sequences, a vector of each id.
    """
    batches = 1 if sharding == "data_parallel" else ranks.world
    rows = (table.batch or batch) * batches * table.features
    # An empty bag has a vector too, and the kernel writes it.
    ids = rows * max(table.pooling, table.bags) / _row_parts(ranks, sharding)
    return ids, ids if table.kind == "sequence" else rows * table.bags


def _row_parts(ranks: Ranks, sharding: Sharding) -> int:
    """Returns the number of shards that the rows of a table are divided into."""
    if sharding == "row_wise":
        return ranks.world
    return ranks.per_node if sharding in ("table_row_wise", "grid_shard") else 1


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
    if sharding in ("table_row_wise", "grid_shard") and table.kind == "pooled":
        return ranks.node_then_nodes
    if sharding == "row_wise" and table.kind == "pooled":
        return ranks.ring
    return ranks.all_to_all
