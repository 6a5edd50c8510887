"""DCN-v2: cross layers beside or below an MLP; it knows no scenario."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from msrec.model.layers.mlp import MLP, check_positive


class DCNv2(nn.Module):
    """Deep and cross network v2: x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, and an MLP.

    `parallel`: logit = head([cross(x), MLP(x)]); `stacked`: logit = head(MLP(cross(x))). With a
    `rank` every W_l is U_l V_l of that rank.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64; not used.
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1.

    When:
        Products of features matter more than scenarios do; `rank` where x is wide.

    Source:
        Wang et al., WWW 2021 (arXiv 2008.13535); low rank without the paper's mixture of experts.

    Example:
        >>> DCNv2(in_dim=8, num_scenarios=3, dims=[4])(torch.zeros(5, 8), torch.zeros(5)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        num_cross: int = 2,
        rank: int | None = None,
        structure: Literal["parallel", "stacked"] = "parallel",
        dims: Sequence[int] = (256, 128),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(
            num_scenarios=num_scenarios,
            num_tasks=num_tasks,
            num_cross=num_cross,
            rank=1 if rank is None else rank,
        )
        self.cross = nn.ModuleList(_cross_layer(in_dim, rank) for _ in range(num_cross))
        self.parallel = structure == "parallel"
        self.mlp = MLP(in_dim, dims, activation, dropout)
        self.head = nn.Linear(self.mlp.out_dim + in_dim * self.parallel, num_tasks)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row."""
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
