"""Shards a planned model over the ranks: TorchRec's sharders and its wrapper."""

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import (
    ModuleSharder,
    QuantizedCommCodecs,
    ShardingEnv,
    ShardingPlan,
)

from msrec.model.distributed.data_parallel import DenseParallel
from msrec.model.distributed.filling import init_tables
from msrec.model.distributed.kernels import look_up_directly
from msrec.model.distributed.replicas import plan_of_group
from msrec.model.distributed.table_options import TORCHREC_NAMES, Comms


class EBCSharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]  # TorchRec is untyped
    """Sharder that offers every sharding on CPU too; all work there, some are not offered."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """All types for fused tables, data-parallel for a dense optimizer."""
        return [*TORCHREC_NAMES.values(), "data_parallel"]


def comms_codecs(comms: Comms) -> dict[str, QuantizedCommCodecs] | None:
    """Returns the codecs for a sharder; None sends float32.

    Vectors travel in float16; a value beyond its range, 65504, becomes its largest number.
    Gradients travel in bfloat16, which has the range of float32: those of the mean over a batch
    would be zeros in float16.
    """
    if comms == "fp32":
        return None
    config = QCommsConfig(forward_precision=CommType.FP16, backward_precision=CommType.BF16)
    # For a CPU TorchRec would take float16 in place of bfloat16. But gloo only copies gradients
    # (all-to-all, all-gather), and that it does in any type.
    codecs: dict[str, QuantizedCommCodecs] | None
    codecs = get_qcomm_codecs_registry(config, device=torch.device("cuda"))
    return codecs


def sharders(comms: Comms = "fp32") -> list[ModuleSharder[nn.Module]]:
    """Returns the sharders of every job."""
    return [EBCSharder(qcomm_codecs_registry=comms_codecs(comms))]


def shard(
    model: nn.Module,
    plan: ShardingPlan,
    device: torch.device,
    init_std: float,
    seed: int,
    env: ShardingEnv | None = None,
    comms: Comms = "fp32",
) -> DistributedModelParallel:
    """Shards the model by a plan and gives the tables their seeded initial values.

    Args:
        model: before sharding.
        plan: of the ranks that share the tables.
        device: of this rank.
        init_std: standard deviation of the initial values.
        seed: of the initial values.
        env: of `sharding_env`; None shares the tables between all ranks.
        comms: type in which ranks send each other vectors.
    """
    env = env or ShardingEnv.from_process_group(dist.group.WORLD)
    dmp = DistributedModelParallel(
        module=model,
        env=env,
        device=device,
        plan=plan_of_group(plan, env),
        sharders=sharders(comms),
        data_parallel_wrapper=DenseParallel(),
    )
    if device.type == "cpu" and dist.get_world_size() == 1:
        look_up_directly(dmp)
    init_tables(dmp, plan, init_std, seed)
    return dmp
