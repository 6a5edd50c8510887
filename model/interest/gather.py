"""Products and sums over gathered rows of a table, without making the gathered rows."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from msrec.model.layers.precision import widened

with warnings.catch_warnings():  # The first sparse tensor of a process warns of a beta state.
    warnings.simplefilter("ignore")
    torch.zeros(1, 1).to_sparse_csr()


class _GatherDot(torch.autograd.Function):
    """Dot products of rows with gathered rows of a frozen table.

    On a CPU they are the elements of a sparse product; that is twice as fast as the other way, the
    gradient of `embedding_bag` with respect to its weights per sample.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(table, index)
        flat, starts, rows = index.reshape(-1), _starts(index), rows.contiguous()
        # torch refuses a sparse matrix with more values than elements, as if none were repeated.
        if index.device.type == "cpu" and index.shape[1] <= len(table):
            zeros, size = rows.new_zeros(len(flat)), (len(index), len(table))
            places = torch.sparse_csr_tensor(starts, flat, zeros, size, check_invariants=False)
            products: Tensor = torch.sparse.sampled_addmm(places, rows, table.T).values()
        else:
            bags = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])
            products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                rows, table, flat, starts[:-1], bags, 0
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
    return functional.embedding_bag(
        index.reshape(-1),
        table,
        _starts(index),
        per_sample_weights=widened(weight).reshape(-1),
        mode="sum",
        include_last_offset=True,
    )


def _starts(index: Tensor) -> Tensor:
    """Returns the starts of the rows in the flat index, and its length: (B + 1,)."""
    return torch.arange(0, index.numel() + 1, index.shape[1], device=index.device)
