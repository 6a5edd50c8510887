"""DeepFM backbone."""

from collections.abc import Sequence

from torch import Tensor, nn

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import MLP, RELU, Hidden, check_positive


class DeepFM(Backbone):
    """Factorisation machine plus an MLP, without scenarios.

    logit = w x + sum of the dot products of all pairs of embedding vectors + MLP(x).

    Raises:
        ValueError: x has no embedding vectors.

    When:
        The taste of a user for an item carries most of the signal, as with ratings: a dot product
        expresses it directly.

    Source:
        Guo et al., IJCAI 2017 (arXiv 1703.04247). The first-order weight of an id is a linear map
        of its vector (and of dense columns), where the paper has a table of single numbers; pairs
        by (sum^2 - sum of squares) / 2.

    Example:
        >>> import torch
        >>> layout = FeatureLayout(("user_id", "item_id"), dim=4)
        >>> model = DeepFM(BackboneShape(in_dim=8, num_scenarios=3, layout=layout), dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
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
        check_positive(vectors=len(shape.layout.names))
        self.layout = shape.layout
        self.first_order = nn.Linear(shape.in_dim, shape.num_tasks)
        self.mlp = MLP(shape.in_dim, dims, hidden)
        self.head = nn.Linear(self.mlp.out_dim, shape.num_tasks)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        vectors = self.layout.vectors(x)
        pairs = vectors.sum(1).square() - vectors.square().sum(1)
        logits: Tensor = self.first_order(x) + self.head(self.mlp(x))
        return logits + pairs.sum(1, keepdim=True) / 2
