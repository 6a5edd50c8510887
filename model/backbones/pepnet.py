"""PEPNet: EPNet's gate on the input, then PPNet's gated towers."""

from collections.abc import Sequence

from torch import Tensor, nn

from msrec.model.backbones.epnet import EmbeddingGate
from msrec.model.backbones.ppnet import PPNet
from msrec.model.layers.feature_layout import FeatureLayout


class PEPNet(nn.Module):
    """Parameter and embedding personalised network: PPNet over EPNet's gated input.

    x' = x * gate([e_s, stopgrad(x)]), and PPNet's towers run on x', their gates seeing
    [ids, stopgrad(x')], ids being the gated vectors of `id_features`.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, a scenario is out of range, or an id feature is not in x.

    When:
        Both: scenarios that differ in which features count, and strong user and item ids. The usual
        choice for a large app with enough rows.

    Source:
        Chang et al., KDD 2023 (arXiv 2302.01115). One tower per scenario, where the paper has one
        per task.

    Example:
        >>> import torch
        >>> fields = FeatureLayout(("user_id", "item_id"), dim=4)
        >>> model = PEPNet(in_dim=8, num_scenarios=3, fields=fields, dims=[4])
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
        scenario_dim: int = 16,
        gate_dim: int = 64,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.gate = EmbeddingGate(in_dim, num_scenarios, scenario_dim, gate_dim)
        self.towers = PPNet(
            in_dim,
            num_scenarios,
            num_tasks,
            fields=fields,
            dims=dims,
            id_features=id_features,
            gate_dim=gate_dim,
            activation=activation,
            dropout=dropout,
        )

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        logits: Tensor = self.towers(self.gate(x, scenario), scenario)
        return logits
