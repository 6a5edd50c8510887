"""Sharding of a model over ranks: table options, planning, DistributedModelParallel."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim.apply_optimizer_in_backward import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import (
    DataParallelWrapper,
    DefaultDataParallelWrapper,
    DistributedModelParallel,
)
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
from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from msrec.model.distributed.comms import Comms, comms_codecs
from msrec.model.embeddings import fill_rows
from msrec.model.frozen_items import FrozenItems, item_table

TableOptimizer = Literal["rowwise_adagrad", "adam"]
TableSharding = Literal["table_wise", "row_wise"]
RowChunks = Callable[[int, int], Iterable[tuple[slice, npt.NDArray[np.floating]]]]
"""Yields slices of the rows from one to before another, and their values, (n, dim)."""
FILL_ROWS = 1 << 16
"""Rows of a table that are computed at once."""
DENSE_MEMORY_SHARE = 0.15
"""Share of a rank's memory that the planner keeps free for dense weights and activations."""


@dataclass(frozen=True)
class TableOptions:
    """Sharding and training of the embedding tables.

    Args:
        optimizer: "rowwise_adagrad" is fused into the backward pass; "adam" on CPU replicates every
            table and keeps a full dense gradient of it, so it is for small tables.
        lr: learning rate of the tables.
        row_wise_from: rows from which a table is split by rows over all ranks.
        sharding: table -> type, which overrides `row_wise_from`.
        eps: of RowWiseAdagrad, explicit because the defaults of FBGEMM and torch differ.
        comms: type in which ranks send each other vectors.
    """

    optimizer: TableOptimizer
    lr: float
    row_wise_from: int
    sharding: Mapping[str, TableSharding]
    eps: float = 1e-8
    comms: Comms = "fp32"

    def is_dense(self, device: torch.device) -> bool:
        """Whether the tables are replicated and trained by a dense optimizer."""
        return self.optimizer == "adam" and device.type == "cpu"


class Unwrapped(DataParallelWrapper):  # type: ignore[misc]  # TorchRec is untyped
    """Data parallelism of one rank: the dense part needs no gradients of other ranks."""

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        """Moves the dense part to its device."""
        dmp._dmp_wrapped_module.to(device)


class CpuEBCSharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]  # TorchRec is untyped
    """Sharder that offers row-wise on CPU too, which works there but is not offered by default."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Table-wise and row-wise for fused tables, data-parallel for a dense optimizer."""
        return ["table_wise", "row_wise", "data_parallel"]


def sharders(comms: Comms = "fp32") -> list[ModuleSharder[nn.Module]]:
    """Returns the sharders of every job."""
    return [CpuEBCSharder(qcomm_codecs_registry=comms_codecs(comms))]


def fuse_optimizer(ebc: EmbeddingBagCollection, tables: TableOptions, device: torch.device) -> bool:
    """Attaches the in-backward optimizer; False if the tables train with a dense optimizer.

    Must run before sharding: a fused table without an attached optimizer silently trains with SGD.
    """
    if tables.is_dense(device):
        return False
    is_adagrad = tables.optimizer == "rowwise_adagrad"
    optimizer = RowWiseAdagrad if is_adagrad else torch.optim.Adam
    options = {"lr": tables.lr, "eps": tables.eps}
    apply_optimizer_in_backward(optimizer, ebc.parameters(), options)
    return True


def freeze(items: FrozenItems) -> None:
    """Attaches an optimizer without state to frozen tables; they get no gradient that it could use.

    Must run before sharding, because only a table with an optimizer gets the fused kernel.
    """
    apply_optimizer_in_backward(torch.optim.SGD, items.ebc.parameters(), {"lr": 0.0})


def frozen_tables(model: nn.Module) -> set[str]:
    """Returns the names of the tables of frozen item vectors, of a model sharded or not."""
    modules = (module for module in model.modules() if isinstance(module, FrozenItems))
    return {item_table(source) for module in modules for source in module.dims}


