"""Models of feature interactions, without scenarios: DLRM, DCN-v2 and DeepFM."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from msrec.data.loading.row_counts import RowCounts
from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.interaction import PairDots
from msrec.model.layers.mlp import MLP, RELU, Hidden, check_positive
from msrec.model.layers.precision import widened


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
        >>> from msrec.model.backbone import FeatureLayout
        >>> layout = FeatureLayout(("user_id", "item_id"), dim=4, start=4)
        >>> model = DLRM(BackboneShape(in_dim=12, num_scenarios=3, layout=layout), dims=[4])
        >>> model(torch.zeros(5, 12), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self, shape: BackboneShape, *, dims: Sequence[int] = (256, 128), hidden: Hidden = RELU
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

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        bottom, vectors = x[:, : self.layout.start], self.layout.vectors(x)
        if self.layout.start:
            vectors = torch.cat([bottom.unsqueeze(1), vectors], dim=1)
        parts = [bottom, self.dots(vectors), x[:, self.layout.end :]]
        logits: Tensor = self.mlp(torch.cat(parts, dim=1), self.head)
        return logits


class DCNv2(Backbone):
    """Deep and cross network, version 2: cross layers and an MLP, without scenarios.

    Cross layers compute x_{l+1} = x_0 * (W_l x_l + b_l) + x_l. `parallel`: logit = head([cross(x),
    MLP(x)]); `stacked`: logit = head(MLP(cross(x))). With a `rank` every W_l is a product U_l V_l
    of that rank.

    When:
        Products of features matter more than scenarios do; `rank` where x is wide.

    Source:
        Wang et al., WWW 2021 (arXiv 2008.13535); low rank without the paper's mixture of experts.

    Example:
        >>> model = DCNv2(BackboneShape(in_dim=8, num_scenarios=3), dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        num_cross: int = 2,
        rank: int | None = None,
        structure: Literal["parallel", "stacked"] = "parallel",
        dims: Sequence[int] = (256, 128),
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        check_positive(num_cross=num_cross, rank=1 if rank is None else rank)
        in_dim = shape.in_dim
        self.cross = nn.ModuleList(_cross_layer(in_dim, rank) for _ in range(num_cross))
        self.parallel = structure == "parallel"
        self.mlp = MLP(in_dim, dims, hidden)
        self.head = nn.Linear(self.mlp.out_dim + in_dim * self.parallel, shape.num_tasks)

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        crossed = x
        for layer in self.cross:
            crossed = torch.addcmul(crossed, x, layer(crossed))
        h = torch.cat([crossed, self.mlp(x)], dim=1) if self.parallel else self.mlp(crossed)
        logits: Tensor = self.head(h)
        return logits


def _cross_layer(dim: int, rank: int | None) -> nn.Module:
    if rank is None:
        return nn.Linear(dim, dim)
    return nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim))


class DeepFM(Backbone):
    """Factorisation machine plus an MLP, without scenarios.

    logit = w x + sum of the dot products of all pairs of embedding vectors + MLP(x). With several
    labels, each has its own w, its own last layer, and learned weights, which start at 1, of the
    dimensions of the dot products.

    Raises:
        ValueError: x has no embedding vectors.

    When:
        The taste of a user for an item carries most of the signal, as with ratings: a dot product
        expresses it directly.

    Source:
        Guo et al., IJCAI 2017 (arXiv 1703.04247). The first-order weight of an id is a linear map
        of its vector (and of dense columns), where the paper has a table of single numbers; pairs
        by (sum^2 - sum of squares) / 2. The paper has one label; without weights all labels would
        have the same pairs.

    Example:
        >>> from msrec.model.backbone import FeatureLayout
        >>> layout = FeatureLayout(("user_id", "item_id"), dim=4)
        >>> model = DeepFM(BackboneShape(in_dim=8, num_scenarios=3, layout=layout), dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self, shape: BackboneShape, *, dims: Sequence[int] = (256, 128), hidden: Hidden = RELU
    ) -> None:
        super().__init__(shape)
        check_positive(vectors=len(shape.layout.names))
        self.layout = shape.layout
        self.first_order = nn.Linear(shape.in_dim, shape.num_tasks)
        self.mlp = MLP(shape.in_dim, dims, hidden)
        self.head = nn.Linear(self.mlp.out_dim, shape.num_tasks)
        self.pair_weights: nn.Parameter | None = None
        if shape.num_tasks > 1:
            self.pair_weights = nn.Parameter(torch.ones(shape.layout.dim, shape.num_tasks))

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        vectors = self.layout.vectors(widened(x))
        pairs = vectors.sum(1).square() - vectors.square().sum(1)
        logits: Tensor = self.first_order(x) + self.mlp(x, self.head)
        weights = self.pair_weights
        return logits + (pairs.sum(1, keepdim=True) if weights is None else pairs @ weights) / 2
