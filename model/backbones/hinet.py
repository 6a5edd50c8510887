"""HiNet backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from msrec.data.loading.row_counts import RowCounts
from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.experts import Experts, ScenarioExperts, mix
from msrec.model.layers.mlp import MLP, RELU, Hidden, check_positive
from msrec.model.layers.precision import softmax
from msrec.model.layers.row_groups import group_rows


class HiNet(Backbone):
    """Hierarchical experts: shared, of the scenario, and of similar scenarios, then task experts.

    C_s = [G(x), S_s(x), A_s(x)], where G and every S_i are softmax-gated sums of experts, and A_s =
    sum over j != s of softmax(W e_s)_j S_j(x), with the softmax over the other scenarios and e_s
    the embedding of the scenario. logit_t = MLP_t(gated sum of [shared, own experts of label t] of
    C_s), with a gate per label. With one label there are only shared experts after the scenario
    layer. A row runs the experts of all scenarios.

    Raises:
        ValueError: there are fewer than 2 scenarios.

    When:
        Few scenarios, with similarities worth learning. The cost of a row grows with their number.

    Source:
        Zhou et al., ICDE 2023 (arXiv 2303.06095). The task layer is CGC: experts that the labels
        share, and as many of each label. The MLP of a label is the same for all scenarios.

    Example:
        >>> model = HiNet(BackboneShape(in_dim=8, num_scenarios=3), expert_dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        num_shared: int = 2,
        num_specific: int = 2,
        expert_dims: Sequence[int] = (64,),
        num_task_experts: int = 4,
        task_expert_dims: Sequence[int] = (64,),
        dims: Sequence[int] = (32,),
        scenario_dim: int = 16,
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        check_positive(scenario_dim=scenario_dim)
        in_dim, count, tasks = shape.in_dim, shape.num_scenarios, shape.num_tasks
        if count < 2:
            raise ValueError(f"num_scenarios must be at least 2; got {count}.")
        self.shared = Experts(in_dim, expert_dims, num_shared, hidden)
        self.shared_gate = nn.Linear(in_dim, num_shared)
        self.specific = ScenarioExperts(in_dim, expert_dims, num_specific, count, hidden)
        self.specific_gates = nn.Linear(in_dim, count * num_specific)
        self.scenario_embedding = nn.Embedding(count, scenario_dim)
        self.likeness = nn.Linear(scenario_dim, count)
        extracted_dim = 3 * expert_dims[-1]
        self.task = Experts(extracted_dim, task_expert_dims, num_task_experts, hidden)
        # Experts that a gate reads: the shared ones, and with several tasks those of its task.
        read = num_task_experts * (2 if tasks > 1 else 1)
        self.task_gate = nn.Linear(extracted_dim, tasks * read)
        self.mlp = MLP(task_expert_dims[-1], dims, hidden)
        self.head = nn.Linear(self.mlp.out_dim, 1)
        self.own_tasks: Experts | None = None
        self.other_towers = nn.ModuleList()
        if tasks > 1:
            num_own = tasks * num_task_experts
            self.own_tasks = Experts(extracted_dim, task_expert_dims, num_own, hidden)
        # The first task's tower is `mlp` and `head`.
        for _ in range(tasks - 1):
            mlp = MLP(task_expert_dims[-1], dims, hidden)
            self.other_towers.append(nn.Sequential(mlp, nn.Linear(mlp.out_dim, 1)))
        self.register_buffer("itself", torch.eye(count).bool(), persistent=False)

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
        shared = mix(softmax(self.shared_gate(x), dim=1), self.shared(x))
        every = self._every_scenario(x)
        likeness = self.likeness(self.scenario_embedding(groups.key))
        itself = functional.embedding(groups.key, self.get_buffer("itself"))
        others = mix(softmax(likeness.masked_fill(itself, -torch.inf), dim=1), every)
        extracted = torch.cat([shared, groups.pick(every), others], dim=1)
        first, *more = self._of_tasks(extracted)
        logits = [self.head(self.mlp(first))]
        logits += [tower(h) for tower, h in zip(self.other_towers, more, strict=True)]
        return groups.unsort(torch.cat(logits, dim=1))

    def _of_tasks(self, extracted: Tensor) -> list[Tensor]:
        """Returns the gated sum of each task's experts, (B, task_expert_dims[-1])."""
        gates, shared = self.task_gate(extracted), self.task(extracted)
        if self.own_tasks is None:
            return [mix(softmax(gates, dim=1), shared)]
        of_tasks = self.own_tasks(extracted).chunk(self.num_tasks)
        return [
            mix(softmax(gate, dim=1), torch.cat([shared, own]))
            for gate, own in zip(gates.chunk(self.num_tasks, dim=1), of_tasks, strict=True)
        ]

    def _every_scenario(self, x: Tensor) -> Tensor:
        """Returns S_i(x) of all scenarios, (S, B, expert_dims[-1])."""
        shape = (self.num_scenarios, self.specific.num_experts)
        gates = softmax(torch.unflatten(self.specific_gates(x), 1, shape), dim=2)
        outputs = torch.unflatten(self.specific.every(x), 0, shape)
        return torch.einsum("bse,sebd->sbd", gates, outputs)
