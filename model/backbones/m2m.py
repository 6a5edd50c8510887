"""M2M: a meta unit whose weights are made from the scenario, in attention and tower."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from msrec.model.layers.experts import Experts, mix
from msrec.model.layers.mlp import MLP, check_positive
from msrec.model.layers.row_groups import RowGroups, group_rows


class MetaUnit(nn.Module):
    """h <- leaky_relu(W h + b), `num_layers` times, W and b linear maps of the scenario's view.

    The weights are made once a step for each scenario, not for each row.

    Shape:
        x: (B, dim) or (B, N, dim), float, rows in the order of `groups`.
        view: (S, view_dim), float.
        returns: as x.
    """

    def __init__(self, dim: int, view_dim: int, num_layers: int) -> None:
        super().__init__()
        check_positive(num_meta_layers=num_layers)
        self.dim = dim
        self.weights = nn.ModuleList(nn.Linear(view_dim, dim * dim) for _ in range(num_layers))
        self.biases = nn.ModuleList(nn.Linear(view_dim, dim) for _ in range(num_layers))

    def forward(self, x: Tensor, view: Tensor, groups: RowGroups) -> Tensor:
        """Run sorted rows through their scenario's layers."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            matrix = torch.unflatten(weight(view), 1, (self.dim, self.dim))
            x = functional.leaky_relu(groups.linear(x, matrix, bias(view)))
        return x


class M2M(nn.Module):
    """Multi-scenario multi-task meta learning: attention and tower by generated layers.

    view s~ = MLP(e_s); experts E_i(x); attention a_i = v Meta([E_i, T_t]) with softmax over the
    experts, T_t the task's embedding; R_t = sum a_i E_i; tower L <- leaky_relu(Meta(L) + L);
    logit_t = head_t(L).

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, or a scenario is out of range.

    When:
        Many scenarios, also new ones: a scenario's private part is one embedding, from which its
        layers are made.

    Source:
        Zhang et al., WSDM 2022 (arXiv 2201.06814). Experts read x, since there are no sequences for
        the paper's transformer; Scenario-Wise-Rec's transformer attends across the rows of a batch.
        The tasks share the meta units, the heads are their own.

    Example:
        >>> model = M2M(in_dim=8, num_scenarios=3, expert_dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        num_experts: int = 4,
        expert_dims: Sequence[int] = (128, 32),
        num_tower_layers: int = 2,
        num_meta_layers: int = 1,
        head_dims: Sequence[int] = (64, 32),
        scenario_dim: int = 16,
        view_dims: Sequence[int] = (16,),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(
            num_tasks=num_tasks,
            num_scenarios=num_scenarios,
            scenario_dim=scenario_dim,
            num_tower_layers=num_tower_layers,
        )
        self.num_scenarios = num_scenarios
        self.scenario_embedding = nn.Embedding(num_scenarios, scenario_dim)
        self.view = MLP(scenario_dim, view_dims, activation)
        self.experts = Experts(in_dim, expert_dims, num_experts, activation, dropout)
        dim, view_dim = expert_dims[-1], self.view.out_dim
        self.task_embedding = nn.Embedding(num_tasks, dim)
        self.attention = MetaUnit(2 * dim, view_dim, num_meta_layers)
        self.score = nn.Linear(2 * dim, 1, bias=False)
        self.tower = nn.ModuleList(
            MetaUnit(dim, view_dim, num_meta_layers) for _ in range(num_tower_layers)
        )
        self.heads = nn.ModuleList(
            nn.Sequential(MLP(dim, head_dims, activation, dropout), nn.Linear(head_dims[-1], 1))
            for _ in range(num_tasks)
        )

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        groups = group_rows(scenario, self.num_scenarios)
        view = self.view(self.scenario_embedding.weight)
        outputs = self.experts(groups.sort(x))
        logits = [
            head(self._read(outputs, task, view, groups))
            for head, task in zip(self.heads, self.task_embedding.weight.unbind(), strict=True)
        ]
        return groups.unsort(torch.cat(logits, dim=1))

    def _read(self, outputs: Tensor, task: Tensor, view: Tensor, groups: RowGroups) -> Tensor:
        """L of one task, (B, dim), from the experts' outputs (E, B, dim)."""
        rows = outputs.transpose(0, 1)
        pairs = torch.cat([rows, task.expand_as(rows)], dim=2)
        score = self.score(self.attention(pairs, view, groups)).squeeze(2)
        h = mix(score.softmax(dim=1), outputs)
        for unit in self.tower:
            h = functional.leaky_relu(unit(h, view, groups) + h)
        return h
