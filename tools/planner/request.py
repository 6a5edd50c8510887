"""Request for a plan: tables, memory of the dense part, ranks and limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from msrec.launch.reporting.byte_sizes import FLOAT_BYTES
from msrec.tools.planner.costs import Ranks
from msrec.tools.planner.estimator import EstimatorName
from msrec.tools.planner.hardware import Hardware
from msrec.tools.planner.placement import Cluster
from msrec.tools.planner.sharding_options import SPAN
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

    Raises:
        ValueError: nodes, ranks, batch or budget are out of range.
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

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.per_node

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
            return tuple(SPAN)
        is_replicated = self.optimizer == "adam" and self.hardware.device == "cpu"
        return ("data_parallel",) if is_replicated else RUN_SHARDINGS

    @property
    def capacity(self) -> int:
        """Bytes of an accelerator that may be used."""
        memory = self.hardware.memory
        return int(min(memory, self.budget or memory) * (1 - self.headroom))

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
    def ranks(self) -> Ranks:
        """Ranks with their accelerator."""
        return Ranks(self.hardware, self.world_size, self.per_node)

    @property
    def cluster(self) -> Cluster:
        """Ranks, with the memory that is left for tables."""
        memory = self.capacity - sum(self.fixed_memory.values())
        host = self.hardware.host_memory - self.fixed_host
        return Cluster(self.world_size, self.per_node, memory, host)
