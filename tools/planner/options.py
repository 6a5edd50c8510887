"""The ways to place a table, and what a shard of each costs by TorchRec's estimators."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner.enumerators import get_partition_by_type
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator
from torchrec.distributed.planner.types import Shard, ShardingOption, Topology
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets
from torchrec.distributed.types import CacheParams
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from msrec.tools.planner.tables import BYTES, TableLoad

Sharding = Literal["table_wise", "row_wise", "table_row_wise", "column_wise", "data_parallel"]
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


def way_name(sharding: Sharding, load_factor: float | None) -> str:
    """A way as people read it, with the cached share where the table lies in host memory."""
    cached = "" if load_factor is None else f", {load_factor:.0%} cached"
    return f"{sharding}{cached}"


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
        load_factor: float | None = None,
    ) -> Option | None:
        """One way to place a table; None where it is another one's (too few rows or columns).

        Args:
            table: which.
            collection: the module that has it, on the meta device.
            sharding: how.
            load_factor: the share of rows whose values are cached on the accelerator, the table
                itself lying in host memory; None keeps all of it on the accelerator.
        """
        alike = (
            *(table.rows, table.dim, table.pooling, table.features, table.precision),
            *(sharding, load_factor),
        )
        if alike not in self._alike:
            self._alike[alike] = self._estimate(table, collection, sharding, load_factor)
        found = self._alike[alike]
        if found is None or found.table == table.name:
            return found
        return replace(found, table=table.name)

    def _estimate(
        self,
        table: TableLoad,
        collection: EmbeddingBagCollection,
        sharding: Sharding,
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
        kernel = EmbeddingComputeKernel.FUSED
        if sharding == "data_parallel":
            kernel = EmbeddingComputeKernel.DENSE
        elif load_factor is not None:
            kernel = EmbeddingComputeKernel.FUSED_UVM_CACHING
        option = ShardingOption(
            name=table.name,
            tensor=weight,
            module=("", collection),
            input_lengths=[table.pooling] * table.features,
            batch_size=self._batch,
            sharding_type=sharding,
            partition_by=get_partition_by_type(sharding),
            compute_kernel=kernel.value,
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
            kernel=kernel.value,
            pieces=pieces,
            shape=(rows, columns),
            cost=Cost(perf.fwd_compute, perf.fwd_comms, perf.bwd_compute, perf.bwd_comms),
            load_factor=load_factor,
            **self._bytes(table, sharding, rows, columns, load_factor),
        )

    def _bytes(
        self, table: TableLoad, sharding: Sharding, rows: int, columns: int, cached: float | None
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
        if cached is not None:
            # FBGEMM keeps 4 bytes a row and 16 a cache slot to know what is cached.
            host, weights = weights, int(weights * cached) + int(rows * (4 + 16 * cached))
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
        ways = [estimator.option(table, collection, s) for s in shardings]
        for factor in load_factors:
            ways += [
                estimator.option(table, collection, s, factor)
                for s in shardings
                if s != "data_parallel"
            ]
        found[table.name] = [way for way in ways if way is not None]
    return found
