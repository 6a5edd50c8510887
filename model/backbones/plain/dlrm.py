"""DLRM backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.interaction import PairDots
from msrec.model.layers.mlp import MLP, RELU, Hidden, check_positive


class DLRM(Backbone):
    """Dot products of all pairs of embedding vectors, then an MLP; without scenarios.

    logit = top([bottom, dots of all pairs of vectors, other columns of x]). If there are dense
    features, bottom(dense) is the first part of x and one of the vectors.

    Raises:
        ValueError: x has no embedding vectors, or bottom(dense) is not as large as a vector.

    When:
        Many ids whose pairs matter, with dense features; to compare with TorchRec's own DLRM.

    Source:
        Naumov et al., arXiv 1906.00091. Pairs below the diagonal, no self product, as TorchRec's.

    Example:
        >>> layout = FeatureLayout(("user_id", "item_id"), dim=4, start=4)
        >>> model = DLRM(BackboneShape(in_dim=12, num_scenarios=3, layout=layout), dims=[4])
        >>> model(torch.zeros(5, 12), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        dims: Sequence[int] = (256, 128),
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        layout = shape.layout
        check_positive(vectors=len(layout.names))
        if layout.start not in (0, layout.dim):
            raise ValueError(
                f"interaction.bottom_dims must end with the embedding size {layout.dim}, so that "
                f"the dense features are one more vector; got {layout.start}."
            )
        self.layout = layout
        self.dots = PairDots(len(layout.names) + (layout.start > 0))
        others = shape.in_dim - layout.end
        self.mlp = MLP(layout.start + self.dots.out_dim + others, dims, hidden)
        self.head = nn.Linear(self.mlp.out_dim, shape.num_tasks)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        bottom, vectors = x[:, : self.layout.start], self.layout.vectors(x)
        if self.layout.start:
            vectors = torch.cat([bottom.unsqueeze(1), vectors], dim=1)
        parts = [bottom, self.dots(vectors), x[:, self.layout.end :]]
        logits: Tensor = self.head(self.mlp(torch.cat(parts, dim=1)))
        return logits
