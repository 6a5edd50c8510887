"""A copy of a state dict in CPU memory, to be written while training changes the original."""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.shard import Shard


def snapshot(value: Any, group: dist.ProcessGroup, into: Any = None) -> Any:
    """Copy all tensors below `value`; containers are new, other values are the same.

    Blocks for the copy alone. It takes as much memory as this rank's tensors; an earlier snapshot
    of the same shapes is filled again, which is much faster than touching new memory.

    Args:
        value: a state dict, its values nested in dicts, lists and tuples.
        group: gloo; gathers nothing, but a sharded tensor on a GPU needs it to move to the CPU.
        into: an earlier snapshot that nobody reads any more.
    """
    if isinstance(value, ShardedTensor):
        if any(shard.tensor.device.type != "cpu" for shard in value.local_shards()):
            return value.cpu(process_group=group)
        earlier = into.local_shards() if isinstance(into, ShardedTensor) else []
        shards = [
            Shard(_copy(s.tensor, earlier[at].tensor if at < len(earlier) else None), s.metadata)
            for at, s in enumerate(value.local_shards())
        ]
        return ShardedTensor._init_from_local_shards_and_global_metadata(
            shards, value.metadata(), process_group=value._process_group
        )
    if isinstance(value, torch.Tensor):
        return _copy(value, into)
    if isinstance(value, dict):
        known = into if isinstance(into, dict) else {}
        return {key: snapshot(below, group, known.get(key)) for key, below in value.items()}
    if isinstance(value, list | tuple):
        old = into if isinstance(into, list | tuple) else []
        return type(value)(
            snapshot(below, group, old[at] if at < len(old) else None)
            for at, below in enumerate(value)
        )
    return value


def _copy(tensor: torch.Tensor, into: Any) -> torch.Tensor:
    tensor = tensor.detach()
    fits = isinstance(into, torch.Tensor) and (into.shape, into.dtype) == (
        tensor.shape,
        tensor.dtype,
    )
    if fits and into.device.type == "cpu" and into.data_ptr() != tensor.data_ptr():
        into.copy_(tensor)
        return into  # type: ignore[no-any-return]
    return tensor.to("cpu", copy=True)


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
