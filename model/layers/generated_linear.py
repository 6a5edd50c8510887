"""Linear layer with weights generated from a vector, one per row or per distinct key."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from msrec.data.loading.row_counts import RowCounts
from msrec.model.layers.mlp import check_positive
from msrec.model.layers.precision import float32_products, product_dtype
from msrec.model.layers.row_groups import RowGroups, group_rows
from msrec.model.layers.tiles import Tiles

CHUNK_ELEMENTS = 2**18
"""Elements of z ⊗ x per step of the contracted form: 1 MiB, so that it stays in a CPU's cache."""
FORMS = ("auto", "contracted", "distinct", "factored")
LOOP_KEYS = 256
"""Keys up to which a CPU multiplies group by group; above, it runs one padded product."""


@dataclass(frozen=True)
class Codes:
    """Generating vectors of a batch.

    In the contracted form `groups` is None and `z` has one row per row of the batch. In the
    distinct form `z` has one row per key, and x must be in the order of `groups`.

    Shape:
        z: (B, R + 1) or (U, R + 1); column 0 is 1, for the part that no vector changes.
    """

    z: Tensor
    groups: RowGroups | None

    def sort(self, x: Tensor) -> Tensor:
        """Returns the rows of a batch in the order of the codes."""
        return x if self.groups is None else self.groups.sort(x)

    def unsort(self, x: Tensor) -> Tensor:
        """Returns the rows in the order of the batch."""
        return x if self.groups is None else self.groups.unsort(x)


def make_codes(
    z: Tensor, key: Tensor, form: str = "auto", counts: RowCounts | None = None
) -> Codes:
    """Chooses the form for one batch; all generated layers share the result.

    `auto` takes the cheaper form by this estimate, in multiply-adds per in_dim * out_dim::

        contracted              B (R + 1)
        distinct, U <= 256      U (R + 1) + B
        distinct, U > 256       U (R + 1) + U (16 + 2 n)

    n is the number of rows of the most frequent key, to which all keys are padded. 16 and 2 are
    fitted to times on one CPU thread (B=4096, R=16, layers of 16 to 64, U of 512 to 2048): W(z) of
    each key must pass through memory, and small products are slower than one large product. Other
    devices multiply `Tiles`, which are not padded to n, so that the second line holds for any U.

    `FactoredLinear` needs the codes of the contracted form and calls it `factored`.

    Shape:
        z: (U, R + 1), float.
        key: (B,), int64 in [0, U).
        counts: (U,), int64, rows of each key, on the host; see `group_rows`.

    Raises:
        ValueError: the form is unknown, or a key is out of range.
    """
    check_form(form)
    groups = None
    is_per_row = form in ("contracted", "factored")
    if not is_per_row and not torch.compiler.is_exporting():  # while it traces, U is unknown
        groups = _distinct_groups(z, key, form, counts)
    return Codes(z.index_select(0, key), None) if groups is None else Codes(z, groups)


def _distinct_groups(
    z: Tensor, key: Tensor, form: str, counts: RowCounts | None
) -> RowGroups | None:
    """Returns the groups of the distinct form, or None if the contracted form is cheaper."""
    (keys, width), rows = z.shape, len(key)
    is_padded = keys > LOOP_KEYS and key.device.type == "cpu"

    def is_cheaper(largest: int) -> bool:
        of_rows = keys * (16 + 2 * largest) if is_padded else rows
        return form == "distinct" or keys * width + of_rows < rows * width

    if not is_cheaper(largest=1):
        return None
    groups = group_rows(key, keys, counts, "user_index")
    if not is_padded:
        return groups
    largest = max(groups.counts or [0])
    if not is_cheaper(largest):
        return None
    return replace(groups, tiles=Tiles.one_per_group(groups.key, keys, largest))


