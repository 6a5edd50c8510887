"""MMoE: shared experts, mixed by one gate per scenario."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.dropout import Dropout
from msrec.model.groups import group_rows
from msrec.model.mlp import (
    ScenarioLinear,
    Towers,
    check_positive,
    linear_init,
    make_activation,
)


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


class MMoE(nn.Module):
    """Multi-gate mixture of experts: f_s = sum_e softmax(G_s x + g_s)_e expert_e(x).

    A gate is computed for the row's own scenario only; then comes the scenario's tower.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, or a scenario is out of range.

    Source:
        Ma et al., KDD 2018. One gate and one tower per scenario, where the paper has one per task;
        the gate is the paper's plain softmax (Scenario-Wise-Rec puts batch norm before it).

    Example:
        >>> mmoe = MMoE(in_dim=8, num_scenarios=3, num_experts=2, expert_dims=[4])
        >>> mmoe(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        num_experts: int = 4,
        expert_dims: Sequence[int] = (128, 64),
        tower_dims: Sequence[int] = (64,),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_scenarios = num_scenarios
        self.experts = Experts(in_dim, expert_dims, num_experts, activation, dropout)
        self.gates = ScenarioLinear(in_dim, num_experts, num_scenarios)
        self.towers = Towers(
            expert_dims[-1], tower_dims, num_scenarios, num_tasks, activation, dropout
        )

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        groups = group_rows(scenario, self.num_scenarios)
        x = groups.sort(x)
        gate_BE = self.gates(x, groups).softmax(dim=1)
        mixed = (gate_BE.T.unsqueeze(2) * self.experts(x)).sum(0)
        return groups.unsort(self.towers(mixed, groups))
