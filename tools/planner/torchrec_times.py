"""Times of shards by TorchRec's own planner, next to which the estimates of `costs` are shown."""

from collections.abc import Sequence

import torch
from torch.distributed.optim.apply_optimizer_in_backward import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner.enumerators import get_partition_by_type
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    Shard,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.planner.types import ShardingOption as TorchRecOption
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets
from torchrec.distributed.types import CacheParams
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from msrec.launch.reporting.byte_sizes import FLOAT_BYTES
from msrec.model.distributed.sharding import comms_codecs
from msrec.tools.planner.costs import Ranks
from msrec.tools.planner.hardware import Hardware
from msrec.tools.planner.sharding_options import ShardCost
from msrec.tools.planner.tables import VALUE_BYTES, Comms, Optimizer, Sharding, TableLoad

BYTES_PER_MS = 1e6
"""TorchRec's unit of bandwidth, bytes per millisecond, in one GB/s."""


class TorchRecEstimator:
    """Estimates shards by TorchRec's formulas, with the bandwidths of the accelerator.

    Args:
        tables: all tables of the model.
        ranks: of the job.
        batch: rows of a step on one rank.
        optimizer: of the tables.
        comms: type in which ranks send each other vectors.
    """

    def __init__(
        self,
        tables: Sequence[TableLoad],
        ranks: Ranks,
        batch: int,
        optimizer: Optimizer,
        comms: Comms = "fp32",
    ) -> None:
        self._ranks, self._batch, self._comms = ranks, batch, comms
        self._collection = meta_collection(tables, optimizer)
        sharder = EmbeddingBagCollectionSharder(qcomm_codecs_registry=comms_codecs(comms))
        self._sharders = build_sharder_data_map({sharder_name(sharder.module_type): sharder})
        self._constraints: dict[str, ParameterConstraints] = {}
        # One estimator for all tables: every new one logs the whole topology.
        place = topology(ranks.hardware, ranks.world, ranks.per_node)
        self._perf = EmbeddingPerfEstimator(place, self._constraints)

    def cost(
        self, table: TableLoad, sharding: Sharding, kernel: str, load_factor: float | None
    ) -> ShardCost:
        """Returns the milliseconds of the table's largest shard."""
        world, local = self._ranks.world, self._ranks.per_node
        weight = self._collection.embedding_bags[table.name].weight
        sizes, offsets = calculate_shard_sizes_and_offsets(
            weight, world, local, sharding, table.min_partition
        )
        option = TorchRecOption(
            name=table.name,
            tensor=weight,
            module=("", self._collection),
            # TorchRec takes empty bags to have no output. They have one, so they count as lookups.
            input_lengths=[max(table.pooling / table.bags, 1.0)] * table.features,
            batch_size=table.batch or self._batch,
            sharding_type=sharding,
            partition_by=get_partition_by_type(sharding),
            compute_kernel=kernel,
            shards=[Shard(size=sizes[0], offset=offsets[0])],
            cache_params=None if load_factor is None else CacheParams(load_factor=load_factor),
            is_pooled=table.kind == "pooled",
        )
        self._constraints[table.name] = ParameterConstraints(
            pooling_factors=option.input_lengths,
            num_poolings=[table.bags] * table.features,
            is_weighted=table.weighted,
        )
        self._perf.estimate([option], self._sharders)
        perf = option.shards[0].perf
        assert perf is not None, "the estimator sets it"
        if not table.frozen:
            return ShardCost(perf.fwd_compute, perf.fwd_comms, perf.bwd_compute, perf.bwd_comms)
        # TorchRec takes vectors to be sent in the type of the table; pooled vectors are float32.
        wider = FLOAT_BYTES / VALUE_BYTES[table.precision] if self._comms == "fp32" else 1.0
        return ShardCost(perf.fwd_compute, perf.fwd_comms * wider)


def topology(hardware: Hardware, world_size: int, local_world_size: int) -> Topology:
    """Returns the topology that TorchRec's planner takes."""
    is_gpu = hardware.device == "cuda"
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=world_size, local_world_size=local_world_size),
        HardwareConfig(
            hbm_cap_bytes=hardware.memory if is_gpu else 0,
            ddr_cap_bytes=hardware.host_memory if is_gpu else hardware.memory,
            hbm_mem_bw=hardware.memory_gb_s * BYTES_PER_MS,
            ddr_mem_bw=(hardware.host_gb_s if is_gpu else hardware.memory_gb_s) * BYTES_PER_MS,
            hbm_to_ddr_mem_bw=hardware.host_link_gb_s * BYTES_PER_MS,
            intra_host_bw=hardware.intra_node_gb_s * BYTES_PER_MS,
            inter_host_bw=hardware.inter_node_gb_s * BYTES_PER_MS,
        ),
        KernelConfig(compute_device=hardware.device, use_hardware_based_bandwidth=True),
    )


def meta_collection(tables: Sequence[TableLoad], optimizer: Optimizer) -> EmbeddingBagCollection:
    """Returns the tables as a TorchRec module on the meta device, which takes no memory.

    Their fused optimizer is attached, because TorchRec's planner counts its state.
    """
    collection = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=table.name,
                embedding_dim=table.dim,
                num_embeddings=table.rows,
                feature_names=[f"{table.name}.{number}" for number in range(table.features)],
                pooling=PoolingType.SUM,
                data_type=DataType[table.precision.upper()],
            )
            for table in tables
        ],
        device=torch.device("meta"),
    )
    fused = RowWiseAdagrad if optimizer == "rowwise_adagrad" else torch.optim.Adam
    apply_optimizer_in_backward(fused, collection.parameters(), {"lr": 0.1})
    return collection
