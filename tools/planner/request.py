"""Request for a plan: tables, memory of the dense part, ranks and limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from msrec.launch.reporting.byte_sizes import FLOAT_BYTES
from msrec.tools.planner.cluster import Cluster, Pool
from msrec.tools.planner.costs import Ranks
from msrec.tools.planner.estimator import EstimatorName
from msrec.tools.planner.hardware import Hardware
from msrec.tools.planner.sharding_options import SEARCHED
from msrec.tools.planner.tables import RUN_SHARDINGS, Comms, Optimizer, Sharding, TableLoad

if TYPE_CHECKING:  # it needs torch, which a list of tables does not
    from msrec.launch.config.run_config import RunConfig

MAX_NODES, MAX_PER_NODE, MAX_BATCH = 4096, 576, 1 << 24
"""Limits of a request; NVLink 5 connects at most 576 GPUs."""


class LinearBytes(NamedTuple):
    """Bytes that grow with the rows of a rank's batch."""

    at_zero: float = 0.0
    per_row: float = 0.0

    def at(self, rows: int) -> float:
        """Returns the bytes for a batch of `rows`."""
        return self.at_zero + self.per_row * rows


@dataclass(frozen=True)
class DenseMemory:
    """Bytes on every rank besides the tables, by use.

    Attributes:
        fixed: use -> bytes that do not depend on the batch.
        by_rows: use -> bytes that grow with the rows of a rank's batch.
        reading: bytes of rows that are read and shuffled, in host memory.
    """

    fixed: Mapping[str, int] = field(default_factory=dict)
    by_rows: Mapping[str, LinearBytes] = field(default_factory=dict)
    reading: LinearBytes = LinearBytes()

    def at(self, rows: int) -> dict[str, int]:
        """Returns use -> bytes for a batch of `rows`, without `reading`."""
        growing = {use: int(max(line.at(rows), 0)) for use, line in self.by_rows.items()}
        return {**self.fixed, **growing}


def adam_memory(parameters: int) -> dict[str, int]:
    """Returns the bytes that training with Adam takes in addition to dense parameters, by use."""
    size = parameters * FLOAT_BYTES
    return {"their gradients": size, "Adam's state": 2 * size}


class GpuPool(NamedTuple):
    """Equal GPUs of a job: name and figures of the GPU, number of ranks in whole nodes."""

    name: str
    hardware: Hardware
    ranks: int


SLOWEST = {
    "intra_node_gb_s": min,
    "inter_node_gb_s": min,
    "collective_us": max,
    "node_hop_us": max,
    "network_hop_us": max,
}
"""Figures of the links between ranks, and which of several pools' counts in all collectives."""


