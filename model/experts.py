"""Experts: stacked MLPs over one input, computed by one product a layer, and their mixture."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.dropout import Dropout
from msrec.model.mlp import check_positive, linear_init, make_activation


def mix(gate: Tensor, outputs: Tensor) -> Tensor:
    """Weighted sum of experts.

    Shape:
        gate: (B, E), float.
        outputs: (E, B, D), float.
        returns: (B, D), float.
    """
    return (gate.T.unsqueeze(2) * outputs).sum(0)


class Experts(nn.Module):
    """Stacked MLPs over the same input: one wide product, then one batched product a layer.

    Shape:
        x: (B, in_dim), float.
        returns: (E, B, dims[-1]), float.
    """

    def __init__(
        self, in_dim: int, dims: Sequence[int], num_experts: int, activation: str, dropout: float
    ) -> None:
        super().__init__()
        check_positive(num_experts=num_experts, number_of_expert_dims=len(dims))
        self.num_experts = num_experts
        self.first = nn.Linear(in_dim, num_experts * dims[0])
        sizes = list(zip(dims, dims[1:], strict=False))
        self.weights = nn.ParameterList(torch.empty(num_experts, a, b) for a, b in sizes)
        self.biases = nn.ParameterList(torch.empty(num_experts, 1, b) for _, b in sizes)
        for (fan_in, _), weight, bias in zip(sizes, self.weights, self.biases, strict=True):
            linear_init(weight, bias, fan_in)
        self.activation = make_activation(activation)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all experts."""
        wide = self.dropout(self.activation(self.first(x)))
        h: Tensor = wide.unflatten(1, (self.num_experts, -1)).transpose(0, 1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = self.dropout(self.activation(torch.baddbmm(bias, h, weight)))
        return h
