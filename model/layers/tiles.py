"""Products of rows with the weights of their groups, as one batched product."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

MAX_TILE = 256
"""Most rows of a tile."""


@dataclass(frozen=True)
class Tiles:
    """Sorted rows, cut into tiles of equal size with rows of one group each.

    The last tile of a group is padded. Two groups, a with 3 rows and b with 1, and tiles of 2::

        rows   a0 a1 a2 b0
        slot   [0, 1, 2, 4]
        tiles  [a0 a1] [a2 --] [b0 --]        group [0, 0, 1]

    A loop over groups runs one small product each, which leaves a GPU idle. With tiles of
    min(B / G, `MAX_TILE`) rows, B + min(B, G * MAX_TILE) rows are multiplied at most, and there are
    at most G + max(G, B / MAX_TILE) tiles, whatever the sizes of the groups.

    torch's own `grouped_mm` needs bfloat16 and sizes that are multiples of 8. On other GPUs than
    Hopper and Blackwell it reads the sizes of the groups back.

    Shape:
        slot: (B,), int64, place of each row in the tiles.
        group: (N,), int64, group of each tile; None if tile g holds all rows of group g.
        num, size: N tiles of `size` rows.
    """

    slot: Tensor
    group: Tensor | None
    num: int
    size: int

    @classmethod
    def cut(cls, key: Tensor, num_groups: int, counts: list[int] | None = None) -> Self:
        """Cuts rows into tiles of the size above.

        Shape:
            key: (B,), int64 in [0, num_groups), ascending.
            counts: (num_groups,), rows of each group; without them there are as many tiles as any
                sizes of the groups need.
        """
        rows = len(key)
        size = max(1, min(-(-rows // num_groups), MAX_TILE))
        num = num_groups + rows // size
        if counts is not None:
            num = sum(-(-count // size) for count in counts)
        start, position = _positions(key, num_groups)
        tiles = torch.div(start.diff() + size - 1, size, rounding_mode="floor")
        end = tiles.cumsum(0)
        slot = (end - tiles).index_select(0, key) * size + position
        number = torch.arange(num, device=key.device)
        group = torch.searchsorted(end, number, right=True).clamp(max=num_groups - 1)
        return cls(slot, group, num, size)

    @classmethod
    def one_per_group(cls, key: Tensor, num_groups: int, largest: int) -> Self:
        """Returns tiles as large as the largest group, one for each group, also for empty ones."""
        _, position = _positions(key, num_groups)
        return cls(key * largest + position, None, num_groups, largest)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Multiplies each row by the weights of its group, as `RowGroups.linear`.

        Shape:
            x: (B, in) or (B, M, in), sorted rows.
            weight: (G, in, out).
            bias: (G, out).
            returns: (B, out) or (B, M, out).
        """
        if self.group is not None:
            weight, bias = weight.index_select(0, self.group), bias.index_select(0, self.group)
        padded = x.new_zeros(self.num * self.size, *x.shape[1:]).index_copy(0, self.slot, x)
        tiles = padded.view(self.num, self.size * x.shape[1:-1].numel(), x.shape[-1])
        out = torch.baddbmm(bias.unsqueeze(1), tiles, weight)
        shape = (self.num * self.size, *x.shape[1:-1], bias.shape[1])
        return out.view(shape).index_select(0, self.slot)


def _positions(key: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Returns the first row of each group, (G + 1,), and the position of each row in its group."""
    edges = torch.arange(num_groups + 1, dtype=key.dtype, device=key.device)
    start = torch.searchsorted(key, edges)
    rows = torch.arange(len(key), device=key.device)
    return start, rows - start.index_select(0, key)
