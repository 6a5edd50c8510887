"""The ways to place a table, and what a shard of each costs by TorchRec's estimators."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner.enumerators import get_partition_by_type
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator
from torchrec.distributed.planner.types import Shard, ShardingOption, Topology
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets
from torchrec.distributed.types import CacheParams
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from msrec.tools.planner.tables import BYTES, Kernel, Sharding, TableLoad

Span = Literal["rank", "node", "all"]
SPAN: dict[Sharding, Span] = {
    "table_wise": "rank",
    "column_wise": "rank",
    "table_row_wise": "node",
    "row_wise": "all",
    "data_parallel": "all",
}
"""Over what the shards of a table lie; a column-wise table's pieces lie on one rank each."""
ID_BYTES = 8
CACHED = 0.2
"""Share of the rows in the cache of a table for which only its kernel is asked."""


@dataclass(frozen=True)
class Cost:
    """Milliseconds of a step, estimated."""

    fwd_compute: float = 0.0
    fwd_comms: float = 0.0
    bwd_compute: float = 0.0
    bwd_comms: float = 0.0

    @cached_property
    def total(self) -> float:
        """Of all four; TorchRec adds them as if nothing overlapped."""
        return self.fwd_compute + self.fwd_comms + self.bwd_compute + self.bwd_comms


@dataclass(frozen=True)
class Option:
    """One way to place a table. Every figure is of its largest shard.

    Attributes:
        pieces: shards that are placed each for itself (columns); 1 otherwise.
        shape: rows and columns of a shard.
        weights, state: bytes on the accelerator of values and of optimizer state.
        host: bytes in host memory.
        inputs, outputs: bytes of ids that come in and of vectors that go out in a step.
    """

    table: str
    sharding: Sharding
    kernel: str
    pieces: int
    shape: tuple[int, int]
    cost: Cost
    weights: int
    state: int
    host: int
    inputs: int
    outputs: int
    load_factor: float | None = None

    @property
    def span(self) -> Span:
        """Over what its shards lie."""
        return SPAN[self.sharding]

    @cached_property
    def memory(self) -> int:
        """Bytes that a shard takes on the accelerator, its buffers included.

        Of the vectors that go out there are two copies, for what is sent and what has come back.
        """
        return self.weights + self.state + self.inputs + 2 * self.outputs


def way_name(sharding: Sharding, kernel: str, load_factor: float | None) -> str:
    """A way as people read it, and what is cached where the table lies in host memory."""
    if kernel == "fused_uvm":
        return f"{sharding}, in host memory"
    return sharding if load_factor is None else f"{sharding}, {load_factor:.0%} cached"


