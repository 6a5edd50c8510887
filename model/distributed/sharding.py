"""Shards a planned model over the ranks: DistributedModelParallel, its sharders, its DDP."""

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import (
    DataParallelWrapper,
    DefaultDataParallelWrapper,
    DistributedModelParallel,
)
from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan

from msrec.model.distributed.comms import Comms, comms_codecs
from msrec.model.distributed.filling import init_tables
from msrec.model.distributed.table_options import TORCHREC_NAMES


class Unwrapped(DataParallelWrapper):  # type: ignore[misc]  # TorchRec is untyped
    """Data parallelism of one rank: the dense part needs no gradients of other ranks."""

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        """Moves the dense part to its device."""
        dmp._dmp_wrapped_module.to(device)


class EBCSharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]  # TorchRec is untyped
    """Sharder that offers every sharding on CPU too; all work there, some are not offered."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """All types for fused tables, data-parallel for a dense optimizer."""
        return [*TORCHREC_NAMES.values(), "data_parallel"]


def sharders(comms: Comms = "fp32") -> list[ModuleSharder[nn.Module]]:
    """Returns the sharders of every job."""
    return [EBCSharder(qcomm_codecs_registry=comms_codecs(comms))]


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
