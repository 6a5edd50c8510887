"""A copy of a state dict in CPU memory, to be written while training changes the original."""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.shard import Shard


def snapshot(value: Any, group: dist.ProcessGroup) -> Any:
    """Copy all tensors below `value`; containers are new, other values are the same.

    Blocks for the copy alone: memory bandwidth, and as much memory as this rank's tensors take.

    Args:
        value: a state dict, its values nested in dicts, lists and tuples.
        group: gloo; gathers nothing, but a sharded tensor on a GPU needs it to move to the CPU.
    """
    if isinstance(value, ShardedTensor):
        if value.metadata().tensor_properties.layout != torch.strided:
            raise TypeError("a sharded tensor must be strided to be copied")
        if any(shard.tensor.device.type != "cpu" for shard in value.local_shards()):
            return value.cpu(process_group=group)
        shards = [Shard(s.tensor.detach().clone(), s.metadata) for s in value.local_shards()]
        return ShardedTensor._init_from_local_shards_and_global_metadata(
            shards, value.metadata(), process_group=value._process_group
        )
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(below, group) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(below, group) for below in value)
    return value


def num_bytes(value: Any, rank: int) -> int:
    """Bytes below `value` that this rank writes: its shards, and on rank 0 what all ranks have."""
    if isinstance(value, ShardedTensor):
        return sum(shard.tensor.nbytes for shard in value.local_shards())
    if isinstance(value, torch.Tensor):
        return value.nbytes if rank == 0 else 0
    if isinstance(value, dict):
        return sum(num_bytes(below, rank) for below in value.values())
    if isinstance(value, list | tuple):
        return sum(num_bytes(below, rank) for below in value)
    return 0
