"""HiNet: a scenario is read by shared experts, by its own, and through its likeness to others."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from msrec.model.layers.experts import Experts, ScenarioExperts, mix
from msrec.model.layers.mlp import MLP, check_positive
from msrec.model.layers.row_groups import group_rows


class HiNet(nn.Module):
    """Hierarchical information extraction: C_s = [G(x), S_s(x), A_s(x)], experts on C_s, one MLP.

    G and every S_i are softmax-gated sums of experts; A_s = sum over j != s of
    softmax(W e_s)_j S_j(x), the softmax over the other scenarios, e_s the scenario's embedding. So
    a row runs the experts of all scenarios.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, there are fewer than 2 scenarios, or one is out of range.

    When:
        Few scenarios whose likeness to each other is worth learning; the cost of a row grows with
        their number.

    Source:
        Zhou et al., ICDE 2023 (arXiv 2303.06095). The task layer (CGC) has one gate and one set of
        experts and the MLP gives all tasks, where the paper has its own of each per task.

    Example:
        >>> model = HiNet(in_dim=8, num_scenarios=3, expert_dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        num_shared: int = 2,
        num_specific: int = 2,
        expert_dims: Sequence[int] = (64,),
        num_task_experts: int = 4,
        task_expert_dims: Sequence[int] = (64,),
        dims: Sequence[int] = (32,),
        scenario_dim: int = 16,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(num_tasks=num_tasks, scenario_dim=scenario_dim)
        if num_scenarios < 2:
            raise ValueError(f"num_scenarios must be at least 2; got {num_scenarios}.")
        self.num_scenarios = num_scenarios
        self.shared = Experts(in_dim, expert_dims, num_shared, activation, dropout)
        self.shared_gate = nn.Linear(in_dim, num_shared)
        self.specific = ScenarioExperts(
            in_dim, expert_dims, num_specific, num_scenarios, activation, dropout
        )
        self.specific_gates = nn.Linear(in_dim, num_scenarios * num_specific)
        self.scenario_embedding = nn.Embedding(num_scenarios, scenario_dim)
        self.likeness = nn.Linear(scenario_dim, num_scenarios)
        read_dim = 3 * expert_dims[-1]
        self.task = Experts(read_dim, task_expert_dims, num_task_experts, activation, dropout)
        self.task_gate = nn.Linear(read_dim, num_task_experts)
        self.mlp = MLP(task_expert_dims[-1], dims, activation, dropout)
        self.head = nn.Linear(self.mlp.out_dim, num_tasks)
        self.register_buffer("itself", torch.eye(num_scenarios).bool(), persistent=False)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        groups = group_rows(scenario, self.num_scenarios)
        x = groups.sort(x)
        shared = mix(self.shared_gate(x).softmax(dim=1), self.shared(x))
        every = self._every_scenario(x)
        likeness = self.likeness(self.scenario_embedding(groups.key))
        itself = functional.embedding(groups.key, self.get_buffer("itself"))
        others = mix(likeness.masked_fill(itself, -torch.inf).softmax(dim=1), every)
        read = torch.cat([shared, groups.pick(every), others], dim=1)
        mixed = mix(self.task_gate(read).softmax(dim=1), self.task(read))
        return groups.unsort(self.head(self.mlp(mixed)))

    def _every_scenario(self, x: Tensor) -> Tensor:
        """S_i(x) of all scenarios, (S, B, expert_dims[-1])."""
        shape = (self.num_scenarios, self.specific.num_experts)
        gates = torch.unflatten(self.specific_gates(x), 1, shape).softmax(dim=2)
        outputs = torch.unflatten(self.specific.every(x), 0, shape)
        return torch.einsum("bse,sebd->sbd", gates, outputs)
