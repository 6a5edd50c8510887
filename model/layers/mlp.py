"""MLPs: one for all rows, and stacked ones of which each row runs its own scenario's only."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from msrec.model.layers.dropout import Dropout
from msrec.model.layers.row_groups import RowGroups

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


def make_activation(name: str) -> nn.Module:
    """Module of an activation.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {name!r}.")
    return ACTIVATIONS[name]()


def check_positive(**values: int) -> None:
    """Refuse sizes below 1, by name."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}.")


class MLP(nn.Sequential):
    """Linear, norm, activation, dropout; once for each size of `dims`.

    Without `dims` it is the identity.

    Shape:
        x: (..., in_dim), float.
        returns: (..., out_dim), float, where out_dim is `dims[-1]`.

    Source:
        The block of DLRM. Others put batch norm in it (Scenario-Wise-Rec); here `norm` is "none" or
        "layer", so that a row never depends on the rows beside it.

    Example:
        >>> MLP(8, [4, 2])(torch.zeros(3, 8)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        in_dim: int,
        dims: Sequence[int],
        activation: str = "relu",
        dropout: float = 0.0,
        norm: Literal["none", "layer"] = "none",
    ) -> None:
        if norm not in ("none", "layer"):
            raise ValueError(f"norm must be 'none' or 'layer'; got {norm!r}.")
        layers: list[nn.Module] = []
        sizes = [in_dim, *dims]
        for a, b in zip(sizes, sizes[1:], strict=False):
            check_positive(mlp_dim=b)
            layers.append(nn.Linear(a, b))
            if norm == "layer":
                layers.append(nn.LayerNorm(b))
            layers.append(make_activation(activation))
            if dropout > 0:
                layers.append(Dropout(dropout))
        super().__init__(*layers)
        self.in_dim = in_dim
        self.out_dim = sizes[-1]


def linear_init(weight: Tensor, bias: Tensor | None, fan_in: int) -> None:
    """Fill like nn.Linear: uniform within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)


class ScenarioLinear(nn.Module):
    """One linear layer per scenario, stacked; each row is multiplied by its own only.

    Shape:
        x: (B, in_dim), float, rows in the order of `groups`.
        returns: (B, out_dim), float, same order.

    Example:
        >>> from msrec.model.layers.row_groups import group_rows
        >>> groups = group_rows(torch.tensor([2, 0]), 3)
        >>> ScenarioLinear(8, 4, num_scenarios=3)(groups.sort(torch.zeros(2, 8)), groups).shape
        torch.Size([2, 4])
    """

    def __init__(self, in_dim: int, out_dim: int, num_scenarios: int) -> None:
        super().__init__()
        check_positive(out_dim=out_dim, num_scenarios=num_scenarios)
        self.weight = nn.Parameter(torch.empty(num_scenarios, in_dim, out_dim))
        self.bias = nn.Parameter(torch.empty(num_scenarios, out_dim))
        linear_init(self.weight, self.bias, in_dim)

    def forward(self, x: Tensor, groups: RowGroups) -> Tensor:
        """Multiply sorted rows by their scenario's weights."""
        return groups.linear(x, self.weight, self.bias)

    def of(self, scenario: int, x: Tensor) -> Tensor:
        """Multiply all rows by one scenario's weights."""
        return torch.addmm(self.bias[scenario], x, self.weight[scenario])


class Towers(nn.Module):
    """One tower per scenario: hidden layers `dims`, then a bare linear layer to the logits.

    Shape:
        x: (B, in_dim), float, rows in the order of `groups`.
        returns: (B, num_tasks), float, same order.
    """

    def __init__(
        self,
        in_dim: int,
        dims: Sequence[int],
        num_scenarios: int,
        num_tasks: int = 1,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(num_tasks=num_tasks)
        sizes = [in_dim, *dims, num_tasks]
        self.layers = nn.ModuleList(
            ScenarioLinear(a, b, num_scenarios) for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.activation = make_activation(activation)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, groups: RowGroups) -> Tensor:
        """Run each sorted row through its own scenario's tower."""
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x, groups)
            if i < last:
                x = self.dropout(self.activation(x))
        return x
