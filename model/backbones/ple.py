"""PLE backbone."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from msrec.data.loading.row_counts import RowCounts
from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.experts import Experts, ScenarioExperts, mix
from msrec.model.layers.mlp import RELU, Hidden, check_positive
from msrec.model.layers.precision import softmax
from msrec.model.layers.row_groups import RowGroups, group_rows
from msrec.model.layers.scenario_layers import ScenarioLinear, Towers


class Counts(NamedTuple):
    """Numbers of experts of a level: of each scenario, of each task, and shared; S and T."""

    specific: int
    task: int
    shared: int
    scenarios: int
    tasks: int

    @property
    def total(self) -> int:
        """Number of all experts."""
        return self.scenarios * self.specific + self.tasks * self.task + self.shared


class ExtractionLevel(nn.Module):
    """Level of PLE before the last: new inputs of the experts of scenarios and tasks, and shared.

    own_s' = gated sum of [experts of s on own_s, shared experts on shared], task_t' likewise, and
    shared' = gated sum of all experts. A gate is the softmax of a linear map: of own_s, of task_t
    and of shared.
    """

    def __init__(self, in_dim: int, dims: Sequence[int], counts: Counts, hidden: Hidden) -> None:
        super().__init__()
        specific, task, shared, num_scenarios, num_tasks = counts
        self.specific = ScenarioExperts(in_dim, dims, specific, num_scenarios, hidden)
        self.shared = Experts(in_dim, dims, shared, hidden)
        self.gates = ScenarioLinear(in_dim, specific + shared, num_scenarios)
        self.shared_gate = nn.Linear(in_dim, counts.total)
        self.task_experts: ScenarioExperts | None = None
        self.task_gates: ScenarioLinear | None = None
        if task:
            self.task_experts = ScenarioExperts(in_dim, dims, task, num_tasks, hidden)
            self.task_gates = ScenarioLinear(in_dim, task + shared, num_tasks)

    def forward(
        self, every: Tensor, tasks: Tensor, shared: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns own' of all scenarios, task' of all tasks, and shared'.

        Shape:
            every: (S, B, in_dim), own of all scenarios, or (B, in_dim) if they are all the same.
            tasks: (T, B, in_dim), likewise; not used with one task.
            shared: (B, in_dim).
            returns: (S, B, dims[-1]), (T, B, dims[-1]) and (B, dims[-1]).
        """
        common, specific = self.shared(shared), self.specific.every(every)
        outputs = [specific]
        next_every = _mixed(self.gates, every, specific, common)
        if self.task_experts is not None and self.task_gates is not None:
            outputs.append(self.task_experts.every(tasks))
            tasks = _mixed(self.task_gates, tasks, outputs[1], common)
        gate = softmax(self.shared_gate(shared), dim=1)
        return next_every, tasks, mix(gate, torch.cat([*outputs, common]))


def _mixed(gates: ScenarioLinear, inputs: Tensor, outputs: Tensor, common: Tensor) -> Tensor:
    """Returns the gated sums of own and common outputs of all scenarios (or tasks), (S, B, D)."""
    share = softmax(inputs @ gates.weight + gates.bias.unsqueeze(1), dim=2)
    outputs = torch.unflatten(outputs, 0, (len(gates.weight), -1))
    own, shared = torch.split(share, [outputs.shape[1], len(common)], dim=2)
    mixed = torch.einsum("sbe,sebd->sbd", own, outputs)
    return mixed + torch.einsum("sbe,ebd->sbd", shared, common)


class LastLevel(nn.Module):
    """Last level of PLE: own_st' = gated sum of [experts of s, of t, and shared experts].

    The gate of (s, t) is the softmax of a linear map of own_s. A row runs the experts of its own
    scenario only.
    """

    def __init__(self, in_dim: int, dims: Sequence[int], counts: Counts, hidden: Hidden) -> None:
        super().__init__()
        specific, task, shared, num_scenarios, num_tasks = counts
        self.num_tasks = num_tasks
        self.specific = ScenarioExperts(in_dim, dims, specific, num_scenarios, hidden)
        self.shared = Experts(in_dim, dims, shared, hidden)
        self.gates = ScenarioLinear(in_dim, num_tasks * (specific + task + shared), num_scenarios)
        self.task_experts: ScenarioExperts | None = None
        if task:
            self.task_experts = ScenarioExperts(in_dim, dims, task, num_tasks, hidden)

    def forward(
        self, own: Tensor, tasks: Tensor, shared: Tensor, groups: RowGroups
    ) -> list[Tensor]:
        """Returns own_st', (B, dims[-1]), of each row's scenario for each task.

        Shape:
            own, shared: (B, in_dim), sorted; tasks: (T, B, in_dim), or (B, in_dim).
        """
        specific, common = self.specific.own(own, groups), self.shared(shared)
        gates = self.gates(own, groups)
        if self.task_experts is None:
            return [mix(softmax(gates, dim=1), torch.cat([specific, common]))]
        of_tasks = self.task_experts.every(tasks).chunk(self.num_tasks)
        return [
            mix(softmax(gate, dim=1), torch.cat([specific, of_task, common]))
            for gate, of_task in zip(gates.chunk(self.num_tasks, dim=1), of_tasks, strict=True)
        ]


class PLE(Backbone):
    """Progressive layered extraction: scenario, task and shared experts in levels, then towers.

    The last level computes own_st = sum over [experts of s on own_s, experts of t on task_t, shared
    experts on shared], weighted by a gate per scenario and task, and logit_st = tower_st(own_st).
    A level before it computes own_s' = sum over [experts of s, shared experts], task_t' likewise
    and shared' from all experts. The inputs of the first level are x. With one task there are no
    task experts: they would be shared ones. A row runs only its own scenario's experts, those of
    the tasks and the shared ones in the last level, but all experts in the levels before it, whose
    shared output needs them.

    When:
        Scenarios or labels that harm each other under MMoE: separate experts keep them apart. With
        one level the cost of a row does not grow with the number of scenarios; with more it does.

    Source:
        Tang et al., RecSys 2020. The paper has experts per task and shared ones. Here scenarios
        have specific experts too, and S + T sets of them, not S * T: the experts of a rare label
        learn from all scenarios, those of a small scenario from all labels, and what only the pair
        needs is left to its gate and its tower. No batch norm, which Scenario-Wise-Rec has.

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
        num_task: int = 2,
        num_shared: int = 2,
        expert_dims: Sequence[int] = (128, 64),
        tower_dims: Sequence[int] = (64,),
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        check_positive(num_levels=num_levels, number_of_expert_dims=len(expert_dims))
        check_positive(num_task=num_task)
        scenarios, tasks, size = shape.num_scenarios, shape.num_tasks, expert_dims[-1]
        num_task = num_task if tasks > 1 else 0
        options = (
            expert_dims,
            Counts(num_specific, num_task, num_shared, scenarios, tasks),
            hidden,
        )
        *in_dims, last = [shape.in_dim] + [size] * (num_levels - 1)
        self.levels = nn.ModuleList(ExtractionLevel(in_dim, *options) for in_dim in in_dims)
        self.last = LastLevel(last, *options)
        self.towers = Towers(size, tower_dims, scenarios, tasks, hidden)

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios, counts)
        x = groups.sort(x)
        every, tasks, shared = x, x, x
        for level in self.levels:
            every, tasks, shared = level(every, tasks, shared)
        own = groups.pick(every) if len(self.levels) else x
        return groups.unsort(self.towers(self.last(own, tasks, shared, groups), groups))
