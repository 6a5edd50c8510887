"""MMoE, and its control OMoE with a single gate."""

from collections.abc import Sequence

from torch import Tensor, nn

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.experts import Experts, mix
from msrec.model.layers.mlp import RELU, Hidden
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.scenario_layers import ScenarioLinear, Towers


class OMoE(Backbone):
    """Mixture of experts with one gate for all scenarios.

    f = sum_e softmax(G x + g)_e expert_e(x), logit_s = tower_s(f).

    When:
        As the control of MMoE: the same experts without a gate per scenario.

    Source:
        Ma et al., KDD 2018, the baseline of MMoE. One tower per scenario, where the paper has one
        per task.

    Example:
        >>> import torch
        >>> model = OMoE(BackboneShape(in_dim=8, num_scenarios=3), num_experts=2)
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        num_experts: int = 4,
        expert_dims: Sequence[int] = (128, 64),
        tower_dims: Sequence[int] = (64,),
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        self.experts = Experts(shape.in_dim, expert_dims, num_experts, hidden)
        self.gate = nn.Linear(shape.in_dim, num_experts)
        size = expert_dims[-1]
        self.towers = Towers(size, tower_dims, shape.num_scenarios, shape.num_tasks, hidden)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios)
        mixed = mix(self.gate(x).softmax(dim=1), self.experts(x))
        return groups.unsort(self.towers(groups.sort(mixed), groups))


class MMoE(Backbone):
    """Mixture of experts with one gate per scenario.

    f_s = sum_e softmax(G_s x + g_s)_e expert_e(x), logit_s = tower_s(f_s). A row computes the gate
    and the tower of its own scenario only.

    When:
        Scenarios that are related unevenly: each mixes the same experts in its own way. Only gates
        and towers grow with the number of scenarios.

    Source:
        Ma et al., KDD 2018. One gate and one tower per scenario, where the paper has one per task;
        the gate is the paper's plain softmax (Scenario-Wise-Rec puts batch norm before it).

    Example:
        >>> import torch
        >>> model = MMoE(BackboneShape(in_dim=8, num_scenarios=3), num_experts=2)
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        num_experts: int = 4,
        expert_dims: Sequence[int] = (128, 64),
        tower_dims: Sequence[int] = (64,),
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        self.experts = Experts(shape.in_dim, expert_dims, num_experts, hidden)
        self.gates = ScenarioLinear(shape.in_dim, num_experts, shape.num_scenarios)
        size = expert_dims[-1]
        self.towers = Towers(size, tower_dims, shape.num_scenarios, shape.num_tasks, hidden)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios)
        x = groups.sort(x)
        mixed = mix(self.gates(x, groups).softmax(dim=1), self.experts(x))
        return groups.unsort(self.towers(mixed, groups))
