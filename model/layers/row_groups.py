"""Rows grouped by an integer key: one sort, then each group is multiplied by its own weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from msrec.data.loading.row_counts import RowCounts, count_rows
from msrec.model.layers.group_functions import GroupedLinear, Permuted
from msrec.model.layers.precision import product_dtype
from msrec.model.layers.tiles import Tiles

MAX_SPARE_PRODUCTS = 1 << 15
"""Most multiply-adds per row with weights of other groups, for which a traced program does not sort
rows: about 0.3 ms of 512 rows on a CPU's core. Sorting takes time for a single row too."""
WIDE_MULTIPLE, GROUPED_MULTIPLE = 16, 4
"""Columns of a product of all groups are a multiple of 16 float32: MKL is slower with 12. Rows of
the matrices of `grouped_mm` must be a multiple of 16 bytes."""


@dataclass(frozen=True)
class RowGroups:
    """Rows of a batch in the order of a key; made once per batch and used by every layer.

    Shape::

        key     [2, 0, 2]      num_groups 4
        order   [1, 0, 2]      rows in key order; equal keys keep their order
        inverse [1, 0, 2]      position of each row after sorting
        counts  [1, 0, 2, 0]   rows of each group; a group may be empty

    `linear` multiplies `tiles` if there are any, as on a GPU, else group by group.

    While `torch.export` traces, counts are unknown. Rows then keep their places. `linear` sorts
    them itself, or multiplies them by the weights of all groups if those are few. The values are
    the same.
    """

    key: Tensor
    """(B,), int64, in the order that `sort` gives."""
    order: Tensor | None = None
    inverse: Tensor | None = None
    counts: list[int] | None = None
    """Always known on a CPU, unless `torch.export` traces."""
    tiles: Tiles | None = None

    def sort(self, x: Tensor) -> Tensor:
        """Returns the rows in key order."""
        if self.order is None:
            return x
        return Permuted.apply(x, self.order, self.inverse)  # type: ignore[no-any-return, no-untyped-call]

    def unsort(self, x: Tensor) -> Tensor:
        """Returns the rows in the order of the batch."""
        if self.inverse is None:
            return x
        return Permuted.apply(x, self.inverse, self.order)  # type: ignore[no-any-return, no-untyped-call]

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
        if self.tiles is not None:
            return self.tiles.linear(x, weight, bias)
        if x.dim() == 3:
            n = x.shape[1]
            counts = None if self.counts is None else [count * n for count in self.counts]
            flat = RowGroups(self.key.repeat_interleave(n), self.order, self.inverse, counts)
            return torch.unflatten(flat.linear(x.flatten(0, 1), weight, bias), 0, x.shape[:2])
        if self.counts is None:
            return self._traced_linear(x, weight, bias)
        return GroupedLinear.apply(x, weight, bias, self.counts, product_dtype(x))  # type: ignore[no-any-return, no-untyped-call]

    def _traced_linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Returns `linear` in a program of `torch.export`."""
        num_groups, fan_in, fan_out = weight.shape
        if (num_groups - 1) * fan_in * fan_out <= MAX_SPARE_PRODUCTS:
            columns = weight.transpose(0, 1).flatten(1)
            columns = functional.pad(columns, (0, -columns.shape[1] % WIDE_MULTIPLE))
            every = torch.unflatten((x @ columns)[:, : bias.numel()], 1, bias.shape) + bias
            return every.gather(1, self.key.view(-1, 1, 1).expand(-1, 1, fan_out)).squeeze(1)
        sorted_key, order = self.key.sort(stable=True)
        groups = torch.arange(num_groups, device=sorted_key.device)
        ends = torch.searchsorted(sorted_key, groups, right=True, out_int32=True)
        more_in, more_out = -fan_in % GROUPED_MULTIPLE, -fan_out % GROUPED_MULTIPLE
        x = functional.pad(x.index_select(0, order), (0, more_in))
        weight = functional.pad(weight, (0, more_out, 0, more_in))
        product: Tensor = functional.grouped_mm(x, weight, offs=ends)
        return product.index_select(0, order.argsort())[:, :fan_out] + functional.embedding(
            self.key, bias
        )

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


def group_rows(
    key: Tensor, num_groups: int, counts: RowCounts | None = None, name: str = "scenario"
) -> RowGroups:
    """Groups rows by key, without waiting for the device.

    Shape:
        key: (B,), int64 in [0, num_groups).
        counts: (num_groups,), int64, rows of each group, as the loader counts them. Without them
            rows on a CPU are counted here. Elsewhere a few more rows are multiplied, see `Tiles`.

    Raises:
        ValueError: rows are counted here and a key is out of range. (An exported program fails
            where it picks the values of a row instead.)

    Example:
        >>> groups = group_rows(torch.tensor([2, 0, 2]), 4)
        >>> groups.counts, groups.sort(torch.tensor([10, 11, 12])).tolist()
        ([1, 0, 2, 0], [11, 10, 12])
    """
    if torch.compiler.is_exporting():
        return RowGroups(key)
    is_cpu = key.device.type == "cpu"
    if counts is None and is_cpu:
        counts = count_rows(key.numpy(), num_groups, name)
    sorted_key, order = key.sort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    sizes: list[int] | None = None if counts is None else counts.tolist()
    tiles = None if is_cpu else Tiles.cut(sorted_key, num_groups, sizes)
    return RowGroups(sorted_key, order, inverse, sizes, tiles)


@torch.library.register_fake("aten::_grouped_mm", allow_override=True)  # type: ignore[untyped-decorator]
def _fake_grouped_mm(x: Tensor, weight: Tensor, *_: object, **__: object) -> Tensor:
    """Returns a result of `grouped_mm` while a program is traced; torch's own refuses float32."""
    return x.new_empty(x.shape[0], weight.shape[2])  # `len` would fix the number of rows
