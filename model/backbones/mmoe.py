"""MMoE, and its control OMoE with a single gate."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from msrec.data.loading.row_counts import RowCounts
from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.experts import Experts, mix, mix_by_task
from msrec.model.layers.mlp import RELU, Hidden
from msrec.model.layers.precision import softmax
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.scenario_layers import ScenarioLinear, Towers


class OMoE(Backbone):
    """Mixture of experts with one gate for all scenarios.

    f = sum_e softmax(G x + g)_e expert_e(x), logit_st = tower_st(f).

    When:
        As the control of MMoE: the same experts without a gate per scenario and task.

    Source:
        Ma et al., KDD 2018, the baseline of MMoE. One tower per scenario and task, where the paper
        has one per task.

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

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios, counts)
        mixed = mix(softmax(self.gate(x), dim=1), self.experts(x))
        return groups.unsort(self.towers(groups.sort(mixed), groups))


class MMoE(Backbone):
    """Mixture of experts with one gate per scenario and task.

    f_st = sum_e softmax(G_st x + g_st)_e expert_e(x), logit_st = tower_st(f_st). With
    `gates: factored`, the logits of a gate are G_s x + g_s + H_t x + h_t. A row computes the gates
    and the towers of its own scenario only.

    Raises:
        ValueError: `gates` is unknown.

    When:
        Scenarios and labels that are related unevenly: each mixes the same experts in its own way.
        Only gates and towers grow with the number of scenarios. `factored` suits many scenarios
        with few rows: its gate of a rare label is learned from all scenarios.

    Source:
        Ma et al., KDD 2018. One gate and one tower per scenario and task, where the paper has one
        per task; the gate is the paper's plain softmax (Scenario-Wise-Rec puts batch norm before
        it). Factored gates are ours.

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
        gates: Literal["per_pair", "factored"] = "per_pair",
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        if gates not in ("per_pair", "factored"):
            raise ValueError(f"gates must be 'per_pair' or 'factored'; got {gates!r}.")
        in_dim, count, tasks = shape.in_dim, shape.num_scenarios, shape.num_tasks
        self.experts = Experts(in_dim, expert_dims, num_experts, hidden)
        factored = gates == "factored" and tasks > 1
        self.gates = ScenarioLinear(in_dim, num_experts * (1 if factored else tasks), count)
        self.towers = Towers(expert_dims[-1], tower_dims, count, tasks, hidden)
        self.task_gates = nn.Linear(in_dim, num_experts * tasks) if factored else None

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
        gates = self.gates(x, groups)
        if self.task_gates is not None:
            gates = gates.repeat(1, self.num_tasks) + self.task_gates(x)
        mixed = mix_by_task(gates, self.experts(x), self.num_tasks)
        return groups.unsort(self.towers(mixed, groups))
