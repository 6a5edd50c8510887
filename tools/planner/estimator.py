"""Estimates of time and memory for the sharding options of tables.

Times come from TorchRec's own estimators. Many tables of a large model differ in their name only,
and all full shards of a table are equal, so one shard of each distinct table is estimated.
"""

from collections.abc import Sequence
from dataclasses import replace

from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner.enumerators import get_partition_by_type
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator
from torchrec.distributed.planner.types import Perf, Shard, Topology
from torchrec.distributed.planner.types import ShardingOption as TorchRecOption
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets
from torchrec.distributed.types import CacheParams

from msrec.launch.reporting.plan_table import FLOAT_BYTES
from msrec.model.distributed.sharding import comms_codecs
from msrec.model.distributed.table_options import Comms, TableOptimizer
from msrec.tools.planner.sharding_options import ShardCost, ShardingOption
from msrec.tools.planner.tables import (
    RUN_SHARDINGS,
    VALUE_BYTES,
    Kernel,
    Sharding,
    TableLoad,
    meta_collection,
)

ID_BYTES = 8
DEFAULT_LOAD_FACTOR = 0.2
"""Share of rows cached for a table that asks for the caching kernel without a share."""


class Estimator:
    """Estimates the sharding options of tables on given ranks.

    Args:
        tables: all tables of the model.
        topology: of the ranks.
        batch: rows of a step on one rank.
        optimizer: of the tables.
        comms: type in which ranks send each other vectors.
    """

    def __init__(
        self,
        tables: Sequence[TableLoad],
        topology: Topology,
        batch: int,
        optimizer: TableOptimizer,
        comms: Comms = "fp32",
    ) -> None:
        self._tables, self._topology = tables, topology
        self._batch, self._optimizer, self._comms = batch, optimizer, comms
        self._collection = meta_collection(tables, optimizer)
        sharder = EmbeddingBagCollectionSharder(qcomm_codecs_registry=comms_codecs(comms))
        self._sharders = build_sharder_data_map({sharder_name(sharder.module_type): sharder})
        self._constraints: dict[str, ParameterConstraints] = {}
        # One estimator for all tables: every new one logs the whole topology.
        self._perf = EmbeddingPerfEstimator(topology, self._constraints)
        self._estimated: dict[tuple[object, ...], ShardingOption | None] = {}

    def options(
        self, shardings: Sequence[Sharding], load_factors: Sequence[float] = ()
    ) -> dict[str, list[ShardingOption]]:
        """Returns table -> its sharding options.

        Args:
            shardings: sharding types allowed for tables that do not name their own.
            load_factors: shares of rows to cache, if tables may be in host memory.
        """
        options: dict[str, list[ShardingOption]] = {}
        for table in self._tables:
            estimated = [
                self.option(table, sharding, kernel, load_factor)
                for kernel, load_factor in _kernels(table, load_factors)
                for sharding in _shardings(table, shardings)
                # A replicated table has TorchRec's dense kernel and no other.
                if sharding != "data_parallel" or (kernel == "fused" and table.kernel is None)
            ]
            options[table.name] = [option for option in estimated if option is not None]
        return options

    def option(
        self,
        table: TableLoad,
        sharding: Sharding,
        kernel: Kernel = "fused",
        load_factor: float | None = None,
    ) -> ShardingOption | None:
        """Returns one sharding option; None if the table has too few rows or columns for it."""
        differing = table.model_dump(exclude={"name", "module", "sharding", "kernel"})
        key = (*differing.values(), sharding, kernel, load_factor)
        if key not in self._estimated:
            self._estimated[key] = self._estimate(table, sharding, kernel, load_factor)
        option = self._estimated[key]
        return None if option is None else replace(option, table=table.name)

    def _estimate(
        self, table: TableLoad, sharding: Sharding, kernel: Kernel, load_factor: float | None
    ) -> ShardingOption | None:
        world, local = self._topology.world_size, self._topology.local_world_size
        if sharding == "table_row_wise" and world == local:
            return None  # the same as row_wise
        if sharding in ("row_wise", "table_row_wise") and table.rows < world:
            return None
        weight = self._collection.embedding_bags[table.name].weight
        sizes, offsets = calculate_shard_sizes_and_offsets(weight, world, local, sharding)
        if sharding == "column_wise" and len(sizes) < 2:
            return None  # the same as table_wise
        option = TorchRecOption(
            name=table.name,
            tensor=weight,
            module=("", self._collection),
            # TorchRec takes empty bags to have no output. They have one, so they count as lookups.
            input_lengths=[max(table.pooling / table.bags, 1.0)] * table.features,
            batch_size=self._batch,
            sharding_type=sharding,
            partition_by=get_partition_by_type(sharding),
            compute_kernel="dense" if sharding == "data_parallel" else kernel,
            shards=[Shard(size=sizes[0], offset=offsets[0])],
            cache_params=None if load_factor is None else CacheParams(load_factor=load_factor),
            is_pooled=True,
        )
        self._constraints[table.name] = ParameterConstraints(
            pooling_factors=option.input_lengths, num_poolings=[table.bags] * table.features
        )
        self._perf.estimate([option], self._sharders)
        perf = option.shards[0].perf
        assert perf is not None, "the estimator sets it"
        rows, columns = sizes[0]
        return ShardingOption(
            table=table.name,
            sharding=sharding,
            kernel=option.compute_kernel,
            column_shards=len(sizes) if sharding == "column_wise" else 1,
            shape=(rows, columns),
            cost=_cost(perf, table, sharding, self._comms),
            load_factor=load_factor,
            **self._stored_bytes(rows, columns, table, option),
            **self._buffer_bytes(columns, table, sharding),
        )

    def _stored_bytes(
        self, rows: int, columns: int, table: TableLoad, option: TorchRecOption
    ) -> dict[str, int]:
        """Returns the bytes of a shard's weights and optimizer state, and of its host memory."""
        weights = rows * columns * VALUE_BYTES[table.precision]
        # Row-wise Adagrad keeps one number per row, Adam two per value.
        is_row_wise = self._optimizer == "rowwise_adagrad"
        state = rows * FLOAT_BYTES * (1 if is_row_wise else 2 * columns)
        host = 0
        if option.compute_kernel == "fused_uvm":
            host, weights = weights, 0
        elif option.cache_params is not None:
            # FBGEMM's cache index takes 4 bytes per row and 16 per cache slot.
            cached = option.cache_params.load_factor
            host, weights = weights, int(weights * cached) + int(rows * (4 + 16 * cached))
        if host and not is_row_wise:
            # FBGEMM keeps one number per row on the accelerator; larger state is in host memory.
            host, state = host + state, 0
        if table.frozen:
            return {"weights": weights, "state": 0, "host": host}
        if option.compute_kernel == "dense":
            state += weights  # its gradient is dense, and as large as the table
        return {"weights": weights, "state": state, "host": host}

    def _buffer_bytes(self, columns: int, table: TableLoad, sharding: Sharding) -> dict[str, int]:
        """Returns the bytes of ids and of vectors that pass through a shard in one step.

        A shard receives the ids of its rows from the batches of all ranks, and makes a vector for
        each bag of these batches. If rows are divided, the vectors are partial sums.
        """
        world, local = self._topology.world_size, self._topology.local_world_size
        row_shards = {"row_wise": world, "table_row_wise": local, "data_parallel": world}
        ids = self._batch * world * (table.pooling * table.features)
        batches = 1 if sharding == "data_parallel" else world
        outputs = int(self._batch * batches * table.features * table.bags) * columns * FLOAT_BYTES
        return {"inputs": int(ID_BYTES * ids / row_shards.get(sharding, 1)), "outputs": outputs}


