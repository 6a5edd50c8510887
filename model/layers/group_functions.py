"""Functions of sorted rows with gradients written by hand, which read and write group by group.

Autograd would split a tensor by group and concatenate the results, forward and backward, in every
layer. These functions write each group's rows into their place. Results are the same bit for bit,
unless a docstring says otherwise.
"""

# ruff: noqa: D102
# The docstring of a class describes its `forward`.

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

threshold_backward = torch.ops.aten.threshold_backward


class Permuted(torch.autograd.Function):
    """Rows in another order; the gradient is taken by the inverse, not added up into zeros.

    Shape:
        x: (B, ...).
        order, inverse: (B,), int64, a permutation and its inverse.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


class _Window(NamedTuple):
    """Rows [first, first + size) of sorted rows, of which [start, stop) are a group.

    The kernels of bfloat16 products on a CPU are made for each shape, which takes longer than the
    product. Groups have other sizes in every batch: a window rounds them up to few sizes, at most
    an eighth larger. It begins with the group, unless it would end beyond the last row.
    """

    first: int
    size: int
    start: int
    stop: int

    def of(self, rows: Tensor) -> Tensor:
        """Returns the window's rows."""
        return rows[self.first : self.first + self.size]

    def alone(self, rows: Tensor) -> Tensor:
        """Returns the window's rows, with zeros for those of other groups."""
        if self.size == self.stop - self.start:
            return self.of(rows)
        alone = rows.new_zeros(self.size, rows.shape[1])
        alone[self.start - self.first : self.stop - self.first] = rows[self.start : self.stop]
        return alone

    def write(self, out: Tensor, rows: Tensor, product: Callable[..., Tensor]) -> None:
        """Writes `product` of the window's rows to the group's rows of `out`, group after group.

        Rows behind the group are overwritten too: those of the groups that come next.
        """
        if self.first == self.start:
            product(self.of(rows), out=self.of(out))
            return
        of_window = out.new_empty(self.size, out.shape[1])
        product(self.of(rows), out=of_window)
        out[self.start : self.stop] = of_window[self.start - self.first : self.stop - self.first]


