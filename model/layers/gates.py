"""Gates of PEPNet: numbers in (0, 2) that scale what a layer sees, 1 where they know nothing."""

import torch
from torch import Tensor, nn

from msrec.model.layers.mlp import ScenarioLinear, check_positive
from msrec.model.layers.row_groups import RowGroups


class Gate(nn.Module):
    """2 sigmoid(V relu(U prior + u) + v).

    Shape:
        prior: (B, in_dim), float.
        returns: (B, out_dim), float, in (0, 2).

    Source:
        Chang et al., KDD 2023 (PEPNet, arXiv 2302.01115), its Gate NU with gamma = 2.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        check_positive(gate_dim=hidden_dim)
        self.hidden = nn.Linear(in_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, out_dim)

    def forward(self, prior: Tensor) -> Tensor:
        """Gate of each row."""
        return 2 * torch.sigmoid(self.out(torch.relu(self.hidden(prior))))


class ScenarioGate(nn.Module):
    """A gate whose last layer is the row's own scenario's: 2 sigmoid(V_s relu(U prior + u) + v_s).

    Shape:
        prior: (B, in_dim), float, rows in the order of `groups`.
        returns: (B, out_dim), float, in (0, 2), same order.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_scenarios: int) -> None:
        super().__init__()
        check_positive(gate_dim=hidden_dim)
        self.hidden = nn.Linear(in_dim, hidden_dim)
        self.own = ScenarioLinear(hidden_dim, out_dim, num_scenarios)

    def forward(self, prior: Tensor, groups: RowGroups) -> Tensor:
        """Gate of each sorted row."""
        return 2 * torch.sigmoid(self.own(torch.relu(self.hidden(prior)), groups))
