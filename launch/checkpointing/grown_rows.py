"""First rows of a tensor that has more rows than a checkpoint, on the ranks of its shards."""

from typing import Any

import torch
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata
from torch.distributed._shard.sharded_tensor.shard import Shard


def empty_rows(tensor: Any, saved: tuple[int, ...]) -> Any:
    """Returns an empty tensor of the saved shape, with its rows on the ranks of `tensor`'s rows.

    DCP fills it, each rank reading only its rows. So no rank ever holds a whole table.
    """
    if not isinstance(tensor, ShardedTensor):
        return torch.empty(saved, dtype=tensor.dtype, device=tensor.device)
    whole = tensor.metadata()
    cut = [_first_rows(shard, saved[0]) for shard in whole.shards_metadata]
    metadata = ShardedTensorMetadata(
        shards_metadata=[shard for shard in cut if shard is not None],
        size=torch.Size(saved),
        tensor_properties=whole.tensor_properties,
    )
    shards = [
        Shard(shard.tensor.new_empty(own.shard_sizes), own)
        for shard in tensor.local_shards()
        if (own := _first_rows(shard.metadata, saved[0])) is not None
    ]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        shards, metadata, process_group=tensor._process_group
    )


def copy_first_rows(rows: Any, tensor: Any) -> None:
    """Copies what `empty_rows` returned, now filled, to the first rows of `tensor`."""
    with torch.no_grad():
        if not isinstance(tensor, ShardedTensor):
            tensor[: len(rows)].copy_(rows)
            return
        to = {tuple(shard.metadata.shard_offsets): shard.tensor for shard in tensor.local_shards()}
        for shard in rows.local_shards():
            to[tuple(shard.metadata.shard_offsets)][: len(shard.tensor)].copy_(shard.tensor)


def _first_rows(shard: ShardMetadata, num_rows: int) -> ShardMetadata | None:
    """Returns the part of a shard within the first rows of the table; None if it is empty."""
    rows = min(shard.shard_sizes[0], num_rows - shard.shard_offsets[0])
    if rows <= 0:
        return None
    sizes = [rows, *shard.shard_sizes[1:]]
    return ShardMetadata(list(shard.shard_offsets), sizes, shard.placement)
