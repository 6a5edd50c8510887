"""PLE backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.experts import Experts, ScenarioExperts, mix
from msrec.model.layers.mlp import RELU, Hidden, check_positive
from msrec.model.layers.row_groups import RowGroups, group_rows
from msrec.model.layers.scenario_layers import ScenarioLinear, Towers


class ExtractionLevel(nn.Module):
    """Level of PLE: own_s' = gated sum of [experts of s on own_s, shared experts on shared].

    A level that is not the last also computes shared' = gated sum of [all experts of all scenarios,
    shared experts]. A gate is the softmax of a linear map: of own_s for scenario s, of shared for
    the shared part.
    """

    def __init__(
        self,
        in_dim: int,
        dims: Sequence[int],
        num_specific: int,
        num_shared: int,
        num_scenarios: int,
        hidden: Hidden,
        is_last: bool,
    ) -> None:
        super().__init__()
        self.specific = ScenarioExperts(in_dim, dims, num_specific, num_scenarios, hidden)
        self.shared = Experts(in_dim, dims, num_shared, hidden)
        self.gates = ScenarioLinear(in_dim, num_specific + num_shared, num_scenarios)
        num_experts = num_scenarios * num_specific + num_shared
        self.shared_gate = None if is_last else nn.Linear(in_dim, num_experts)

    def own(self, own: Tensor, shared: Tensor, groups: RowGroups) -> Tensor:
        """Returns own_s' of each row's scenario, (B, dims[-1]), from sorted inputs (B, in_dim)."""
        outputs = torch.cat([self.specific.own(own, groups), self.shared(shared)])
        return mix(self.gates(own, groups).softmax(dim=1), outputs)

    def forward(self, every: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Returns own' of all scenarios, (S, B, dims[-1]), and shared', (B, dims[-1]).

        Shape:
            every: (S, B, in_dim), own of all scenarios, or (B, in_dim) if they are all the same.
            shared: (B, in_dim).
        """
        assert self.shared_gate is not None
        specific, common = self.specific.every(every), self.shared(shared)
        gate = self.shared_gate(shared).softmax(dim=1)
        next_shared = mix(gate, torch.cat([specific, common]))
        gates = (every @ self.gates.weight + self.gates.bias.unsqueeze(1)).softmax(dim=2)
        num_specific = self.specific.num_experts
        own_gates, shared_gates = gates[..., :num_specific], gates[..., num_specific:]
        by_scenario = torch.unflatten(specific, 0, (-1, num_specific))
        mixed = torch.einsum("sbe,sebd->sbd", own_gates, by_scenario)
        return mixed + torch.einsum("sbe,ebd->sbd", shared_gates, common), next_shared


class PLE(Backbone):
    """Progressive layered extraction: levels of scenario experts and shared experts, then towers.

    A level computes own_s' = sum over [experts of s on own_s, shared experts on shared], weighted
    by a gate, and, unless it is the last, shared' likewise from all experts. logit_s =
    tower_s(own_s) after the last level. A row runs only its own scenario's experts and the shared
    ones in the last level, but all experts in the levels before it, whose shared output needs them.

    When:
        Scenarios that harm each other under MMoE: separate experts keep them apart. With one level
        the cost of a row does not grow with the number of scenarios; with more it does.

    Source:
        Tang et al., RecSys 2020. Specific experts, gates and towers belong to a scenario, where the
        paper's belong to a task; no batch norm, which Scenario-Wise-Rec has.

    Example:
        >>> model = PLE(BackboneShape(in_dim=8, num_scenarios=3), num_levels=2)
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        num_levels: int = 1,
        num_specific: int = 2,
        num_shared: int = 2,
        expert_dims: Sequence[int] = (128, 64),
        tower_dims: Sequence[int] = (64,),
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        check_positive(num_levels=num_levels, number_of_expert_dims=len(expert_dims))
        count, size = shape.num_scenarios, expert_dims[-1]

        def level(in_dim: int, is_last: bool) -> ExtractionLevel:
            counts = (num_specific, num_shared, count)
            return ExtractionLevel(in_dim, expert_dims, *counts, hidden, is_last)

        *in_dims, last = [shape.in_dim] + [size] * (num_levels - 1)
        self.levels = nn.ModuleList(level(in_dim, is_last=False) for in_dim in in_dims)
        self.last = level(last, is_last=True)
        self.towers = Towers(size, tower_dims, count, shape.num_tasks, hidden)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios)
        x = groups.sort(x)
        every, shared = x, x
        for level in self.levels:
            every, shared = level(every, shared)
        own = groups.pick(every) if len(self.levels) else x
        return groups.unsort(self.towers(self.last.own(own, shared, groups), groups))
