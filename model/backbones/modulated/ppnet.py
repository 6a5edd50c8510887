"""PPNet backbone."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import RELU, Hidden, check_positive
from msrec.model.layers.row_groups import RowGroups, group_rows
from msrec.model.layers.scenario_layers import ScenarioLinear


class ScenarioGate(nn.Module):
    """2 sigmoid(V_s relu(U prior + u) + v_s): a gate with a last layer per scenario.

    Shape:
        prior: (B, in_dim), float, rows in the order of `groups`.
        returns: (B, out_dim), float, in (0, 2), same order.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_scenarios: int) -> None:
        super().__init__()
        check_positive(gate_dim=hidden_dim)
        self.hidden = nn.Linear(in_dim, hidden_dim)
        self.own = ScenarioLinear(hidden_dim, out_dim, num_scenarios)

    def forward(self, prior: Tensor, groups: RowGroups) -> Tensor:
        """Returns the factors of each sorted row."""
        return 2 * torch.sigmoid(self.own(torch.relu(self.hidden(prior)), groups))


class PPNet(Backbone):
    """Parameter personalised network: gates made from user and item scale the input of every layer.

    h_{l+1} = act(W_s (h_l * gate_ls([ids, stopgrad(x)])) + b_s) with h_0 = x. The last layer, gated
    too, gives the logits without activation. ids are the embedding vectors of `id_features`.

    Raises:
        ValueError: an id feature has no vector in x.

    When:
        Users and items with long histories, so that their ids are informative in every layer.

    Source:
        Chang et al., KDD 2023 (PEPNet, arXiv 2302.01115). One tower, and one last layer of each
        gate, per scenario, where the paper has one per task. The gate scales the input of a layer,
        as in the paper; Scenario-Wise-Rec scales its output and starts from the input of the gate,
        not from x.

    Example:
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
        sizes = [shape.in_dim, *dims, shape.num_tasks]
        self.gates = nn.ModuleList(
            ScenarioGate(prior_dim, gate_dim, size, shape.num_scenarios) for size in sizes[:-1]
        )
        self.layers = nn.ModuleList(
            ScenarioLinear(a, b, shape.num_scenarios) for a, b in itertools.pairwise(sizes)
        )
        self.finish = hidden.module()

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios)
        x = groups.sort(x)
        prior = torch.cat([self.layout.select(x, self.id_features), x.detach()], dim=1)
        last = len(self.layers) - 1
        for i, (gate, layer) in enumerate(zip(self.gates, self.layers, strict=True)):
            x = layer(x * gate(prior, groups), groups)
            if i < last:
                x = self.finish(x)
        return groups.unsort(x)
