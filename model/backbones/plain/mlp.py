"""MLP backbone."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers import mlp
from msrec.model.layers.mlp import RELU, Hidden


class MLP(Backbone):
    """Plain MLP without scenarios, the baseline that every other model must beat.

    logit = head(MLP(x)).

    When:
        As the floor: a multi-scenario model that does not beat it is not worth its price. It is
        enough where a feature in x already identifies the scenario.

    Source:
        No paper; the deep part of Cheng et al., DLRS 2016 (Wide & Deep), alone.

    Example:
        >>> import torch
        >>> model = MLP(BackboneShape(in_dim=8, num_scenarios=3), dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        dims: Sequence[int] = (256, 128),
        hidden: Hidden = RELU,
        norm: Literal["none", "layer"] = "none",
    ) -> None:
        super().__init__(shape)
        self.mlp = mlp.MLP(shape.in_dim, dims, hidden, norm)
        self.head = nn.Linear(self.mlp.out_dim, shape.num_tasks)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        logits: Tensor = self.head(self.mlp(x))
        return logits
