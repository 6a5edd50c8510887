"""Copies a state dict to CPU memory, to be written while training changes the original."""

import copy
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.shard import Shard

CPU = torch.device("cpu")


def snapshot(value: Any, group: dist.ProcessGroup, reuse: Any = None) -> Any:
    """Copies all tensors in nested dicts, lists and tuples; other values are shared.

    It needs as much memory as this rank's tensors. The memory of an earlier snapshot with the same
    shapes is filled again, which is much faster than touching new memory. Tensors on a GPU go into
    pinned memory, to which all copies run without a wait in between.

    Args:
        value: a state dict.
        group: gloo group; a sharded tensor on a GPU needs it to move to the CPU.
        reuse: an earlier snapshot that nobody reads any more.
    """
    copied = _snapshot(value, group, reuse)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.current_stream().synchronize()
    return copied


def _snapshot(value: Any, group: dist.ProcessGroup, reuse: Any) -> Any:
    if isinstance(value, ShardedTensor):
        return _copy_sharded(value, group, reuse)
    if isinstance(value, torch.Tensor):
        return _copy(value, reuse)
    if isinstance(value, dict):
        earlier = reuse if isinstance(reuse, dict) else {}
        return {key: _snapshot(item, group, earlier.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = reuse[: len(value)] if isinstance(reuse, list | tuple) else []
        pairs = zip_longest(value, items)
        return type(value)(_snapshot(item, group, earlier) for item, earlier in pairs)
    return value


def _copy_sharded(tensor: ShardedTensor, group: dist.ProcessGroup, reuse: Any) -> ShardedTensor:
    shards, metadata, owners = tensor.local_shards(), tensor.metadata(), tensor._process_group
    places = [shard.metadata for shard in shards]
    if any(_device(place) != CPU for place in metadata.shards_metadata):
        metadata, places, owners = copy.deepcopy(metadata), copy.deepcopy(places), group
        for place in [*metadata.shards_metadata, *places]:
            place.placement._device = CPU  # type: ignore[union-attr]
    earlier = reuse.local_shards()[: len(shards)] if isinstance(reuse, ShardedTensor) else []
    copies = [
        Shard(_copy(shard.tensor, None if old is None else old.tensor), place)
        for shard, place, old in zip_longest(shards, places, earlier)
    ]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        copies, metadata, process_group=owners
    )


def _device(place: Any) -> torch.device:
    """Returns the device of a shard's metadata."""
    device: torch.device = place.placement.device()
    return device


def _copy(tensor: torch.Tensor, reuse: Any) -> torch.Tensor:
    """Copies a tensor; a copy from a GPU is complete when its stream is synchronised."""
    tensor = tensor.detach()
    if not (
        isinstance(reuse, torch.Tensor)
        and (reuse.shape, reuse.dtype) == (tensor.shape, tensor.dtype)
        and reuse.device.type == "cpu"
        and reuse.data_ptr() != tensor.data_ptr()
    ):
        reuse = torch.empty_like(tensor, device=CPU, pin_memory=tensor.is_cuda)
    target: torch.Tensor = reuse
    return target.copy_(tensor, non_blocking=tensor.is_cuda)


def num_bytes(value: Any, rank: int) -> int:
    """Returns the bytes that this rank writes: its shards, and on rank 0 the unsharded tensors."""
    if isinstance(value, ShardedTensor):
        return sum(shard.tensor.nbytes for shard in value.local_shards())
    if isinstance(value, torch.Tensor):
        return value.nbytes if rank == 0 else 0
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return sum(num_bytes(item, rank) for item in value)
    return 0
