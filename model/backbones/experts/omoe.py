"""OMoE backbone."""

from collections.abc import Sequence

from torch import Tensor, nn

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.experts import Experts, mix
from msrec.model.layers.mlp import RELU, Hidden
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.scenario_layers import Towers


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
        >>> shape = BackboneShape(in_dim=8, num_scenarios=3)
        >>> model = OMoE(shape, num_experts=2, expert_dims=[4])
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
