"""M2M backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from msrec.data.loading.row_counts import RowCounts
from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.experts import Experts, mix
from msrec.model.layers.mlp import MLP, RELU, Hidden, check_positive
from msrec.model.layers.precision import softmax
from msrec.model.layers.row_groups import RowGroups, group_rows


class MetaUnit(nn.Module):
    """h <- leaky_relu(W h + b), `num_layers` times; W and b are linear maps of the scenario's view.

    The weights are generated once per step and scenario, not per row.

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
        """Runs sorted rows through the layers of their scenario."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            matrix = torch.unflatten(weight(view), 1, (self.dim, self.dim))
            x = functional.leaky_relu(groups.linear(x, matrix, bias(view)))
        return x


class M2M(Backbone):
    """Meta learning: the weights of attention and tower are generated from the scenario.

    The view of a scenario is s~ = MLP(e_s). Experts E_i(x) are weighted by the softmax of a_i =
    v Meta([E_i, T_t]), with T_t the embedding of task t, to R_t = sum a_i E_i. The tower repeats
    L <- leaky_relu(Meta_t(L) + L) from L = R_t; logit_t = head_t(L). Meta is a `MetaUnit` of s~.

    When:
        Many scenarios, also new ones: the private part of a scenario is one embedding, from which
        its layers are generated.

    Source:
        Zhang et al., WSDM 2022 (arXiv 2201.06814). Experts read x, since there are no sequences for
        the paper's transformer; Scenario-Wise-Rec's transformer attends across the rows of a batch.
        The tasks share the meta unit of the attention, which reads the embedding of the task; each
        has its own tower and head.

    Example:
        >>> model = M2M(BackboneShape(in_dim=8, num_scenarios=3), expert_dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        num_experts: int = 4,
        expert_dims: Sequence[int] = (128, 32),
        num_tower_layers: int = 2,
        num_meta_layers: int = 1,
        head_dims: Sequence[int] = (64, 32),
        scenario_dim: int = 16,
        view_dims: Sequence[int] = (16,),
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        check_positive(scenario_dim=scenario_dim, num_tower_layers=num_tower_layers)
        self.scenario_embedding = nn.Embedding(shape.num_scenarios, scenario_dim)
        self.view = MLP(scenario_dim, view_dims, Hidden(hidden.activation))
        self.experts = Experts(shape.in_dim, expert_dims, num_experts, hidden)
        dim, view_dim = expert_dims[-1], self.view.out_dim
        self.task_embedding = nn.Embedding(shape.num_tasks, dim)
        self.attention = MetaUnit(2 * dim, view_dim, num_meta_layers)
        self.score = nn.Linear(2 * dim, 1, bias=False)
        self.tower = nn.ModuleList(
            MetaUnit(dim, view_dim, num_meta_layers)
            for _ in range(num_tower_layers * shape.num_tasks)
        )
        self.heads = nn.ModuleList(
            nn.Sequential(MLP(dim, head_dims, hidden), nn.Linear([dim, *head_dims][-1], 1))
            for _ in range(shape.num_tasks)
        )

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios, counts)
        view = self.view(self.scenario_embedding.weight)
        outputs = self.experts(groups.sort(x))
        logits = []
        for t, task in enumerate(self.task_embedding.weight.unbind()):
            h = self._attended(outputs, task, view, groups)
            for unit in list(self.tower)[t :: self.num_tasks]:
                h = functional.leaky_relu(unit(h, view, groups) + h)
            logits.append(self.heads[t](h))
        return groups.unsort(torch.cat(logits, dim=1))

    def _attended(self, outputs: Tensor, task: Tensor, view: Tensor, groups: RowGroups) -> Tensor:
        """Returns R_t of one task, (B, dim), from the outputs of the experts, (E, B, dim)."""
        rows = outputs.transpose(0, 1)
        pairs = torch.cat([rows, task.expand_as(rows)], dim=2)
        score = self.score(self.attention(pairs, view, groups)).squeeze(2)
        return mix(softmax(score, dim=1), outputs)
