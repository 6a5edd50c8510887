"""SAR-Net backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.data.loading.row_counts import RowCounts
from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.experts import Experts, ScenarioExperts, mix
from msrec.model.layers.mlp import MLP, RELU, Hidden
from msrec.model.layers.precision import softmax
from msrec.model.layers.row_groups import group_rows


class SARNet(Backbone):
    """Scenario-aware ranking network: scaled and shifted input, shared and scenario experts.

    x_s = w_s * x + b_s; f = sum over [shared experts(x_s), experts of s (x_s)], weighted by
    softmax(G x_s + g); logit = MLP(f).

    When:
        Many scenarios with few rows each: the part that belongs to one scenario is small.

    Source:
        Shen et al., CIKM 2021 (arXiv 2110.06475), in the reduced form of Scenario-Wise-Rec: without
        the cross-scenario attention over a user's behaviours, since x has no sequences. No batch
        norm before the experts, which Scenario-Wise-Rec has.

    Example:
        >>> model = SARNet(BackboneShape(in_dim=8, num_scenarios=3), expert_dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        num_shared: int = 8,
        num_specific: int = 2,
        expert_dims: Sequence[int] = (32,),
        dims: Sequence[int] = (32, 32),
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        in_dim, count = shape.in_dim, shape.num_scenarios
        self.own_scale = nn.Parameter(torch.ones(count, in_dim))
        self.own_shift = nn.Parameter(torch.zeros(count, in_dim))
        self.shared = Experts(in_dim, expert_dims, num_shared, hidden)
        self.specific = ScenarioExperts(in_dim, expert_dims, num_specific, count, hidden)
        self.gate = nn.Linear(in_dim, num_shared + num_specific)
        self.mlp = MLP(expert_dims[-1], dims, hidden)
        self.head = nn.Linear(self.mlp.out_dim, shape.num_tasks)

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios, counts)
        scale, shift = groups.lookup(self.own_scale), groups.lookup(self.own_shift)
        x = torch.addcmul(shift, groups.sort(x), scale)
        outputs = torch.cat([self.shared(x), self.specific.own(x, groups)])
        mixed = mix(softmax(self.gate(x), dim=1), outputs)
        return groups.unsort(self.head(self.mlp(mixed)))
