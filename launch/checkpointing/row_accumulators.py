"""Reads accumulators of row-wise Adagrad for tables that grew or whose columns are divided anew.

Row-wise Adagrad has one accumulator per row: the sum over steps of the mean square of the row's
gradient. A table that is divided by columns has one per row and column shard, the mean square over
the columns of the shard. TorchRec saves them one shard after the other, in order of columns:

    saved by 2 column shards, 3 rows:    a0 a1 a2 | b0 b1 b2      (shard a, shard b)
    read by 1 shard of all columns:      (a0+b0)/2 (a1+b1)/2 (a2+b2)/2

A mean over columns is a mean over shards, weighted by their columns, so that fewer shards continue
with the sums that their own gradients would have had. More shards continue with the row's mean.
Rows after the saved ones keep their accumulators.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from msrec.launch.checkpointing.dcp_storage import Index, read_tensors

Cut = tuple[int, int]
"""First column and number of columns of a shard."""


def take_divided_otherwise(
    index: Index, state: dict[str, dict[str, Any]]
) -> dict[str, tuple[str, ShardedTensor]]:
    """Removes the accumulators that were saved in another shape from an optimizer's state.

    Args:
        index: of the checkpoint.
        state: parameter -> name -> tensor, of this rank; `dict`s are changed in place.

    Returns:
        Name in the checkpoint -> parameter and tensor of each.
    """
    taken = {}
    for parameter, tensors in list(state.items()):
        for name, tensor in list(tensors.items()):
            saved = index.get(full := f"optim.{parameter}.{name}")
            is_by_row = isinstance(tensor, ShardedTensor) and len(tensor.size()) == 1
            if is_by_row and saved is not None and saved["size"] != list(tensor.size()):
                taken[full] = (parameter, tensors.pop(name))
        if not tensors:
            del state[parameter]  # DCP takes an empty dict for a value that was saved
    return taken


def read_accumulators(
    path: Path,
    index: Index,
    taken: Mapping[str, tuple[str, ShardedTensor]],
    weights: Mapping[str, ShardedTensor],
) -> None:
    """Fills the local shards of accumulators from those of other column shards.

    One table's accumulators at a time are in memory: 4 bytes per row and column shard.

    Args:
        path: of the checkpoint.
        index: of the checkpoint.
        taken: of `take_divided_otherwise`.
        weights: the sharded tables of the model by their names.
    """
    for full, (parameter, accumulators) in taken.items():
        table = parameter.partition(".")[2]  # the name starts with that of the optimizer
        weight = weights[table]
        chunks, num_rows = index[f"model.{table}"]["chunks"], index[f"model.{table}"]["size"][0]
        old = sorted({(chunk["offsets"][1], chunk["sizes"][1]) for chunk in chunks})
        saved = read_tensors(path, full)[full].view(len(old), num_rows)
        pairs = zip(weight.local_shards(), accumulators.local_shards(), strict=True)
        for own, accumulator in pairs:
            (row, column), (rows, columns) = own.metadata.shard_offsets, own.metadata.shard_sizes
            values = _shares(old, (column, columns)) @ saved[:, row : row + rows]
            accumulator.tensor[: len(values)].copy_(values)


def _shares(old: list[Cut], new: Cut) -> torch.Tensor:
    """Returns the share of the columns of a new shard that each old shard has.

    Example:
        >>> _shares([(0, 4), (4, 4)], (0, 8))
        tensor([0.5000, 0.5000])
    """
    first, columns = new
    common = [min(at + n, first + columns) - max(at, first) for at, n in old]
    return torch.tensor([max(n, 0) / columns for n in common])
