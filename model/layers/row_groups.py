"""Rows grouped by an integer key: one sort, then each group is multiplied by its own weights."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class RowGroups:
    """Rows of a batch in the order of a key; made once per batch and used by every layer.

    Shape::

        key     [2, 0, 2]      num_groups 4
        order   [1, 0, 2]      rows in key order; equal keys keep their order
        inverse [1, 0, 2]      position of each row after sorting
        counts  [1, 0, 2, 0]   rows of each group; a group may be empty

    While `torch.export` traces, counts are unknown. Rows then keep their places, and `linear`
    computes the results of all groups and picks each row's. The values are the same.
    """

    key: Tensor
    """(B,), int64, in the order that `sort` gives."""
    order: Tensor | None
    inverse: Tensor | None
    counts: list[int]

    def sort(self, x: Tensor) -> Tensor:
        """Returns the rows in key order."""
        return x if self.order is None else x.index_select(0, self.order)

    def unsort(self, x: Tensor) -> Tensor:
        """Returns the rows in the order of the batch."""
        return x if self.inverse is None else x.index_select(0, self.inverse)

    def lookup(self, values: Tensor) -> Tensor:
        """Returns the value of each row's group: (G, D) -> (B, D), rows in key order."""
        if len(values) == 1:
            return values.expand(self.key.shape[0], -1)
        return functional.embedding(self.key, values)

    def sum(self, x: Tensor, num_groups: int) -> Tensor:
        """Returns the sum of the rows of each group: (B, D), in key order -> (G, D)."""
        if num_groups == 1:
            return x.sum(0, keepdim=True)
        return x.new_zeros(num_groups, x.shape[1]).index_add(0, self.key, x)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Multiplies each row by the weights of its group.

        The gradient of a group without rows is zeros, not None, so that DistributedDataParallel
        need not search for unused parameters.

        Shape:
            x: (B, in) or (B, N, in), rows in key order.
            weight: (G, in, out).
            bias: (G, out).
            returns: (B, out) or (B, N, out), rows in key order.
        """
        if x.dim() == 3:
            n = x.shape[1]
            counts = [count * n for count in self.counts]
            flat = RowGroups(self.key.repeat_interleave(n), self.order, self.inverse, counts)
            return torch.unflatten(flat.linear(x.flatten(0, 1), weight, bias), 0, x.shape[:2])
        if self.order is None:
            every = torch.einsum("bi,gio->bgo", x, weight) + bias
            return every.gather(1, self.key.view(-1, 1, 1).expand(-1, 1, bias.shape[1])).squeeze(1)
        parts = zip(bias.unbind(), torch.split(x, self.counts), weight.unbind(), strict=True)
        return torch.cat([torch.addmm(b, rows, w) for b, rows, w in parts])

    def linear_by_task(
        self, x: Tensor | Sequence[Tensor], weight: Tensor, bias: Tensor, num_tasks: int
    ) -> list[Tensor]:
        """Multiplies each row by the weights of its group, separately for each task.

        Shape:
            x: (B, in), the same for all tasks, or one such tensor per task; rows in key order.
            weight: (G, in, T * out), the columns of one task after those of another.
            bias: (G, T * out).
            returns: (B, out) for each task, rows in key order.
        """
        if num_tasks == 1:
            return [self.linear(x if isinstance(x, Tensor) else x[0], weight, bias)]
        if isinstance(x, Tensor):  # one wide product
            return list(self.linear(x, weight, bias).chunk(num_tasks, dim=1))
        parts = zip(x, weight.chunk(num_tasks, dim=2), bias.chunk(num_tasks, dim=1), strict=True)
        return [self.linear(*part) for part in parts]

    def pick(self, every: Tensor) -> Tensor:
        """Returns each row's result out of those of all groups: (G, B, D) -> (B, D)."""
        index = self.key.view(1, -1, 1).expand(1, -1, every.shape[2])
        return every.gather(0, index).squeeze(0)


def group_rows(key: Tensor, num_groups: int, name: str = "scenario") -> RowGroups:
    """Groups rows by key. On CUDA, reading the counts waits once for the device.

    Shape:
        key: (B,), int64 in [0, num_groups).

    Raises:
        ValueError: a key is out of range. (An exported program fails in `gather` instead.)

    Example:
        >>> groups = group_rows(torch.tensor([2, 0, 2]), 4)
        >>> groups.counts, groups.sort(torch.tensor([10, 11, 12])).tolist()
        ([1, 0, 2, 0], [11, 10, 12])
    """
    if torch.compiler.is_exporting():
        return RowGroups(key, None, None, [])
    sorted_key, order = key.sort(stable=True)
    edges = torch.arange(num_groups + 1, dtype=key.dtype, device=key.device)
    bounds: list[int] = torch.searchsorted(sorted_key, edges).tolist()
    if bounds[0] != 0 or bounds[-1] != len(key):
        row = int(order[0] if bounds[0] != 0 else order[-1])
        raise ValueError(
            f"every {name} must be in [0, {num_groups}); got {int(key[row])} in row {row} of the "
            f"batch. Check the {name} ids of the data against the number the model was built with."
        )
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    counts = [b - a for a, b in itertools.pairwise(bounds)]
    return RowGroups(sorted_key, order, inverse, counts)
