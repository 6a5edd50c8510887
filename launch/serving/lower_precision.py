"""Larger matrix products of an exported program, in bfloat16 or int8."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from msrec.launch.serving.export_folder import DenseDtype

MIN_WEIGHTS = 1 << 12
"""Fewest weights of a product in lower precision; smaller ones are faster in float32."""
LARGEST_INT8 = 127
_aten = torch.ops.aten
Product = Callable[[Tensor, Tensor], Tensor]


def lower_products(program: ExportedProgram, dtype: DenseDtype) -> ExportedProgram:
    """Returns a program whose larger products with weights have lower precision.

    Everything else stays float32: sums, activations between products, and small products, of which
    the last one gives the logits. In int8 so do batches of products, for which torch has no kernel.
    """
    if dtype == "float32":
        return program
    table = torch.export.default_decompositions()
    product = {"bfloat16": bfloat16_product, "int8": int8_product}[dtype]
    table[_aten.mm.default], table[_aten.addmm.default] = _replacements(product)
    if dtype == "bfloat16":
        table[_aten.bmm.default], table[_aten.baddbmm.default] = _replacements(product)
    lowered: ExportedProgram = program.run_decompositions(table)
    return lowered


def bfloat16_product(x: Tensor, weight: Tensor) -> Tensor:
    """Returns x @ weight, float32, of rounded factors and rounded again."""
    return (x.bfloat16() @ weight.bfloat16()).float()


def int8_product(x: Tensor, weight: Tensor) -> Tensor:
    """Returns x @ weight of factors in int8, with a scale for each row of x and each column.

    A row of the result does not depend on other rows of x.

    Shape:
        x: (B, in), float32.
        weight: (in, out), float32.
        returns: (B, out), float32.
    """
    (x, of_rows), (weight, of_columns) = _quantized(x, 1), _quantized(weight, 0)
    return torch._int_mm(x, weight).float() * (of_rows * of_columns)


def _quantized(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Returns integers (n, m), int8, and the scales by which they are multiplied, float32."""
    scale = x.abs().amax(dim, keepdim=True).clamp(min=1e-30) / LARGEST_INT8
    return (x / scale).round().to(torch.int8), scale


def _replacements(product: Product) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns replacements of a product and of a product with a summand."""

    def plain(x: Tensor, weight: Tensor) -> Any:
        return product(x, weight) if _is_large(x, weight) else NotImplemented

    def with_summand(summand: Tensor, x: Tensor, weight: Tensor, **scales: float) -> Any:
        if scales or not _is_large(x, weight):
            return NotImplemented
        return product(x, weight) + summand

    return plain, with_summand


def _is_large(x: Tensor, weight: Tensor) -> bool:
    """Whether many weights, which have a fixed shape, multiply rows, whose number is not fixed."""
    is_weight = isinstance(weight.numel(), int) and not isinstance(x.shape[-2], int)
    return is_weight and x.dtype == torch.float32 and weight.numel() >= MIN_WEIGHTS
