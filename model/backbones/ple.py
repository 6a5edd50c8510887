"""PLE: experts of the scenario and shared ones, mixed level by level."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.layers.experts import Experts, ScenarioExperts, mix
from msrec.model.layers.mlp import ScenarioLinear, Towers, check_positive
from msrec.model.layers.row_groups import RowGroups, group_rows


class ExtractionLevel(nn.Module):
    """One level: own_s' = sum over [experts of s on own_s, shared experts on shared].

    A level that is not the last also gives shared' = sum over [all experts of all scenarios, shared
    experts]. Gates are softmax of a linear map: of own_s for scenario s, of shared for the shared.
    """

    def __init__(
        self,
        in_dim: int,
        dims: Sequence[int],
        num_specific: int,
        num_shared: int,
        num_scenarios: int,
        activation: str,
        dropout: float,
        is_last: bool,
    ) -> None:
        super().__init__()
        self.specific = ScenarioExperts(
            in_dim, dims, num_specific, num_scenarios, activation, dropout
        )
        self.shared = Experts(in_dim, dims, num_shared, activation, dropout)
        self.gates = ScenarioLinear(in_dim, num_specific + num_shared, num_scenarios)
        mixed = num_scenarios * num_specific + num_shared
        self.shared_gate = None if is_last else nn.Linear(in_dim, mixed)

    def own(self, own: Tensor, shared: Tensor, groups: RowGroups) -> Tensor:
        """The row's own scenario's output, (B, dims[-1]), from its inputs (B, in_dim), sorted."""
        outputs = torch.cat([self.specific.own(own, groups), self.shared(shared)])
        return mix(self.gates(own, groups).softmax(dim=1), outputs)

    def forward(self, every: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """All scenarios' outputs (S, B, dims[-1]) and the shared one (B, dims[-1])."""
        assert self.shared_gate is not None
        specific, common = self.specific.every(every), self.shared(shared)
        gate = self.shared_gate(shared).softmax(dim=1)
        next_shared = mix(gate, torch.cat([specific, common]))
        gates = (every @ self.gates.weight + self.gates.bias.unsqueeze(1)).softmax(dim=2)
        num_specific = self.specific.num_experts
        own, rest = gates[..., :num_specific], gates[..., num_specific:]
        grouped = torch.unflatten(specific, 0, (-1, num_specific))
        mixed = torch.einsum("sbe,sebd->sbd", own, grouped)
        return mixed + torch.einsum("sbe,ebd->sbd", rest, common), next_shared


class PLE(nn.Module):
    """Progressive layered extraction: levels of own and shared experts, then the scenario's tower.

    With one level a row runs its own scenario's experts and the shared ones only. Every level
    before the last runs all experts for all rows, because its shared output needs them.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, or a scenario is out of range.

    When:
        Scenarios that harm each other under MMoE: own experts keep them apart. With one level a row
        costs the same for any number of scenarios; with more it does not.

    Source:
        Tang et al., RecSys 2020. Specific experts, gates and towers are a scenario's, where the
        paper's are a task's; no batch norm, which Scenario-Wise-Rec has.

    Example:
        >>> ple = PLE(in_dim=8, num_scenarios=3, num_levels=2, expert_dims=[4])
        >>> ple(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        num_levels: int = 1,
        num_specific: int = 2,
        num_shared: int = 2,
        expert_dims: Sequence[int] = (128, 64),
        tower_dims: Sequence[int] = (64,),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(num_levels=num_levels, number_of_expert_dims=len(expert_dims))
        self.num_scenarios = num_scenarios
        *before, last = [in_dim] + [expert_dims[-1]] * (num_levels - 1)

        def level(size: int, is_last: bool) -> ExtractionLevel:
            counts = (num_specific, num_shared, num_scenarios)
            return ExtractionLevel(size, expert_dims, *counts, activation, dropout, is_last)

        self.levels = nn.ModuleList(level(size, is_last=False) for size in before)
        self.last = level(last, is_last=True)
        self.towers = Towers(
            expert_dims[-1], tower_dims, num_scenarios, num_tasks, activation, dropout
        )

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        groups = group_rows(scenario, self.num_scenarios)
        x = groups.sort(x)
        every, shared = x, x
        for level in self.levels:
            every, shared = level(every, shared)
        own = groups.pick(every) if len(self.levels) else x
        return groups.unsort(self.towers(self.last.own(own, shared, groups), groups))