def check_form(form: str) -> None:
    """Raises a ValueError if the form is unknown."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}; got {form!r}.")


class GeneratedLinear(nn.Module):
    """y = W(z) x + b(z) with W(z) = sum_r z_r M_r and b(z) = sum_r z_r c_r, where z_0 = 1.

    There are two exact forms. *Contracted* never builds W(z): y = (z ⊗ x) M, with z ⊗ x built for a
    chunk of rows at a time. *Distinct* builds W(z) once per key, in memory U in_dim out_dim, and
    multiplies the rows of the key by it.

    Shape:
        x: (B, in_dim), float, in the order of `codes`.
        returns: (B, out_dim), float, same order.

    Source:
        M2M's meta unit (arXiv 2201.06814, V_w s + v_w reshaped to a matrix); LLM4MSR generates
        weights and biases of its meta layers alike. M_0 starts as nn.Linear; M_r starts 1 / sqrt(R)
        as large, so that the generated part starts no larger than M_0 for |z_r| <= 1.

    Example:
        >>> codes = make_codes(torch.ones(2, 3), torch.tensor([0, 1, 1, 0]))
        >>> GeneratedLinear(8, 4, rank=2)(torch.zeros(4, 8), codes).shape
        torch.Size([4, 4])
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, zero: bool = False) -> None:
        super().__init__()
        check_positive(in_dim=in_dim, out_dim=out_dim, rank=rank)
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.weight = nn.Parameter(torch.zeros(rank + 1, in_dim, out_dim))
        self.bias = nn.Parameter(torch.zeros(rank + 1, out_dim))
        if not zero:
            bound = 1 / math.sqrt(in_dim)
            with torch.no_grad():
                for part in (self.weight, self.bias):
                    part.uniform_(-bound, bound)
                    part[1:] /= math.sqrt(rank)

    def generate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns W(z), (U, in_dim, out_dim), and b(z), (U, out_dim), of codes (U, R + 1)."""
        weight = torch.unflatten(z @ self.weight.flatten(1), 1, (self.in_dim, self.out_dim))
        return weight, z @ self.bias

    def forward(self, x: Tensor, codes: Codes) -> Tensor:
        """Multiplies each row by the weights that its code generates."""
        z = codes.z
        if codes.groups is None and torch.compiler.is_exporting():
            # x M_r of all r: a smaller input than z ⊗ x, to be rounded for a faster product.
            every = x @ self.weight.transpose(0, 1).flatten(1)
            every = torch.unflatten(every, 1, self.bias.shape) + self.bias
            return (z.unsqueeze(2) * every).sum(1)
        if codes.groups is None:
            dtype = product_dtype(x)
            product: Tensor = _Contracted.apply(x, z, self.weight, dtype)  # type: ignore[no-untyped-call]
            return product + z @ self.bias
        return codes.groups.linear(x, *self.generate(z))


class FactoredLinear(nn.Module):
    """y = ((x V) * (z A)) U + b(z), so that W(z) = V diag(z A) U and b(z) = sum_r z_r c_r; z_0 = 1.

    All keys share V and U, and a code only scales the k columns between them. This is a smaller
    class of functions than `GeneratedLinear` and takes about k (in_dim + out_dim) products per row
    in place of (R + 1) in_dim out_dim.

    Shape:
        x: (B, in_dim), float.
        codes: per row, see `make_codes`.
        returns: (B, out_dim), float.

    Source:
        A low-rank form of M2M's meta unit (arXiv 2201.06814), in which a generated vector gates the
        layer between two learned ones, as PEPNet's gates do (arXiv 2302.01115). k is the smaller of
        in_dim and max(out_dim, R + 1), so that every number of the code can have an own column. V
        keeps the variance of x and the first row of A is 1, so that y starts as of nn.Linear.

    Example:
        >>> codes = make_codes(torch.ones(2, 3), torch.tensor([0, 1, 1, 0]), "factored")
        >>> FactoredLinear(8, 4, rank=2)(torch.zeros(4, 8), codes).shape
        torch.Size([4, 4])
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, zero: bool = False) -> None:
        super().__init__()
        check_positive(in_dim=in_dim, out_dim=out_dim, rank=rank)
        self.in_dim, self.out_dim = in_dim, out_dim
        inner = min(in_dim, max(out_dim, rank + 1))
        self.first = nn.Parameter(
            torch.empty(in_dim, inner).uniform_(-1, 1) * math.sqrt(3 / in_dim)
        )
        self.gains = nn.Parameter(torch.empty(rank + 1, inner).uniform_(-1, 1) / math.sqrt(rank))
        self.last = nn.Parameter(torch.empty(inner, out_dim).uniform_(-1, 1) / math.sqrt(inner))
        self.bias = nn.Parameter(torch.zeros(rank + 1, out_dim))
        with torch.no_grad():
            self.gains[0] = 1
            if zero:
                self.last.zero_()

    @property
    def weight(self) -> Tensor:
        """Matrices M_r with W(z) = sum_r z_r M_r, (R + 1, in_dim, out_dim)."""
        return (self.first * self.gains.unsqueeze(1)) @ self.last

    def generate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns W(z), (U, in_dim, out_dim), and b(z), (U, out_dim), of codes (U, R + 1)."""
        return (self.first * (z @ self.gains).unsqueeze(1)) @ self.last, z @ self.bias

    def forward(self, x: Tensor, codes: Codes) -> Tensor:
        """Multiplies each row by the weights that its code generates."""
        z = codes.z
        return ((x @ self.first) * (z @ self.gains)) @ self.last + z @ self.bias


class _Contracted(torch.autograd.Function):
    """y_b = sum_r z_br (x_b M_r), in chunks of rows that stay in the cache; saves only its inputs.

    Written by hand because autograd would keep x_b M_r of all rows, and fresh memory of that size
    costs more than the products. One product each gives y, the gradients of x and z, and that of M.

    Products and y have the type `dtype`, gradients those of the inputs, and the sum over chunks
    that of M. Autocast is off within, because it would not reach into the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, z, weight)
        ctx.dtype = dtype
        x, z, flat = x.to(dtype), z.to(dtype), weight.flatten(0, 1).to(dtype)
        chunks = zip(*_chunks(x, z, flat), strict=True)
        with float32_products(x):
            return torch.cat([_outer(z_rows, x_rows) @ flat for x_rows, z_rows in chunks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        inputs = ctx.saved_tensors
        x, z, weight = (each.to(ctx.dtype) for each in inputs)
        flat = weight.flatten(0, 1)
        grad_x, grad_z, grad_flat = [], [], torch.zeros_like(inputs[2]).flatten(0, 1)
        with float32_products(x):
            for x_rows, z_rows, g in zip(*_chunks(x, z, flat, grad), strict=True):
                back = (g @ flat.T).unflatten(1, (len(weight), -1))
                grad_x.append(torch.bmm(z_rows.unsqueeze(1), back).squeeze(1))
                grad_z.append(torch.bmm(back, x_rows.unsqueeze(2)).squeeze(2))
                _add_product(grad_flat, _outer(z_rows, x_rows).T, g)
        return torch.cat(grad_x), torch.cat(grad_z), grad_flat.view_as(weight), None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a @ b to a sum of the same or a wider type."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _chunks(x: Tensor, z: Tensor, flat: Tensor, *more: Tensor) -> list[tuple[Tensor, ...]]:
    """Splits rows so that z ⊗ x of a chunk has `CHUNK_ELEMENTS` elements, 64 times that on GPU."""
    elements = CHUNK_ELEMENTS * (64 if x.is_cuda else 1)
    return [torch.split(part, max(1, elements // len(flat))) for part in (x, z, *more)]


def _outer(z: Tensor, x: Tensor) -> Tensor:
    return (z.unsqueeze(2) * x.unsqueeze(1)).flatten(1)
