"""Linear layers of a frozen model in oneDNN's layout, with the operations that follow them.

PyTorch rearranges the weight of a plain layer in each product, adds a bias separately, and writes
the products before an activation to memory. oneDNN applies bias and activation to each tile.
"""

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("swish", ""): functional.silu,
    ("gelu", "none"): functional.gelu,
    ("gelu", "tanh"): lambda x: functional.gelu(x, approximate="tanh"),
}
"""Name and algorithm in oneDNN -> the activation."""


class FusedLinear(nn.Linear):
    """Linear layer in bfloat16, optionally with an activation after it.

    The layout of the weight is opaque: it is no parameter and cannot be saved.

    Args:
        linear: the plain layer, whose weight is not kept.
        activation: one of `ACTIVATIONS`, or none.
    """

    def __init__(self, linear: nn.Linear, activation: tuple[str, str] = ("none", "")) -> None:
        nn.Module.__init__(self)  # without a new weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias, self.activation = linear.bias, activation
        # The number of rows is a hint; other batches can be multiplied too.
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1024)
        object.__setattr__(self, "weight", packed)

    def forward(self, input: Tensor, times: Tensor | None = None) -> Tensor:
        """Returns (..., out_features); multiplied by a tensor of that shape if it is given."""
        pointwise = torch.ops.mkldnn._linear_pointwise
        if times is not None:
            product: Tensor = pointwise.binary(input, times, self.weight, self.bias, "mul")
            return product
        name, algorithm = self.activation
        output: Tensor = pointwise(input, self.weight, self.bias, name, [], algorithm)
        return output


class FusedGate(nn.Module):
    """Feed-forward layer `down(activation(gate(x)) * up(x))`, as in Llama, Qwen and Gemma."""

    def __init__(
        self, gate: nn.Linear, up: nn.Linear, down: nn.Linear, activation: tuple[str, str]
    ) -> None:
        super().__init__()
        self.gate = FusedLinear(gate, activation)
        self.up, self.down = FusedLinear(up), FusedLinear(down)

    def forward(self, input: Tensor) -> Tensor:
        """Returns (..., H) of states (..., H)."""
        output: Tensor = self.down(self.up(input, times=self.gate(input)))
        return output


def fuse_layers(module: nn.Module) -> None:
    """Replaces linear layers in bfloat16, if the processor can multiply it."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    for name, child in module.named_children():
        fused = _fused(child)
        if fused is None:
            fuse_layers(child)
        else:
            setattr(module, name, fused)


def _fused(module: nn.Module) -> nn.Module | None:
    """Returns a fused layer that does the same as a module, or None."""
    if _is_plain(module):
        return FusedLinear(module)
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    linears = [part for part in parts if _is_plain(part)]
    activation = _activation(getattr(module, "act_fn", None))
    if len(linears) == len(parts) and activation:
        gate, up, down = linears
        return _if_equal(FusedGate(gate, up, down, activation), module, gate.in_features)
    dense = getattr(module, "dense", None)
    activation = _activation(getattr(module, "intermediate_act_fn", None))
    if _is_plain(dense) and activation:
        return _if_equal(FusedLinear(dense, activation), module, dense.in_features)
    return None


def _is_plain(module: object) -> TypeGuard[nn.Linear]:
    return type(module) is nn.Linear and module.weight.dtype == torch.bfloat16


def _activation(function: object) -> tuple[str, str] | None:
    """Returns oneDNN's name of an activation, by its values."""
    x = torch.linspace(-4, 4, 33)
    for name, known in ACTIVATIONS.items():
        if callable(function) and torch.allclose(function(x), known(x), atol=1e-6):
            return name
    return None


def _if_equal(fused: nn.Module, module: nn.Module, in_features: int) -> nn.Module | None:
    """Returns the fused module unless the other one does something more."""
    x = torch.randn(4, in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = module(x).float()
    return fused if (fused(x).float() - expected).norm() < 0.03 * expected.norm() else None
