"""DCN-v2 backbone."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import MLP, RELU, Hidden, check_positive


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

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
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