def _windows(counts: list[int], x: Tensor) -> list[_Window]:
    """Returns a window for each group of rows x; the group itself where shapes cost nothing."""
    rounds = x.dtype == torch.bfloat16 and x.device.type == "cpu"
    windows, start = [], 0
    for count in counts:
        step = max(8, 1 << max(0, count.bit_length() - 4)) if rounds and count else 1
        size = min(-(-count // step) * step, len(x))
        first = min(start, len(x) - size)
        windows.append(_Window(first, size, start, start + count))
        start += count
    return windows


class GroupedLinear(torch.autograd.Function):
    """Rows times the weights of their group, plus its bias.

    Products have the type `dtype`, gradients those of the inputs.

    Shape:
        x: (B, in), the groups one after another.
        weight: (G, in, out).
        bias: (G, out).
        counts: (G,), rows of each group; a group may be empty.
        returns: (B, out).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, counts: list[int], dtype: torch.dtype
    ) -> Tensor:
        ctx.types = x.dtype, weight.dtype, bias.dtype
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.groups = groups = _windows(counts, x)
        out = x.new_empty(len(x), bias.shape[1])
        for group, b, w in zip(groups, bias, weight, strict=True):
            group.write(out, x, partial(torch.addmm, b, mat2=w))
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        grad, groups = grad.contiguous(), ctx.groups
        x_grad = weight_grad = bias_grad = None
        if of_x:
            x_grad = torch.empty_like(x)
            for group, w in zip(groups, weight, strict=True):
                group.write(x_grad, grad, partial(torch.mm, mat2=w.T))
            x_grad = x_grad.to(ctx.types[0])
        if of_weight:
            weight_grad = weight.new_empty(weight.shape)
            for group, to in zip(groups, weight_grad, strict=True):
                torch.mm(group.of(x).T, group.alone(grad), out=to)
            weight_grad = weight_grad.to(ctx.types[1])
        if of_bias:
            sums = [grad[group.start : group.stop].sum(0) for group in groups]
            bias_grad = torch.stack(sums).to(ctx.types[2])
        return x_grad, weight_grad, bias_grad, None, None


class ReLUChain(torch.autograd.Function):
    """Linear layers with a ReLU between them, and after the last one if `ends_with_relu`.

    The gradient of a hidden layer belongs to this function alone: its ReLU overwrites it. Autograd
    would write a second matrix of the same size.

    Shape:
        x: (B, in), float, the groups one after another.
        counts: (G,), rows of each group; None if all rows have the same weights.
        parameters: weight and bias of each layer: (G, in, out) and (G, out), or without G.
        returns: (B, out of the last layer).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, counts: list[int] | None, ends_with_relu: bool, *parameters: Tensor
    ) -> Tensor:
        ctx.counts, ctx.ends_with_relu = counts, ends_with_relu
        weights, biases = parameters[::2], parameters[1::2]
        inputs = [x]
        for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            out = x.new_empty(len(x), bias.shape[-1])
            of_groups = _groups(counts, (inputs[-1], out), (weight, bias))
            for rows, to, w, b in of_groups:
                torch.addmm(b, rows, w, out=to)
            if ends_with_relu or number < len(weights) - 1:
                out.relu_()
            inputs.append(out)
        ctx.save_for_backward(*inputs, *weights)
        return inputs[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        counts = ctx.counts
        num_layers = len(ctx.saved_tensors) // 2
        *inputs, last = ctx.saved_tensors[: num_layers + 1]
        weights = ctx.saved_tensors[num_layers + 1 :]
        grad = threshold_backward(grad, last, 0) if ctx.ends_with_relu else grad.contiguous()
        grads: list[Tensor | None] = []
        for number in reversed(range(num_layers)):
            x, weight = inputs[number], weights[number]
            of_weight = torch.empty_like(weight)
            for g, rows, to in _groups(counts, (grad, x), (of_weight,)):
                # The product that autograd takes, so that sums have the same order.
                if to.stride(0) == 1:
                    torch.mm(g.T, rows, out=to.T)
                else:
                    torch.mm(rows.T, g, out=to)
            sums = [g.sum(0) for (g,) in _groups(counts, (grad,), ())]
            grads += [sums[0] if counts is None else torch.stack(sums), of_weight]
            if number == 0 and not ctx.needs_input_grad[0]:
                return None, None, None, *grads[::-1]
            of_x = torch.empty_like(x)
            for g, to, w in _groups(counts, (grad, of_x), (weight,)):
                torch.mm(g, w.T, out=to)
            if number > 0:
                threshold_backward.grad_input(of_x, x, 0, grad_input=of_x)
            grad = of_x
        return grad, None, None, *grads[::-1]


def _groups(
    counts: list[int] | None, rows: Sequence[Tensor], values: Sequence[Tensor]
) -> Iterator[tuple[Tensor, ...]]:
    """Yields the rows of each group and its values."""
    if counts is None:
        return iter([(*rows, *values)])
    return zip(*(torch.split(each, counts) for each in rows), *values, strict=True)


class ExpertLinear(torch.autograd.Function):
    """Rows times the weights of each expert, plus its bias; the gradient of x has the layout of x.

    If x is a view of a wide matrix with the experts side by side, autograd's own gradient would
    have to be copied to that layout.

    Shape:
        x: (E, B, in).
        weight: (E, in, out).
        bias: (E, 1, out).
        returns: (E, B, out).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.types = x.dtype, weight.dtype, bias.dtype
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias, x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        of_x = torch.empty_like(x)
        for g, w, to in zip(grad, weight, of_x, strict=True):
            torch.mm(g, w.T, out=to)
        of_weight, of_bias = torch.bmm(x.mT, grad), grad.sum(1, keepdim=True)
        dtypes = ctx.types
        return of_x.to(dtypes[0]), of_weight.to(dtypes[1]), of_bias.to(dtypes[2]), None


class GroupedMoments(torch.autograd.Function):
    """Sum and sum of squares of the distances of each group's rows to its centre.

    Sums are rounded otherwise than those of `RowGroups.sum`.

    Shape:
        x: (B, D), float, the groups one after another.
        used: (B,), float, 0 or 1; a row with 0 does not count.
        centre: (G, D), without gradient.
        counts: (G,), rows of each group.
        returns: (G, D) twice.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, used: Tensor, centre: Tensor, counts: list[int]
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, used, centre)
        ctx.counts = counts
        total, squares = torch.empty_like(centre), torch.empty_like(centre)
        parts = (torch.split(x, counts), torch.split(used, counts), centre, total, squares)
        for rows, of_rows, c, t, s in zip(*parts, strict=True):
            distance = (rows - c).mul_(of_rows.unsqueeze(1))
            torch.sum(distance, 0, out=t)
            torch.sum(distance.square_(), 0, out=s)
        return total, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor, of_squares: Tensor) -> tuple[Tensor, None, None, None]:
        x, used, centre = ctx.saved_tensors
        grad, twice = torch.empty_like(x), 2 * of_squares
        parts = (torch.split(x, ctx.counts), torch.split(used, ctx.counts), centre, of_total, twice)
        for rows, of_rows, c, t, s, to in zip(*parts, torch.split(grad, ctx.counts), strict=True):
            torch.addcmul(t, rows - c, s, out=to).mul_(of_rows.unsqueeze(1))
        return grad, None, None, None


