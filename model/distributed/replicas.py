"""Two-dimensional parallelism: groups of ranks with a copy of the tables each.

Ids and vectors travel within a group, so that a step costs the same on more hosts. The copies
learn from their own rows and are averaged from time to time, over the ranks with the same shard:

    ranks 0 to 3 of 8, group_ranks=4:   shard 0   shard 1   shard 2   shard 3
    ranks 4 to 7:                       shard 0   shard 1   shard 2   shard 3
    averaged over ranks:                0 and 4   1 and 5   2 and 6   3 and 7
"""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.remote_device import _remote_device
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv, ShardingEnv2D, ShardingPlan

from msrec.model.distributed.kernels import trained_kernels


def sharding_env(group_ranks: int, per_node: int, device: torch.device) -> ShardingEnv:
    """Returns the ranks that share the tables: all, or groups of consecutive ranks.

    Raises:
        ValueError: the groups do not have the same size, or divide nodes unequally.
    """
    world = dist.get_world_size()
    if group_ranks == world:
        return ShardingEnv.from_process_group(dist.group.WORLD)
    small, large = sorted((group_ranks, per_node))
    if world % group_ranks or large % small:
        raise ValueError(
            f"embeddings.group_ranks must divide the {world} ranks, and be a multiple or a divisor "
            f"of the {per_node} ranks of a node; it is {group_ranks}."
        )
    mesh = DeviceMesh(
        device.type,
        torch.arange(world).view(-1, group_ranks),
        mesh_dim_names=("replicate", "shard"),
    )
    env = ShardingEnv2D(
        sharding_pg=mesh.get_group("shard"),
        replica_pg=mesh.get_group("replicate"),
        global_pg=dist.group.WORLD,
        device_mesh=mesh,
        node_group_size=min(group_ranks, per_node),
        use_inter_host_allreduce=True,
    )
    env.output_dtensor = False  # checkpoints read and write sharded tensors
    return env


def plan_of_group(plan: ShardingPlan, env: ShardingEnv) -> ShardingPlan:
    """Returns a plan for the first group with the ranks of this rank's own group."""
    if not isinstance(env, ShardingEnv2D):
        return plan
    plan = copy.deepcopy(plan)
    first = env.global_rank - env.rank
    for module in plan.plan.values():
        for table in module.values():
            table.ranks = [rank + first for rank in table.ranks]
            for shard in table.sharding_spec.shards:
                rank, device = shard.placement.rank() + first, shard.placement.device()
                # Groups may share a node, and then have different GPUs of it.
                name = "cpu" if device.type == "cpu" else f"cuda:{rank % get_local_size()}"
                shard.placement = _remote_device(f"rank:{rank}/{name}")
    return plan


class TableReplicas:
    """The copies of the tables in all groups; none with one group.

    Args:
        model: the sharded model.
        every: number of steps after which the copies are averaged.
    """

    def __init__(self, model: DistributedModelParallel, every: int) -> None:
        env = model._env
        self._group = env.replica_pg if isinstance(env, ShardingEnv2D) else None
        self._model, self._every = model, every
        self._averaged: int | None = None
        """Step after which the copies were averaged last."""

    def sync_after(self, step: int) -> None:
        """Averages the copies if it is time after a step."""
        if step % self._every == 0:
            self.sync(step)

    @torch.no_grad()
    def sync(self, step: int) -> None:
        """Averages weights and optimizer state of all copies after a step, once; on every rank."""
        if self._group is None or step == self._averaged:
            return
        self._averaged = step
        tensors = _tensors(self._model)
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            self._group.allreduce_coalesced(same).wait()
            torch._foreach_div_(same, float(self._group.size()))


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    """Returns views of weights and states of this rank's shards, in the same order on all copies.

    TorchRec's `DMPCollection` does the same, for CUDA and row-wise Adagrad only.
    """
    tensors: list[torch.Tensor] = []
    for kernel in trained_kernels(model):
        tensors += kernel.split_embedding_weights()
        tensors += [state for states in kernel.get_optimizer_state() for state in states.values()]
    return [tensor for tensor in tensors if tensor.numel()]
