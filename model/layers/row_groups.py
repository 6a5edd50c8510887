"""Rows grouped by an integer key: one sort, then each group runs its own weights."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class RowGroups:
    """The rows of a batch in key order; made once, used by every layer.

    Shape::

        key     [2, 0, 2]      num_groups 4
        order   [1, 0, 2]      rows in key order, ties as they came
        inverse [1, 0, 2]      where each row went
        counts  [1, 0, 2, 0]   rows of each group; an empty group is fine

    While `torch.export` traces, counts are not known: rows stay where they are, and `linear` picks
    each row's result out of those of all groups. The numbers are the same.
    """

    key: Tensor
    """(B,), int64, of the rows as `sort` leaves them."""
    order: Tensor | None
    inverse: Tensor | None
    counts: list[int]

    def sort(self, x: Tensor) -> Tensor:
        """Rows in key order."""
        return x if self.order is None else x.index_select(0, self.order)

    def unsort(self, x: Tensor) -> Tensor:
        """Rows in the order of the batch."""
        return x if self.inverse is None else x.index_select(0, self.inverse)

    def own(self, values: Tensor) -> Tensor:
        """What belongs to each row's group: (G, D) -> (B, D), rows in key order."""
        return functional.embedding(self.key, values)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Each row times the weights of its group.

        A group without rows gets a gradient of zeros, not None, so that DistributedDataParallel
        needs no search for unused parameters.

        Shape:
            x: (B, in) or (B, N, in), rows in key order.
            weight: (G, in, out).
            bias: (G, out).
            returns: (B, out) or (B, N, out), rows in key order.
        """
        if x.dim() == 3:
            many = RowGroups(self.key.repeat_interleave(x.shape[1]), self.order, self.inverse, [])
            many.counts.extend(count * x.shape[1] for count in self.counts)
            return torch.unflatten(many.linear(x.flatten(0, 1), weight, bias), 0, x.shape[:2])
        if self.order is None:
            every = torch.einsum("bi,gio->bgo", x, weight) + bias
            return every.gather(1, self.key.view(-1, 1, 1).expand(-1, 1, bias.shape[1])).squeeze(1)
        parts = zip(bias.unbind(), torch.split(x, self.counts), weight.unbind(), strict=True)
        return torch.cat([torch.addmm(b, rows, w) for b, rows, w in parts])

    def pick(self, every: Tensor) -> Tensor:
        """Each row's own of what was computed for all groups: (G, B, D) -> (B, D)."""
        index = self.key.view(1, -1, 1).expand(1, -1, every.shape[2])
        return every.gather(0, index).squeeze(0)


def group_rows(key: Tensor, num_groups: int, name: str = "scenario") -> RowGroups:
    """Group rows by key. On CUDA the counts cost one wait for the device.

    Shape:
        key: (B,), int64 in [0, num_groups).

    Raises:
        ValueError: a key is out of range. (An exported program fails in its gather instead.)

    Example:
        >>> groups = group_rows(torch.tensor([2, 0, 2]), 4)
        >>> groups.counts, groups.sort(torch.tensor([10, 11, 12])).tolist()
        ([1, 0, 2, 0], [11, 10, 12])
    """
    if torch.compiler.is_exporting():
        return RowGroups(key, None, None, [])
    ordered, order = key.sort(stable=True)
    edges = torch.arange(num_groups + 1, dtype=key.dtype, device=key.device)
    bounds: list[int] = torch.searchsorted(ordered, edges).tolist()
    if bounds[0] != 0 or bounds[-1] != len(key):
        row = int(order[0] if bounds[0] != 0 else order[-1])
        raise ValueError(
            f"every {name} must be in [0, {num_groups}); got {int(key[row])} in row {row} of the "
            f"batch. Check the {name} ids of the data against the number the model was built with."
        )
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    counts = [b - a for a, b in zip(bounds, bounds[1:], strict=False)]
    return RowGroups(ordered, order, inverse, counts)