class GroupedAffine(torch.autograd.Function):
    """(x - mean) * scale + shift, with the values of each row's group.

    Shape:
        x: (B, D), float, the groups one after another.
        mean, scale, shift: (G, D).
        counts: (G,), rows of each group.
        returns: (B, D).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, counts: list[int]
    ) -> Tensor:
        ctx.save_for_backward(x, mean, scale)
        ctx.counts = counts
        out = torch.empty_like(x)
        parts = (torch.split(x, counts), mean, scale, shift, torch.split(out, counts))
        for rows, m, a, b, to in zip(*parts, strict=True):
            torch.addcmul(b, rows - m, a, out=to)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x, mean, scale = ctx.saved_tensors
        of_x = torch.empty_like(x)
        of_scale, of_shift = torch.empty_like(scale), torch.empty_like(scale)
        rows_of = (
            torch.split(grad, ctx.counts),
            torch.split(x, ctx.counts),
            torch.split(of_x, ctx.counts),
        )
        for g, rows, to, m, a, ga, gb in zip(
            *rows_of, mean, scale, of_scale, of_shift, strict=True
        ):
            torch.mul(g, a, out=to)
            torch.sum((rows - m).mul_(g), 0, out=ga)
            torch.sum(g, 0, out=gb)
        return of_x, -scale * of_shift, of_scale, of_shift, None


class GroupedBatchNorm(torch.autograd.Function):
    """Batch normalisation of each group by its own rows, by torch's kernel.

    A group with fewer than 2 rows has no variance: its moving averages take the place of its
    moments, and do not change.

    Shape:
        x: (B, D), float32, the groups one after another.
        scale, shift: (G, D).
        moving_mean, moving_var: (G, D), which this function updates.
        counts: (G,), rows of each group; a group may be empty.
        returns: (B, D).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        moving_mean: Tensor,
        moving_var: Tensor,
        counts: list[int],
        momentum: float,
        eps: float,
    ) -> Tensor:
        out = torch.empty_like(x)
        mean, inverse_std = torch.empty_like(scale), torch.empty_like(scale)
        moving = moving_mean, moving_var
        of_groups = _groups(counts, (x, out), (scale, shift, *moving, mean, inverse_std))
        for rows, to, a, b, mm, mv, m, i in of_groups:
            if len(rows):
                has_variance = len(rows) > 1
                torch.native_batch_norm(
                    rows, a, b, mm, mv, has_variance, momentum, eps, out=(to, m, i)
                )
        # Groups without a variance read the moving averages again, which may have changed by then.
        ctx.save_for_backward(x, scale, *(each.clone() for each in moving), mean, inverse_std)
        ctx.counts, ctx.eps = counts, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, *moments = ctx.saved_tensors
        of_x = torch.empty_like(x)
        of_scale, of_shift = torch.zeros_like(scale), torch.zeros_like(scale)
        values = (scale, *moments, of_scale, of_shift)
        for g, rows, to, *of_group in _groups(ctx.counts, (grad.contiguous(), x, of_x), values):
            if len(rows):
                *inputs, to_scale, to_shift = of_group
                torch.ops.aten.native_batch_norm_backward.out(
                    *(g, rows, *inputs, len(rows) > 1, ctx.eps, [True] * 3),
                    out0=to,
                    out1=to_scale,
                    out2=to_shift,
                )
        return of_x, of_scale, of_shift, *[None] * 5
