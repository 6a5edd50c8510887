"""Spread a model over ranks: sharders, plan, DistributedModelParallel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from msrec.model.embeddings import fill_rows

TableOptimizer = Literal["rowwise_adagrad", "adam"]
TableSharding = Literal["table_wise", "row_wise"]


class Unwrapped(DataParallelWrapper):  # type: ignore[misc]  # TorchRec is untyped
    """Leaves the dense part as it is: a rank alone has nobody to share gradients with."""

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        """Move it to its device."""
        dmp._dmp_wrapped_module.to(device)


class CpuEBCSharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]  # TorchRec is untyped
    """Offers the planner row-wise on CPU too, which works there but is not offered by default."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Table-wise and row-wise for fused tables, data-parallel under a dense optimizer."""
        return ["table_wise", "row_wise", "data_parallel"]


@dataclass(frozen=True)
class TableSpec:
    """How the tables are sharded and trained.

    Args:
        optimizer: "rowwise_adagrad" is fused into the backward pass; "adam" on CPU replicates every
            table and keeps a full dense gradient of it, so it is for small tables.
        lr: learning rate of the tables.
        row_wise_from: a table with at least so many rows is split by rows over all ranks.
        sharding: table -> type, over `row_wise_from`.
        eps: of RowWiseAdagrad, given explicitly because FBGEMM's and torch's defaults differ.
    """

    optimizer: TableOptimizer
    lr: float
    row_wise_from: int
    sharding: Mapping[str, TableSharding]
    eps: float = 1e-8


def fuse_optimizer(ebc: EmbeddingBagCollection, spec: TableSpec, device: torch.device) -> bool:
    """Attach the in-backward optimizer; False where the tables train with a dense one.

    Call before sharding: a fused table without an optimizer of its own trains silently with SGD.
    """
    if spec.optimizer == "adam" and device.type == "cpu":
        return False
    optimizer, options = (
        (RowWiseAdagrad, {"lr": spec.lr, "eps": spec.eps})
        if spec.optimizer == "rowwise_adagrad"
        else (torch.optim.Adam, {"lr": spec.lr, "eps": spec.eps})
    )
    apply_optimizer_in_backward(optimizer, ebc.parameters(), options)
    return True


def make_plan(
    model: nn.Module, spec: TableSpec, device: torch.device, local_world_size: int
) -> ShardingPlan:
    """Plan with TorchRec's planner, type and kernel pinned per table; the same plan on every rank.

    Raises:
        ValueError: a table named in `spec.sharding` does not exist, or TorchRec finds no plan that
            fits.
    """
    configs = {
        config.name: config.num_embeddings
        for module in model.modules()
        if isinstance(module, EmbeddingBagCollection)
        for config in module.embedding_bag_configs()
    }
    unknown = sorted(set(spec.sharding) - set(configs))
    if unknown:
        raise ValueError(
            f"embeddings.sharding names table {unknown[0]!r}; the tables are {', '.join(configs)}."
        )
    constraints = {name: _constraint(name, rows, spec, device) for name, rows in configs.items()}
    planner = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            TrainerConfig(world_size=dist.get_world_size(), local_world_size=local_world_size),
            HardwareConfig(
                hbm_cap_bytes=_device_memory(device),
                ddr_cap_bytes=psutil.virtual_memory().total // local_world_size,
            ),
            KernelConfig(compute_device=device.type),
        ),
        # Dense weights and activations are small beside the tables; a fixed share is honest about
        # being a guess, where TorchRec's heuristic warns that it is one.
        storage_reservation=FixedPercentageStorageReservation(percentage=0.15),
        constraints=constraints,
        debug=False,
    )
    try:
        return planner.collective_plan(model, sharders(), dist.group.WORLD)
    except PlannerError as error:
        reason = str(error).strip().splitlines()[0].rstrip(". ")
        rows, of_table = max((rows, name) for name, rows in configs.items())
        raise ValueError(
            f"the embedding tables must fit on {dist.get_world_size()} ranks; TorchRec's planner "
            f"says: {reason}. Take more ranks, a smaller embeddings.dim, or split the largest "
            f"table ({of_table}, {rows:,} rows) with embeddings.sharding."
        ) from None


def _constraint(
    name: str, rows: int, spec: TableSpec, device: torch.device
) -> ParameterConstraints:
    """One sharding type and one kernel, so that planning takes no search."""
    if spec.optimizer == "adam" and device.type == "cpu":
        # The planner grants the dense kernel to replicated tables only.
        return ParameterConstraints(sharding_types=["data_parallel"], compute_kernels=["dense"])
    # One rank has every row: to sort ids by the rank that has theirs would cost a third of a step.
    is_split = rows >= spec.row_wise_from and dist.get_world_size() > 1
    by_size = "row_wise" if is_split else "table_wise"
    return ParameterConstraints(
        sharding_types=[spec.sharding.get(name, by_size)], compute_kernels=["fused"]
    )


def _device_memory(device: torch.device) -> int:
    """Bytes of a rank's GPU; 0 on CPU."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).total_memory)


def sharders() -> list[ModuleSharder[nn.Module]]:
    """The sharders of every job."""
    return [CpuEBCSharder()]


def shard(
    model: nn.Module, plan: ShardingPlan, device: torch.device, init_std: float, seed: int
) -> DistributedModelParallel:
    """Wrap the model and give the tables their seeded initial values."""
    ranks = dist.get_world_size()
    dmp = DistributedModelParallel(
        module=model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=device,
        plan=plan,
        sharders=sharders(),
        # DDP otherwise lays its buckets out anew after the first step. On three ranks and more that
        # changes the order of sums, and a resumed run is not bit for bit the one it was. The walk
        # over the graph that this takes is some 3 % of a small step.
        data_parallel_wrapper=Unwrapped()
        if ranks == 1
        else DefaultDataParallelWrapper(static_graph=ranks < 3, find_unused_parameters=ranks > 2),
    )
    init_tables(dmp, plan, init_std, seed)
    return dmp


def init_tables(dmp: DistributedModelParallel, plan: ShardingPlan, std: float, seed: int) -> None:
    """Fill each local shard of each table by global row index (see `fill_rows`)."""
    state = dmp.state_dict()
    with torch.no_grad():
        for path, module_plan in plan.plan.items():
            for table in module_plan:
                tensor = state[f"{path}.embedding_bags.{table}.weight"]
                pieces = (
                    [
                        (piece.tensor, piece.metadata.shard_offsets[0])
                        for piece in tensor.local_shards()
                    ]
                    if hasattr(tensor, "local_shards")
                    else [(tensor, 0)]
                )
                for piece, first_row in pieces:
                    # On CPU in place: a copy would be as large as the shard.
                    values = piece if piece.device.type == "cpu" else torch.empty(piece.shape)
                    fill_rows(values, table, first_row, std, seed)
                    piece.copy_(values)
