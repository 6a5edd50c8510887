"""Products and sums over gathered rows of a table, without making the gathered rows."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from msrec.model.layers.precision import widened


class _GatherDot(torch.autograd.Function):
    """Dot products of rows with gathered rows of a frozen table.

    torch has no operation of this name, but it is the gradient of `embedding_bag` with respect to
    its weights per sample, and the other way round.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(table, index)
        flat = index.reshape(-1)
        places = index.shape[1]
        bags = torch.arange(len(index), device=index.device)
        products: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            rows.contiguous(), table, flat, bags * places, bags.repeat_interleave(places), 0
        )
        return products.view(index.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        table, index = ctx.saved_tensors
        return weighted_sum(table, index, grad.contiguous()), None, None


def gather_dot(rows: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Returns the dot products of each row with K rows of a table that gets no gradient.

    Shape:
        rows: (B, D), float.
        table: (M, D), float.
        index: (B, K), int64 in [0, M).
        returns: (B, K).
    """
    if torch.compiler.is_exporting():
        return torch.bmm(table[index], rows.unsqueeze(2)).squeeze(2)
    products: Tensor = _GatherDot.apply(widened(rows), table, index)  # type: ignore[no-untyped-call]
    return products


def weighted_sum(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Returns the sum over K of weight[b, k] * table[index[b, k]]: (B, D)."""
    if torch.compiler.is_exporting():
        return torch.bmm(weight.unsqueeze(1), table[index]).squeeze(1)
    weight = widened(weight)
    return functional.embedding_bag(index, table, per_sample_weights=weight, mode="sum")