class Estimator:
    """Options of tables on a topology, the same for all tables that are alike.

    Args:
        topology: of the ranks.
        batch: rows of a step on one rank.
        optimizer: of the tables.
    """

    def __init__(self, topology: Topology, batch: int, optimizer: str) -> None:
        self._topology, self._batch, self._optimizer = topology, batch, optimizer
        sharder = EmbeddingBagCollectionSharder()
        key = sharder_name(sharder.module_type)
        self._sharders = build_sharder_data_map({key: sharder})
        self._constraints: dict[str, ParameterConstraints] = {}
        # One for all tables: each that is made writes the whole topology into a log.
        self._perf = EmbeddingPerfEstimator(topology, self._constraints)
        self._alike: dict[tuple[object, ...], Option | None] = {}

    def option(
        self,
        table: TableLoad,
        collection: EmbeddingBagCollection,
        sharding: Sharding,
        kernel: Kernel = "fused",
        load_factor: float | None = None,
    ) -> Option | None:
        """One way to place a table; None where it is another one's (too few rows or columns).

        Args:
            table: which.
            collection: the module that has it, on the meta device.
            sharding: how.
            kernel: where it lives.
            load_factor: with fused_uvm_caching, the share of rows whose values are cached on the
                accelerator.
        """
        alike = (
            *(table.rows, table.dim, table.pooling, table.features, table.precision),
            *(sharding, kernel, load_factor),
        )
        if alike not in self._alike:
            self._alike[alike] = self._estimate(table, collection, sharding, kernel, load_factor)
        found = self._alike[alike]
        if found is None or found.table == table.name:
            return found
        return replace(found, table=table.name)

    def _estimate(
        self,
        table: TableLoad,
        collection: EmbeddingBagCollection,
        sharding: Sharding,
        kernel: Kernel,
        load_factor: float | None,
    ) -> Option | None:
        world, local = self._topology.world_size, self._topology.local_world_size
        if (sharding == "table_row_wise" and world == local) or (
            sharding in ("row_wise", "table_row_wise") and table.rows < world
        ):
            return None
        weight = collection.embedding_bags[table.name].weight
        sizes, offsets = calculate_shard_sizes_and_offsets(weight, world, local, sharding)
        pieces = len(sizes) if sharding == "column_wise" else 1
        if sharding == "column_wise" and pieces < 2:
            return None
        ran = "dense" if sharding == "data_parallel" else kernel
        option = ShardingOption(
            name=table.name,
            tensor=weight,
            module=("", collection),
            input_lengths=[table.pooling] * table.features,
            batch_size=self._batch,
            sharding_type=sharding,
            partition_by=get_partition_by_type(sharding),
            compute_kernel=ran,
            shards=[Shard(size=sizes[0], offset=offsets[0])],
            cache_params=None if load_factor is None else CacheParams(load_factor=load_factor),
            is_pooled=True,
        )
        self._constraints[table.name] = ParameterConstraints(pooling_factors=option.input_lengths)
        self._perf.estimate([option], self._sharders)
        perf = option.shards[0].perf
        assert perf is not None, "the estimator sets it"
        rows, columns = sizes[0]
        return Option(
            table=table.name,
            sharding=sharding,
            kernel=ran,
            pieces=pieces,
            shape=(rows, columns),
            cost=Cost(perf.fwd_compute, perf.fwd_comms, perf.bwd_compute, perf.bwd_comms),
            load_factor=load_factor,
            **self._bytes(table, sharding, rows, columns, kernel, load_factor),
        )

    def _bytes(
        self,
        table: TableLoad,
        sharding: Sharding,
        rows: int,
        columns: int,
        kernel: Kernel,
        cached: float | None,
    ) -> dict[str, int]:
        """Weights, state, host memory and buffers of a shard.

        A shard holds the ids of its rows for the batches of all ranks, and makes vectors for all
        of them: whole ones if it has whole rows, partial sums if a table's rows are divided.
        """
        world, local = self._topology.world_size, self._topology.local_world_size
        weights = rows * columns * BYTES[table.precision]
        # Row-wise Adagrad keeps one number a row, Adam two for each value.
        state = rows * 4 * (1 if self._optimizer == "rowwise_adagrad" else 2 * columns)
        ids = self._batch * world * table.lookups
        parts = {"row_wise": world, "table_row_wise": local, "data_parallel": world}
        of_ranks = 1 if sharding == "data_parallel" else world
        outputs = self._batch * of_ranks * table.features * columns * 4
        inputs = ID_BYTES * ids / parts.get(sharding, 1)
        host = 0
        if kernel == "fused_uvm":
            host, weights = weights, 0
        elif cached is not None:
            # FBGEMM keeps 4 bytes a row and 16 a cache slot to know what is cached.
            host, weights = weights, int(weights * cached) + int(rows * (4 + 16 * cached))
        if host and self._optimizer != "rowwise_adagrad":
            # FBGEMM keeps one number a row on the accelerator, and larger states beside the values.
            host, state = host + state, 0
        if sharding == "data_parallel":
            state += weights  # its gradient is dense, and as large as the table
        return {
            "weights": weights,
            "state": state,
            "host": host,
            "inputs": int(inputs),
            "outputs": int(outputs),
        }


def options_of(
    tables: Sequence[TableLoad],
    collection: EmbeddingBagCollection,
    estimator: Estimator,
    shardings: Sequence[Sharding],
    load_factors: Sequence[float] = (),
) -> dict[str, list[Option]]:
    """Table -> the ways to place it.

    Args:
        tables: which.
        collection: the module that has them, on the meta device.
        estimator: of the costs.
        shardings: that are allowed.
        load_factors: of the cache, where tables may lie in host memory.
    """
    found: dict[str, list[Option]] = {}
    for table in tables:
        allowed = shardings if table.sharding is None else [table.sharding]
        ways = [
            estimator.option(table, collection, sharding, kernel, factor)
            for kernel, factor in _kernels(table, load_factors)
            for sharding in allowed
            if sharding != "data_parallel" or (kernel == "fused" and table.kernel is None)
        ]
        found[table.name] = [way for way in ways if way is not None]
    return found


def _kernels(table: TableLoad, load_factors: Sequence[float]) -> list[tuple[Kernel, float | None]]:
    """Where a table may live, with the share that is cached."""
    factors = load_factors or ([CACHED] if table.kernel == "fused_uvm_caching" else [])
    places: list[tuple[Kernel, float | None]] = [("fused", None), ("fused_uvm", None)]
    places += [("fused_uvm_caching", factor) for factor in factors]
    wanted = (
        {"fused", *(["fused_uvm_caching"] if load_factors else [])}
        if table.kernel is None
        else {table.kernel}
    )
    return [place for place in places if place[0] in wanted]
