"""PEPNet and its two halves, EPNet and PPNet."""

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from msrec.data.loading.row_counts import RowCounts
from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import MLP, RELU, Hidden, check_positive
from msrec.model.layers.row_groups import RowGroups, group_rows
from msrec.model.layers.scenario_layers import ScenarioLinear


class Gate(nn.Module):
    """2 sigmoid(V relu(U prior + u) + v): factors in (0, 2), 1 where the gate knows nothing.

    Shape:
        prior: (B, in_dim), float.
        returns: (B, out_dim), float, in (0, 2).

    Source:
        Chang et al., KDD 2023 (PEPNet, arXiv 2302.01115), its Gate NU with gamma = 2.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        check_positive(gate_dim=hidden_dim)
        self.hidden = nn.Linear(in_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, out_dim)

    def forward(self, prior: Tensor) -> Tensor:
        """Returns the factors of each row."""
        return 2 * torch.sigmoid(self.out(torch.relu(self.hidden(prior))))


class EmbeddingGate(nn.Module):
    """x' = gate([scenario embedding, stopgrad(x)]) * x.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64.
        returns: (B, in_dim), float.
    """

    def __init__(self, in_dim: int, num_scenarios: int, scenario_dim: int, gate_dim: int) -> None:
        super().__init__()
        check_positive(scenario_dim=scenario_dim)
        self.scenario_embedding = nn.Embedding(num_scenarios, scenario_dim)
        self.gate = Gate(scenario_dim + in_dim, gate_dim, in_dim)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Scales each row for its scenario."""
        prior = torch.cat([self.scenario_embedding(scenario), x.detach()], dim=1)
        gated: Tensor = self.gate(prior) * x
        return gated


class EPNet(Backbone):
    """Embedding personalised network: a gate made from the scenario scales every column of x.

    logit = MLP(x * 2 sigmoid(gate([e_s, stopgrad(x)]))).

    When:
        Many scenarios at little cost: one head, and a gate on the input that knows the scenario.

    Source:
        Chang et al., KDD 2023 (PEPNet, arXiv 2302.01115). One MLP for all scenarios and labels, as
        the gate is all that EPNet adds, with a linear head per label; no batch norm, which
        Scenario-Wise-Rec has in its head.

    Example:
        >>> model = EPNet(BackboneShape(in_dim=8, num_scenarios=3), dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        dims: Sequence[int] = (128, 64),
        scenario_dim: int = 16,
        gate_dim: int = 64,
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        self.gate = EmbeddingGate(shape.in_dim, shape.num_scenarios, scenario_dim, gate_dim)
        self.mlp = MLP(shape.in_dim, dims, hidden)
        self.head = nn.Linear(self.mlp.out_dim, shape.num_tasks)

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        logits: Tensor = self.mlp(self.gate(x, scenario), self.head)
        return logits


class ScenarioGate(nn.Module):
    """2 sigmoid(V_st relu(U prior + u) + v_st): a gate with a last layer per scenario and task.

    Shape:
        prior: (B, in_dim), float, rows in the order of `groups`.
        returns: (B, num_tasks * out_dim), float, in (0, 2), same order; the factors of one task
            after those of another.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, shape: BackboneShape) -> None:
        super().__init__()
        check_positive(gate_dim=hidden_dim)
        self.hidden = nn.Linear(in_dim, hidden_dim)
        self.own = ScenarioLinear(hidden_dim, shape.num_tasks * out_dim, shape.num_scenarios)

    def forward(self, prior: Tensor, groups: RowGroups) -> Tensor:
        """Returns the factors of each sorted row."""
        return 2 * torch.sigmoid(self.own(torch.relu(self.hidden(prior)), groups))


class PPNet(Backbone):
    """Parameter personalised network: gates made from user and item scale the input of every layer.

    h_{l+1} = act(W_st (h_l * gate_lst([ids, stopgrad(x)])) + b_st) with h_0 = x, for each label t.
    The last layer, gated too, gives the logit without activation. ids are the embedding vectors of
    `id_features`.

    Raises:
        ValueError: an id feature has no vector in x.

    When:
        Users and items with long histories, so that their ids are informative in every layer.

    Source:
        Chang et al., KDD 2023 (PEPNet, arXiv 2302.01115). One tower, and one last layer of each
        gate, per scenario and label; the paper's are per label, and its scenarios are known to
        EPNet alone, which this model lacks. The gate scales the input of a layer,
        as in the paper; Scenario-Wise-Rec scales its output and starts from the input of the gate,
        not from x.

    Example:
        >>> from msrec.model.backbone import FeatureLayout
        >>> layout = FeatureLayout(("user_id", "item_id"), dim=4)
        >>> model = PPNet(BackboneShape(in_dim=8, num_scenarios=3, layout=layout), dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        dims: Sequence[int] = (128, 64),
        id_features: Sequence[str] = ("user_id", "item_id"),
        gate_dim: int = 64,
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        shape.layout.check(id_features)
        self.layout = shape.layout
        self.id_features = list(id_features)
        prior_dim = len(self.id_features) * self.layout.dim + shape.in_dim
        sizes = [shape.in_dim, *dims, 1]
        self.gates = nn.ModuleList(
            ScenarioGate(prior_dim, gate_dim, size, shape) for size in sizes[:-1]
        )
        self.layers = nn.ModuleList(
            ScenarioLinear(a, shape.num_tasks * b, shape.num_scenarios)
            for a, b in itertools.pairwise(sizes)
        )
        self.finish = hidden.module()

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
        prior = torch.cat([self.layout.select(x, self.id_features), x.detach()], dim=1)
        last, tasks = len(self.layers) - 1, self.num_tasks
        towers = [x] * tasks
        layers = cast(list[ScenarioLinear], self.layers)
        for i, (gate, layer) in enumerate(zip(self.gates, layers, strict=True)):
            factors = gate(prior, groups).chunk(tasks, dim=1)
            gated = [h * factor for h, factor in zip(towers, factors, strict=True)]
            towers = layer.by_task(gated, groups, tasks)
            if i < last:
                towers = [self.finish(h) for h in towers]
        return groups.unsort(torch.cat(towers, dim=1))


class PEPNet(Backbone):
    """Parameter and embedding personalised network: PPNet over the gated input of EPNet.

    x' = x * gate([e_s, stopgrad(x)]). The towers of PPNet run on x', with gates that see [ids,
    stopgrad(x')], where ids are the gated vectors of `id_features`.

    Raises:
        ValueError: an id feature has no vector in x.

    When:
        Scenarios that differ in which features count, with informative user and item ids. The usual
        choice for a large app with enough rows.

    Source:
        Chang et al., KDD 2023 (arXiv 2302.01115). EPNet works by scenario and PPNet by label, as in
        the paper; in addition, each scenario has its own towers and last layers of the gates.

    Example:
        >>> from msrec.model.backbone import FeatureLayout
        >>> layout = FeatureLayout(("user_id", "item_id"), dim=4)
        >>> model = PEPNet(BackboneShape(in_dim=8, num_scenarios=3, layout=layout), dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        dims: Sequence[int] = (128, 64),
        id_features: Sequence[str] = ("user_id", "item_id"),
        scenario_dim: int = 16,
        gate_dim: int = 64,
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        self.gate = EmbeddingGate(shape.in_dim, shape.num_scenarios, scenario_dim, gate_dim)
        self.towers = PPNet(
            shape, dims=dims, id_features=id_features, gate_dim=gate_dim, hidden=hidden
        )

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        logits: Tensor = self.towers(self.gate(x, scenario), scenario, weight, counts)
        return logits
