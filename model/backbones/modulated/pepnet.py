"""PEPNet backbone."""

from collections.abc import Sequence

from torch import Tensor

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.backbones.modulated.epnet import EmbeddingGate
from msrec.model.backbones.modulated.ppnet import PPNet
from msrec.model.layers.mlp import RELU, Hidden


class PEPNet(Backbone):
    """Parameter and embedding personalised network: PPNet over the gated input of EPNet.

    x' = x * gate([e_s, stopgrad(x)]). The towers of PPNet run on x', with gates that see [ids,
    stopgrad(x')], where ids are the gated vectors of `id_features`.

    Raises:
        ValueError: an id feature has no vector in x.

    When:
        Both: scenarios that differ in which features count, and informative user and item ids. The
        usual choice for a large app with enough rows.

    Source:
        Chang et al., KDD 2023 (arXiv 2302.01115). One tower per scenario, where the paper has one
        per task.

    Example:
        >>> import torch
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

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        logits: Tensor = self.towers(self.gate(x, scenario), scenario)
        return logits