@dataclass(frozen=True)
class PlanRequest:
    """Tables to place, the ranks to place them on, and limits.

    Attributes:
        batch: rows of a step on one rank; None divides the config's global batch among the ranks.
        comms: type in which ranks send each other vectors.
        shardings: allowed sharding types; None allows `RUN_SHARDINGS` if there is a config, else
            all.
        load_factors: shares of a table's rows to cache, if tables may be in host memory.
        dense: memory on every rank besides the tables.
        budget: most bytes of an accelerator to use; None is all of it.
        headroom: share of the memory left to the allocator and to what no estimate covers.
        config: of a run; None for a list of tables.
        estimator: whose estimates of time the search minimises.
        notes: sentences on what was assumed, printed with the plan.
        group_ranks: consecutive ranks that share one copy of the tables; None is all. The plan is
            for the ranks of one group.
        sync_every: steps between two averages of the copies.
        pools: of different GPUs, one after the other; empty for `nodes` of `hardware`. With pools,
            `hardware` is that of the first one and `nodes` counts those of all.

    Raises:
        ValueError: nodes, ranks, batch or budget are out of range, or groups or pools do not match
            the ranks.
    """

    tables: Sequence[TableLoad]
    batch: int | None
    hardware_name: str
    hardware: Hardware
    nodes: int
    per_node: int
    optimizer: Optimizer = "rowwise_adagrad"
    comms: Comms = "fp32"
    shardings: Sequence[Sharding] | None = None
    load_factors: Sequence[float] = ()
    dense: DenseMemory = DenseMemory()
    budget: int | None = None
    headroom: float = 0.05
    config: "RunConfig | None" = None
    estimator: EstimatorName = "msrec"
    notes: Sequence[str] = ()
    group_ranks: int | None = None
    sync_every: int = 1
    pools: Sequence[GpuPool] = ()

    def __post_init__(self) -> None:
        batch = 1 if self.batch is None else self.batch
        for name, value, largest in (
            ("nodes", self.nodes, MAX_NODES),
            ("ranks per node", self.per_node, MAX_PER_NODE),
            ("rows of a step on one rank", batch, MAX_BATCH),
        ):
            if not 1 <= value <= largest:
                raise ValueError(f"{name} must be from 1 to {largest:,}; got {value:,}.")
        host = self.hardware.ranks_per_host(self.per_node)
        if self.per_node % host:
            raise ValueError(
                f"ranks per node must be whole hosts of {host} {self.hardware_name}; got "
                f"{self.per_node}."
            )
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"the memory to use must be above 0 GiB; got {self.budget} bytes.")
        self._check_groups()
        self._check_pools()

    def _check_groups(self) -> None:
        group = self.group_ranks
        if group is None or group == self.world_size:
            return
        small, large = sorted((group, self.per_node)) if group > 0 else (1, 1)
        if group < 1 or self.world_size % group or large % small:
            raise ValueError(
                f"the ranks of a group must divide the {self.world_size} ranks, and be a multiple "
                f"or a divisor of the {self.per_node} ranks of a node; got {group}."
            )
        if self.pools:
            raise ValueError("groups of ranks must have equal GPUs; use one pool.")
        if self.load_factors or any(table.kernel not in (None, "fused") for table in self.tables):
            raise ValueError(
                f"with groups of {group} ranks every table must have the kernel fused, because "
                "copies in host memory are not averaged; do not ask for a cache or for host memory."
            )

    def _check_pools(self) -> None:
        kinds = {pool.hardware.device for pool in self.pools}
        if len(kinds) > 1:
            raise ValueError(
                f"all pools must be GPUs, or all CPUs; got {', '.join(p.name for p in self.pools)}."
            )
        for pool in self.pools:
            if pool.ranks < 1 or pool.ranks % self.per_node:
                raise ValueError(
                    f"a pool must have whole nodes of {self.per_node} ranks; {pool.name} has "
                    f"{pool.ranks}. Change it, or --gpus-per-node."
                )
        total = sum(pool.ranks for pool in self.pools)
        if self.pools and total != self.world_size:
            raise ValueError(
                f"the pools must have all ranks of the job; they have {total:,}, and {self.nodes} "
                f"nodes of {self.per_node} have {self.world_size:,}."
            )

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.per_node

    @property
    def table_ranks(self) -> int:
        """Number of ranks that share one copy of the tables."""
        return self.group_ranks or self.world_size

    @property
    def table_per_node(self) -> int:
        """Number of ranks of a node that share one copy of the tables."""
        return min(self.per_node, self.table_ranks)

    @property
    def copies(self) -> int:
        """Number of copies of the tables."""
        return self.world_size // self.table_ranks

    @property
    def rows_per_rank(self) -> int:
        """Rows of a step on one rank."""
        if self.batch is not None:
            return self.batch
        assert self.config is not None, "a list of tables comes with a batch"
        return max(self.config.trainer.global_batch // self.world_size, 1)

    @property
    def allowed_shardings(self) -> Sequence[Sharding]:
        """Sharding types allowed for tables that do not name their own."""
        if self.shardings is not None:
            return self.shardings
        if self.config is None:
            # Copies of a group are averaged by their kernels, which a replicated table lacks.
            return tuple(s for s in SEARCHED if self.copies == 1 or s != "data_parallel")
        is_replicated = self.optimizer == "adam" and self.hardware.device == "cpu"
        return ("data_parallel",) if is_replicated else RUN_SHARDINGS

    @property
    def gpu_pools(self) -> Sequence[GpuPool]:
        """Pools of the ranks that share the tables, one or more."""
        return self.pools or [GpuPool(self.hardware_name, self.hardware, self.table_ranks)]

    def capacity_of(self, hardware: Hardware) -> int:
        """Returns the bytes of an accelerator that may be used."""
        memory = hardware.memory
        return int(min(memory, self.budget or memory) * (1 - self.headroom))

    @property
    def capacity(self) -> int:
        """Bytes of an accelerator (of the first pool) that may be used."""
        return self.capacity_of(self.hardware)

    @property
    def fixed_memory(self) -> dict[str, int]:
        """Bytes of an accelerator that do not depend on the placement, by use."""
        memory = self.dense.at(self.rows_per_rank)
        if self.hardware.device == "cpu":
            memory["rows being read"] = int(self.dense.reading.at(self.rows_per_rank))
        return memory

    @property
    def fixed_host(self) -> int:
        """Bytes of host memory that do not depend on the placement; 0 on CPU."""
        on_cpu = self.hardware.device == "cpu"
        return 0 if on_cpu else int(self.dense.reading.at(self.rows_per_rank))

    @property
    def ranks(self) -> list[Ranks]:
        """Ranks that share the tables, with the accelerator of each pool.

        All pools have the links of the slowest one, because a collective waits for it.
        """
        figures = [pool.hardware for pool in self.gpu_pools]
        links = {name: of(getattr(h, name) for h in figures) for name, of in SLOWEST.items()}
        replicas = None
        if self.copies > 1:
            # Ranks of a node that have the same shard of different copies.
            beside = self.per_node // self.table_per_node
            replicas = Ranks(self.hardware, self.copies, beside)
        return [
            Ranks(
                hardware.model_copy(update=links),
                self.table_ranks,
                self.table_per_node,
                replicas,
                self.sync_every,
            )
            for hardware in figures
        ]

    @property
    def cluster(self) -> Cluster:
        """Ranks that share the tables, with the memory that is left for these."""
        fixed, fixed_host = sum(self.fixed_memory.values()), self.fixed_host
        pools = [
            Pool(
                ranks=pool.ranks,
                memory=self.capacity_of(pool.hardware) - fixed,
                host=pool.hardware.host_memory - fixed_host,
            )
            for pool in self.gpu_pools
        ]
        return Cluster(self.table_per_node, tuple(pools))
