"""Plans the sharding of a run's tables with TorchRec's planner."""

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    PlannerError,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets
from torchrec.distributed.types import CacheParams, ShardingPlan

from msrec.model.distributed.sharding import sharders
from msrec.model.distributed.table_options import (
    COLUMN_SHARDINGS,
    TORCHREC_NAMES,
    TableOptions,
)
from msrec.model.distributed.tables import frozen_tables, table_sizes

HOST_KERNELS = ["fused", "fused_uvm_caching", "fused_uvm"]
"""Kernels of a table on the GPU, in host memory with a cache on the GPU, and in host memory."""
CACHED_SHARE = 0.2
"""Share of the rows of a table in host memory that the cache holds."""
DENSE_MEMORY_SHARE = 0.15
"""Share of a rank's memory that the planner keeps free for dense weights and activations."""


def plan_sharding(
    model: nn.Module,
    tables: TableOptions,
    device: torch.device,
    local_world_size: int,
    *,
    host_memory: bool = False,
) -> ShardingPlan:
    """Runs TorchRec's planner with a fixed type per table; all ranks get the same plan.

    Args:
        model: before sharding.
        tables: options of its tables.
        device: kind of device of all ranks.
        local_world_size: ranks on this node.
        host_memory: whether a table may be in host memory if the GPUs have no room for it.

    Raises:
        ValueError: a table named in `tables.sharding` does not exist or cannot be divided so, or no
            plan fits in memory.
    """
    sizes = table_sizes(model)
    unknown = sorted(set(tables.sharding) - set(sizes))
    if unknown:
        raise ValueError(
            f"embeddings.sharding names table {unknown[0]!r}; the tables are {', '.join(sizes)}."
        )
    ranks = tables.group_ranks or dist.get_world_size()
    frozen = frozen_tables(model)
    kernels = HOST_KERNELS if host_memory and device.type == "cuda" else ["fused"]
    constraints = {
        name: ParameterConstraints(sharding_types=["data_parallel"], compute_kernels=["dense"])
        # The planner allows the dense kernel for replicated tables only.
        if tables.is_dense(device) and name not in frozen
        else _constraint(name, size, tables, ranks, kernels)
        for name, size in sizes.items()
    }
    planner = EmbeddingShardingPlanner(
        topology=_topology(device, ranks, min(local_world_size, ranks)),
        # Dense weights and activations are small compared with the tables, so a fixed share is
        # enough; TorchRec's default is a heuristic that warns about its own result.
        storage_reservation=FixedPercentageStorageReservation(percentage=DENSE_MEMORY_SHARE),
        constraints=constraints,
        debug=False,
    )
    try:
        return planner.collective_plan(model, sharders(tables.comms), dist.group.WORLD)
    except PlannerError as error:
        reason = str(error).strip().splitlines()[0].rstrip(". ")
        rows, table = max((rows, name) for name, (rows, _) in sizes.items())
        raise ValueError(
            f"the embedding tables must fit on {ranks} ranks; TorchRec's planner "
            f"says: {reason}. Take more ranks, a smaller embeddings.dim, or split the largest "
            f"table ({table}, {rows:,} rows) with embeddings.sharding."
        ) from None


def _constraint(
    table: str, size: tuple[int, int], tables: TableOptions, ranks: int, kernels: list[str]
) -> ParameterConstraints:
    """Allows one sharding type, so that the planner has little to search."""
    rows, dim = size
    sharding = tables.sharding_of(table, rows, ranks)
    is_divided = sharding in COLUMN_SHARDINGS
    if is_divided and _column_shards(dim, tables.min_columns) == 1:
        raise ValueError(
            f"embeddings.sharding.{table}={sharding} needs two shards or more, each of at least "
            f"embeddings.min_columns={tables.min_columns} columns, a multiple of 4 and a divisor "
            f"of the table's {dim} columns; there is no such shard. Set embeddings.min_columns to "
            f"{max(dim // 2, 4)} or less, or divide the table by rows."
        )
    return ParameterConstraints(
        sharding_types=[TORCHREC_NAMES[sharding]],
        compute_kernels=kernels,
        min_partition=tables.min_columns if is_divided else None,
        cache_params=CacheParams(load_factor=CACHED_SHARE) if kernels == HOST_KERNELS else None,
    )


def _column_shards(dim: int, min_columns: int) -> int:
    """Returns the number of shards into which TorchRec divides vectors of a size."""
    table = torch.empty(1, dim, device="meta")
    sizes, _ = calculate_shard_sizes_and_offsets(table, 1, 1, "column_wise", min_columns)
    return len(sizes)


def _topology(device: torch.device, ranks: int, local_world_size: int) -> Topology:
    """Returns the ranks and their memory, as the planner needs them."""
    gpu_bytes = 0
    if device.type == "cuda":
        gpu_bytes = int(torch.cuda.get_device_properties(device).total_memory)
    host_bytes = psutil.virtual_memory().total // local_world_size
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=ranks, local_world_size=local_world_size),
        HardwareConfig(hbm_cap_bytes=gpu_bytes, ddr_cap_bytes=host_bytes),
        KernelConfig(compute_device=device.type),
    )