def _cost(perf: Perf, table: TableLoad, sharding: Sharding, comms: Comms) -> ShardCost:
    wider = 1.0
    if comms == "fp32" and sharding != "data_parallel":
        # TorchRec takes vectors to be sent in the type of the table; pooled vectors are float32.
        wider = FLOAT_BYTES / VALUE_BYTES[table.precision]
    forward = (perf.fwd_compute, perf.fwd_comms * wider)
    if table.frozen:
        return ShardCost(*forward)
    return ShardCost(*forward, perf.bwd_compute, perf.bwd_comms * wider)


def _shardings(table: TableLoad, allowed: Sequence[Sharding]) -> Sequence[Sharding]:
    """Returns the sharding types that a table may have.

    Replicated tables train with a dense optimizer. A frozen table has none and needs the kernel of
    sharded tables, so that it is sharded even if the others are replicated.
    """
    if table.sharding:
        return [table.sharding]
    if not table.frozen:
        return allowed
    return [each for each in allowed if each != "data_parallel"] or RUN_SHARDINGS


def _kernels(table: TableLoad, load_factors: Sequence[float]) -> list[tuple[Kernel, float | None]]:
    """Returns the kernels that a table may use, each with the share of rows that it caches."""
    cached: list[tuple[Kernel, float | None]] = [
        ("fused_uvm_caching", load_factor) for load_factor in load_factors or [DEFAULT_LOAD_FACTOR]
    ]
    if table.kernel is None:
        return [("fused", None), *(cached if load_factors else [])]
    return cached if table.kernel == "fused_uvm_caching" else [(table.kernel, None)]
