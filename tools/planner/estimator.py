"""Estimates of time and memory for the sharding options of tables.

Many tables of a large model differ in their name only, and all full shards of a table are equal, so
one shard of each distinct table is estimated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from msrec.launch.reporting.byte_sizes import FLOAT_BYTES
from msrec.tools.planner.costs import ID_BYTES, WEIGHT_BYTES, Ranks, lookups, shard_cost
from msrec.tools.planner.sharding_options import NODE_SHARDINGS, ShardCost, ShardingOption
from msrec.tools.planner.tables import (
    COLUMN_SHARDINGS,
    RUN_SHARDINGS,
    SEQUENCE_SHARDINGS,
    Comms,
    Kernel,
    Optimizer,
    Sharding,
    TableLoad,
)

EstimatorName = Literal["msrec", "torchrec"]
CACHED_SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
"""Shares of rows to cache from which the search chooses, if none is named."""
TorchRecTimes = Callable[[TableLoad, Sharding, str, float | None], ShardCost]


class Estimator:
    """Estimates the sharding options of tables on given ranks.

    Args:
        tables: all tables of the model.
        ranks: of the job.
        batch: rows of a step on one rank.
        optimizer: of the tables.
        comms: type in which ranks send each other vectors.
        name: `msrec` estimates times by `costs`, `torchrec` by TorchRec's own planner, which counts
            no latency.
    """

    def __init__(
        self,
        tables: Sequence[TableLoad],
        ranks: Ranks,
        batch: int,
        optimizer: Optimizer,
        comms: Comms = "fp32",
        name: EstimatorName = "msrec",
    ) -> None:
        self._tables, self._ranks = tables, ranks
        self._batch, self._optimizer, self._comms = batch, optimizer, comms
        self._torchrec: TorchRecTimes | None = None
        if name == "torchrec":
            # Imported here, because its import takes seconds.
            from msrec.tools.planner.torchrec_times import TorchRecEstimator

            self._torchrec = TorchRecEstimator(tables, ranks, batch, optimizer, comms).cost
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
        is_one_node = self._ranks.nodes == 1
        for table in self._tables:
            estimated = [
                self.option(table, sharding, kernel, load_factor)
                for kernel, load_factor in _kernels(table, load_factors)
                for sharding in _shardings(table, shardings)
                # A replicated table has TorchRec's dense kernel and no other.
                if sharding != "data_parallel" or (kernel == "fused" and table.kernel is None)
            ]
            possible = [option for option in estimated if option is not None]
            useful = [o for o in possible if not (is_one_node and o.sharding in NODE_SHARDINGS)]
            options[table.name] = useful or possible
        return options

    def option(
        self,
        table: TableLoad,
        sharding: Sharding,
        kernel: Kernel = "fused",
        load_factor: float | None = None,
    ) -> ShardingOption | None:
        """Returns one sharding option; None if the table has too few rows or columns for it."""
        differing = table.model_dump(exclude={"name", "sharding", "kernel", "co_locate"})
        key = (*differing.values(), sharding, kernel, load_factor)
        if key not in self._estimated:
            self._estimated[key] = self._estimate(table, sharding, kernel, load_factor)
        option = self._estimated[key]
        return None if option is None else replace(option, table=table.name)

    def _estimate(
        self, table: TableLoad, sharding: Sharding, kernel: Kernel, load_factor: float | None
    ) -> ShardingOption | None:
        shape = self._shard_shape(table, sharding)
        if shape is None:
            return None
        rows, columns = shape
        name = "dense" if sharding == "data_parallel" else kernel
        if self._torchrec is None:
            job = (self._batch, self._optimizer, self._comms)
            cost = shard_cost(self._ranks, table, sharding, kernel, load_factor, shape, *job)
            latencies = self._ranks.latencies(table, sharding, name)
        else:
            cost, latencies = self._torchrec(table, sharding, name, load_factor), ()
        return ShardingOption(
            table=table.name,
            sharding=sharding,
            kernel=name,
            column_shards=table.dim // columns,
            shape=shape,
            cost=cost,
            load_factor=load_factor,
            latencies=latencies,
            other_costs=(),
            **self._stored_bytes(rows, columns, table, name, load_factor),
            **self._buffer_bytes(columns, table, sharding),
        )

    def _shard_shape(self, table: TableLoad, sharding: Sharding) -> tuple[int, int] | None:
        """Returns rows and columns of the largest shard; None if the table is not divided so."""
        world, local = self._ranks.world, self._ranks.per_node
        columns = table.column_width if sharding in COLUMN_SHARDINGS else table.dim
        if sharding in COLUMN_SHARDINGS and columns == table.dim:
            return None  # one shard would be the same as without columns
        if sharding not in ("row_wise", "table_row_wise", "grid_shard"):
            return table.rows, columns
        if table.rows < world:
            return None
        parts = world if sharding == "row_wise" else local
        return -(-table.rows // parts), columns

    def _stored_bytes(
        self, rows: int, columns: int, table: TableLoad, kernel: str, load_factor: float | None
    ) -> dict[str, int]:
        """Returns the bytes of a shard's weights and optimizer state, and of its host memory."""
        weights = rows * table.row_bytes(columns)
        # Row-wise Adagrad keeps one number per row, Adam two per value.
        is_row_wise = self._optimizer == "rowwise_adagrad"
        state = rows * FLOAT_BYTES * (1 if is_row_wise else 2 * columns)
        host = 0
        if kernel == "fused_uvm":
            host, weights = weights, 0
        elif load_factor is not None:
            # FBGEMM's cache index takes 4 bytes per row and 16 per cache slot.
            host, weights = weights, int(weights * load_factor) + int(rows * (4 + 16 * load_factor))
        if host and not is_row_wise:
            # FBGEMM keeps one number per row on the accelerator; larger state is in host memory.
            host, state = host + state, 0
        if table.frozen:
            return {"weights": weights, "state": 0, "host": host}
        if kernel == "dense":
            state += weights  # its gradient is dense, and as large as the table
        return {"weights": weights, "state": state, "host": host}

    def _buffer_bytes(self, columns: int, table: TableLoad, sharding: Sharding) -> dict[str, int]:
        """Returns the bytes of ids and of vectors that pass through a shard in one step."""
        ids, vectors = lookups(self._ranks, table, sharding, self._batch)
        ids *= table.pooling / max(table.pooling, table.bags)  # an empty bag has no id
        id_bytes = ID_BYTES + (WEIGHT_BYTES if table.weighted else 0)
        return {
            "inputs": math.floor(id_bytes * ids),
            "outputs": int(vectors) * columns * FLOAT_BYTES,
        }


def _shardings(table: TableLoad, allowed: Sequence[Sharding]) -> Sequence[Sharding]:
    """Returns the sharding types that a table may have.

    Replicated tables train with a dense optimizer. A frozen table has none and needs the kernel of
    sharded tables, so that it is sharded even if the others are replicated. Tables with a common
    label are on one rank.
    """
    if table.co_locate:
        return ["table_wise"]
    if table.sharding:
        allowed = [table.sharding]
    if table.kind == "sequence":
        allowed = [each for each in allowed if each in SEQUENCE_SHARDINGS]
    if table.sharding or not table.frozen:
        return allowed
    return [each for each in allowed if each != "data_parallel"] or RUN_SHARDINGS


def _kernels(table: TableLoad, load_factors: Sequence[float]) -> list[tuple[Kernel, float | None]]:
    """Returns the kernels that a table may use, each with the share of rows that it caches."""
    cached: list[tuple[Kernel, float | None]] = [
        ("fused_uvm_caching", load_factor) for load_factor in load_factors or CACHED_SHARES
    ]
    if table.kernel is None:
        return [("fused", None), *(cached if load_factors else [])]
    return cached if table.kernel == "fused_uvm_caching" else [(table.kernel, None)]
