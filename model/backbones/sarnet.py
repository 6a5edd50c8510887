"""SAR-Net: the input scaled and shifted by scenario, then shared and own experts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.layers.experts import Experts, ScenarioExperts, mix
from msrec.model.layers.mlp import MLP, check_positive
from msrec.model.layers.row_groups import group_rows


class SARNet(nn.Module):
    """Scenario-aware ranking network: x_s = w_s * x + b_s, experts on x_s, one gate, one MLP.

    f = sum over [shared experts(x_s), experts of s (x_s)] weighted by softmax(G x_s + g);
    logit = MLP(f).

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, or a scenario is out of range.

    When:
        Many scenarios with few rows each: what is private is small.

    Source:
        Shen et al., CIKM 2021 (arXiv 2110.06475), in the reduced form of Scenario-Wise-Rec: without
        the cross-scenario attention over a user's behaviours, since x has no sequences. No batch
        norm before the experts, which Scenario-Wise-Rec has.

    Example:
        >>> model = SARNet(in_dim=8, num_scenarios=3, expert_dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        num_shared: int = 8,
        num_specific: int = 2,
        expert_dims: Sequence[int] = (32,),
        dims: Sequence[int] = (32, 32),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(num_tasks=num_tasks, num_scenarios=num_scenarios)
        self.num_scenarios = num_scenarios
        self.own_scale = nn.Parameter(torch.ones(num_scenarios, in_dim))
        self.own_shift = nn.Parameter(torch.zeros(num_scenarios, in_dim))
        self.shared = Experts(in_dim, expert_dims, num_shared, activation, dropout)
        self.specific = ScenarioExperts(
            in_dim, expert_dims, num_specific, num_scenarios, activation, dropout
        )
        self.gate = nn.Linear(in_dim, num_shared + num_specific)
        self.mlp = MLP(expert_dims[-1], dims, activation, dropout)
        self.head = nn.Linear(self.mlp.out_dim, num_tasks)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        groups = group_rows(scenario, self.num_scenarios)
        x = torch.addcmul(groups.own(self.own_shift), groups.sort(x), groups.own(self.own_scale))
        outputs = torch.cat([self.shared(x), self.specific.own(x, groups)])
        mixed = mix(self.gate(x).softmax(dim=1), outputs)
        return groups.unsort(self.head(self.mlp(mixed)))
