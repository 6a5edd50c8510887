"""Multilayer perceptron, and the parts that every other stack of layers needs."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from msrec.model.layers.dropout import Dropout
from msrec.model.layers.group_functions import ReLUChain
from msrec.model.layers.precision import LayerNorm, product_dtype


class ReLU(nn.ReLU):
    """ReLU that overwrites its input in training, where a layer has just made it for this.

    A copy would be as large as the input and pass through memory once more. A view keeps its base,
    since its gradient would need a copy of all of it.

    Shape:
        x: any, float; must not be read again.
        returns: as x.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns max(x, 0)."""
        is_owned = x.grad_fn is not None and not x._is_view()
        return x.relu_() if is_owned and not torch.compiler.is_exporting() else x.relu()


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


def make_activation(name: str) -> nn.Module:
    """Returns the module of an activation.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {name!r}.")
    return ACTIVATIONS[name]()


@dataclass(frozen=True)
class Hidden:
    """Activation and dropout rate after each hidden linear layer of a model."""

    activation: str = "relu"
    dropout: float = 0.0

    def module(self) -> nn.Sequential:
        """Returns activation and dropout as one module.

        Raises:
            ValueError: the activation is unknown, or the rate is not in [0, 1).
        """
        return nn.Sequential(make_activation(self.activation), Dropout(self.dropout))


RELU = Hidden()


def check_positive(**sizes: int) -> None:
    """Raises a ValueError that names the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}.")


def linear_init(weight: Tensor, bias: Tensor | None, fan_in: int) -> None:
    """Fills parameters as nn.Linear does: uniformly within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)


def can_chain(x: Tensor) -> bool:
    """Whether `ReLUChain` may replace linear layers and ReLUs: in float32 on a CPU."""
    is_cpu = x.device.type == "cpu" and not torch.compiler.is_exporting()
    return is_cpu and x.dtype == product_dtype(x) == torch.float32


class MLP(nn.Sequential):
    """Linear layer, norm, activation and dropout, once for each size in `dims`.

    With empty `dims` it is the identity.

    Shape:
        x: (..., in_dim), float.
        returns: (..., out_dim), float, where out_dim is `dims[-1]`, or that of the head.

    Raises:
        ValueError: a size is below 1, or the norm or the activation is unknown.

    Source:
        The block of DLRM. `norm` is "none" or "layer", never the batch norm of Scenario-Wise-Rec,
        so that a row does not depend on the other rows of its batch.

    Example:
        >>> import torch
        >>> MLP(8, [4, 2])(torch.zeros(3, 8)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        in_dim: int,
        dims: Sequence[int],
        hidden: Hidden = RELU,
        norm: Literal["none", "layer"] = "none",
    ) -> None:
        if norm not in ("none", "layer"):
            raise ValueError(f"norm must be 'none' or 'layer'; got {norm!r}.")
        layers: list[nn.Module] = []
        sizes = [in_dim, *dims]
        for a, b in itertools.pairwise(sizes):
            check_positive(mlp_dim=b)
            layers.append(nn.Linear(a, b))
            if norm == "layer":
                layers.append(LayerNorm(b))
            layers.append(make_activation(hidden.activation))
            if hidden.dropout > 0:
                layers.append(Dropout(hidden.dropout))
        super().__init__(*layers)
        self.in_dim = in_dim
        self.out_dim = sizes[-1]
        kinds = [type(layer) for layer in layers]
        self._is_chain = bool(dims) and kinds == [nn.Linear, ReLU] * len(dims)

    def forward(self, x: Tensor, head: nn.Linear | None = None) -> Tensor:
        """Runs the layers, and a last linear layer if there is one."""
        if self._is_chain and x.dim() == 2 and can_chain(x):
            linear = cast(list[nn.Linear], [*self][::2])  # each has a ReLU after it
            if head is not None:
                linear.append(head)
            parameters = [p for layer in linear for p in (layer.weight.t(), layer.bias)]
            return ReLUChain.apply(x, None, head is None, *parameters)  # type: ignore[no-any-return, no-untyped-call]
        h: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return h if head is None else head(h)
