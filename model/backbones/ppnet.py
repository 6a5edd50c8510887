"""PPNet: gates made of the user and the item scale what every layer of a tower sees."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.layers.dropout import Dropout
from msrec.model.layers.feature_layout import FeatureLayout
from msrec.model.layers.gates import ScenarioGate
from msrec.model.layers.mlp import ScenarioLinear, check_positive, make_activation
from msrec.model.layers.row_groups import group_rows


class PPNet(nn.Module):
    """Parameter personalised network: h_{l+1} = act(W_s (h_l * gate_ls([ids, stopgrad(x)])) + b_s).

    h_0 is x; the last layer, gated too, gives the logits without activation. ids are the looked-up
    vectors of `id_features`.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, a scenario is out of range, or an id feature is not in x.

    When:
        Users and items with long histories, whose ids are worth a say in every layer.

    Source:
        Chang et al., KDD 2023 (PEPNet, arXiv 2302.01115). One tower, and one last layer of each
        gate, per scenario, where the paper has one per task. The gate scales a layer's input, as in
        the paper; Scenario-Wise-Rec scales its output and starts from the gate's input, not x.

    Example:
        >>> fields = FeatureLayout(("user_id", "item_id"), dim=4)
        >>> model = PPNet(in_dim=8, num_scenarios=3, fields=fields, dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        *,
        fields: FeatureLayout,
        dims: Sequence[int] = (128, 64),
        id_features: Sequence[str] = ("user_id", "item_id"),
        gate_dim: int = 64,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(num_tasks=num_tasks)
        fields.positions(id_features)
        self.num_scenarios = num_scenarios
        self.fields = fields
        self.id_features = list(id_features)
        prior_dim = len(self.id_features) * fields.dim + in_dim
        sizes = [in_dim, *dims, num_tasks]
        self.gates = nn.ModuleList(
            ScenarioGate(prior_dim, gate_dim, size, num_scenarios) for size in sizes[:-1]
        )
        self.layers = nn.ModuleList(
            ScenarioLinear(a, b, num_scenarios) for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.activation = make_activation(activation)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        groups = group_rows(scenario, self.num_scenarios)
        x = groups.sort(x)
        prior = torch.cat([self.fields.of(x, self.id_features), x.detach()], dim=1)
        last = len(self.layers) - 1
        for i, (gate, layer) in enumerate(zip(self.gates, self.layers, strict=True)):
            x = layer(x * gate(prior, groups), groups)
            if i < last:
                x = self.dropout(self.activation(x))
        return groups.unsort(x)
