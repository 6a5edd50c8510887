"""MMoE: shared experts, mixed by one gate per scenario."""

from collections.abc import Sequence

from torch import Tensor, nn

from msrec.model.layers.experts import Experts, mix
from msrec.model.layers.mlp import ScenarioLinear, Towers
from msrec.model.layers.row_groups import group_rows


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

    When:
        Scenarios that are related unevenly: each mixes the same experts in its own way. Only gates
        and towers grow with the number of scenarios.

    Source:
        Ma et al., KDD 2018. One gate and one tower per scenario, where the paper has one per task;
        the gate is the paper's plain softmax (Scenario-Wise-Rec puts batch norm before it).

    Example:
        >>> import torch
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
        mixed = mix(self.gates(x, groups).softmax(dim=1), self.experts(x))
        return groups.unsort(self.towers(mixed, groups))
