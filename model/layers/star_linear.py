"""STAR's layer: the shared weights times the group's own, element by element."""

import torch
from torch import Tensor, nn

from msrec.model.layers.mlp import check_positive, linear_init
from msrec.model.layers.row_groups import RowGroups


class StarLinear(nn.Module):
    """One star layer: W_s = W_shared * W_own[s] (element by element), b_s = b_shared + b_own[s].

    Own weights start at 1 and own biases at 0, so all scenarios start as the shared layer.

    Shape:
        x: (B, in_dim), float, rows in the order of `groups`.
        returns: (B, out_dim), float, same order.
    """

    def __init__(self, in_dim: int, out_dim: int, num_scenarios: int) -> None:
        super().__init__()
        check_positive(out_dim=out_dim, num_scenarios=num_scenarios)
        self.shared_weight = nn.Parameter(torch.empty(in_dim, out_dim))
        self.shared_bias = nn.Parameter(torch.empty(out_dim))
        self.own_weight = nn.Parameter(torch.ones(num_scenarios, in_dim, out_dim))
        self.own_bias = nn.Parameter(torch.zeros(num_scenarios, out_dim))
        linear_init(self.shared_weight, self.shared_bias, in_dim)

    def forward(self, x: Tensor, groups: RowGroups) -> Tensor:
        """Multiply sorted rows by their scenario's weights, made once a call."""
        weight = self.shared_weight * self.own_weight
        return groups.linear(x, weight, self.shared_bias + self.own_bias)