def table_sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Returns table -> (rows, vector size) of a model before sharding."""
    return {
        config.name: (config.num_embeddings, config.embedding_dim)
        for module in model.modules()
        if isinstance(module, EmbeddingBagCollection)
        for config in module.embedding_bag_configs()
    }


def plan_sharding(
    model: nn.Module, tables: TableOptions, device: torch.device, local_world_size: int
) -> ShardingPlan:
    """Runs TorchRec's planner with a fixed type and kernel per table; all ranks get the same plan.

    Raises:
        ValueError: a table named in `tables.sharding` does not exist, or no plan fits in memory.
    """
    rows_of = {name: rows for name, (rows, _) in table_sizes(model).items()}
    unknown = sorted(set(tables.sharding) - set(rows_of))
    if unknown:
        raise ValueError(
            f"embeddings.sharding names table {unknown[0]!r}; the tables are {', '.join(rows_of)}."
        )
    frozen = frozen_tables(model)
    planner = EmbeddingShardingPlanner(
        topology=_topology(device, local_world_size),
        # Dense weights and activations are small compared with the tables, so a fixed share is
        # enough; TorchRec's default is a heuristic that warns about its own result.
        storage_reservation=FixedPercentageStorageReservation(percentage=DENSE_MEMORY_SHARE),
        constraints={
            name: _constraint(
                name, rows, tables, is_dense=tables.is_dense(device) and name not in frozen
            )
            for name, rows in rows_of.items()
        },
        debug=False,
    )
    try:
        return planner.collective_plan(model, sharders(tables.comms), dist.group.WORLD)
    except PlannerError as error:
        reason = str(error).strip().splitlines()[0].rstrip(". ")
        rows, table = max((rows, name) for name, rows in rows_of.items())
        raise ValueError(
            f"the embedding tables must fit on {dist.get_world_size()} ranks; TorchRec's planner "
            f"says: {reason}. Take more ranks, a smaller embeddings.dim, or split the largest "
            f"table ({table}, {rows:,} rows) with embeddings.sharding."
        ) from None


def _constraint(
    name: str, rows: int, tables: TableOptions, *, is_dense: bool
) -> ParameterConstraints:
    """Allows one sharding type and one kernel, so that the planner has nothing to search."""
    if is_dense:
        # The planner allows the dense kernel for replicated tables only.
        return ParameterConstraints(sharding_types=["data_parallel"], compute_kernels=["dense"])
    return ParameterConstraints(
        sharding_types=[sharding_type(name, rows, tables, dist.get_world_size())],
        compute_kernels=["fused"],
    )


def sharding_type(name: str, rows: int, tables: TableOptions, world_size: int) -> TableSharding:
    """Returns the sharding of a table with a fused optimizer: by its name, else by its size."""
    # One rank has every row: sorting ids by the rank of their row would cost a third of a step.
    is_split = rows >= tables.row_wise_from and world_size > 1
    return tables.sharding.get(name, "row_wise" if is_split else "table_wise")


def _topology(device: torch.device, local_world_size: int) -> Topology:
    """Returns the ranks and their memory, as the planner needs them."""
    gpu_bytes = 0
    if device.type == "cuda":
        gpu_bytes = int(torch.cuda.get_device_properties(device).total_memory)
    host_bytes = psutil.virtual_memory().total // local_world_size
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=dist.get_world_size(), local_world_size=local_world_size),
        HardwareConfig(hbm_cap_bytes=gpu_bytes, ddr_cap_bytes=host_bytes),
        KernelConfig(compute_device=device.type),
    )


def shard(
    model: nn.Module,
    plan: ShardingPlan,
    device: torch.device,
    init_std: float,
    seed: int,
    comms: Comms = "fp32",
) -> DistributedModelParallel:
    """Shards the model by a plan and gives the tables their seeded initial values."""
    ranks = dist.get_world_size()
    dmp = DistributedModelParallel(
        module=model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=device,
        plan=plan,
        sharders=sharders(comms),
        # DDP otherwise rebuilds its buckets after the first step. On three and more ranks that
        # changes the order of sums, so that a resumed run would differ in the last bits. The search
        # for unused parameters that prevents it takes about 3 % of a small step.
        data_parallel_wrapper=Unwrapped()
        if ranks == 1
        else DefaultDataParallelWrapper(static_graph=ranks < 3, find_unused_parameters=ranks > 2),
    )
    init_tables(dmp, plan, init_std, seed)
    return dmp


def init_tables(dmp: DistributedModelParallel, plan: ShardingPlan, std: float, seed: int) -> None:
    """Fills each local shard of each trained table by global row index, see `fill_rows`."""
    frozen = frozen_tables(dmp)
    for table, rows, (first_row, _) in _local_shards(dmp, plan):
        if table in frozen:
            continue
        # In place on CPU: a copy would be as large as the shard.
        values = rows if rows.device.type == "cpu" else torch.empty(rows.shape)
        fill_rows(values, table, first_row, std, seed)
        rows.copy_(values)


def fill_frozen(
    dmp: DistributedModelParallel, plan: ShardingPlan, vectors: Mapping[str, RowChunks]
) -> None:
    """Fills the local shards of frozen tables from table -> its vectors, read by chunks of rows."""
    for table, weights, (first_row, first_column) in _local_shards(dmp, plan):
        if table not in vectors:
            continue
        columns = slice(first_column, first_column + weights.shape[1])
        for at, rows in vectors[table](first_row, first_row + len(weights)):
            local = slice(at.start - first_row, at.stop - first_row)
            weights[local] = torch.from_numpy(rows)[:, columns].to(weights)


def fill_projected(
    dmp: DistributedModelParallel,
    plan: ShardingPlan,
    table: str,
    rows: torch.Tensor,
    vectors: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.floating]],
    projection: torch.Tensor,
) -> None:
    """Writes `vectors @ projection` to some rows of a table, in the local shards that have them.

    Shape:
        rows: (n,), int64, distinct rows of the table.
        vectors: returns the vectors (m, V) for m positions in `rows`.
        projection: (V, dim), float32.
    """
    for name, weights, (first_row, first_column) in _local_shards(dmp, plan):
        if name != table:
            continue
        columns = slice(first_column, first_column + weights.shape[1])
        local = (rows >= first_row) & (rows < first_row + len(weights))
        for at in torch.split(torch.nonzero(local).squeeze(1), FILL_ROWS):
            index = (rows[at] - first_row).to(weights.device)
            values = torch.from_numpy(vectors(at.numpy())).float() @ projection[:, columns]
            weights[index] = values.to(weights)


def _local_shards(
    dmp: DistributedModelParallel, plan: ShardingPlan
) -> Iterator[tuple[str, torch.Tensor, tuple[int, int]]]:
    """Yields table, weights, and first row and column of each local shard.

    The weights may be written.
    """
    state = dmp.state_dict()
    for path, module_plan in plan.plan.items():
        for table in module_plan:
            tensor = state[f"{path}.embedding_bags.{table}.weight"]
            if hasattr(tensor, "local_shards"):
                for shard in tensor.local_shards():
                    yield table, shard.tensor.detach(), tuple(shard.metadata.shard_offsets)
            else:
                yield table, tensor.detach(), (0, 0)
