"""SharedBottom: one MLP for all scenarios, one tower for each."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from msrec.model.layers.mlp import MLP, Towers
from msrec.model.layers.row_groups import group_rows


class SharedBottom(nn.Module):
    """Shared bottom MLP and a tower per scenario: logit_s = tower_s(bottom(x)).

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, or a scenario is out of range.

    When:
        The first one to try: the cheapest, and hard to beat where scenarios are alike.

    Source:
        Caruana 1997, in the form of Scenario-Wise-Rec. A tower has `num_tasks` outputs, where the
        multi-task papers have one tower a task; no batch norm (see MLP).

    Example:
        >>> import torch
        >>> model = SharedBottom(in_dim=8, num_scenarios=3, bottom_dims=[4], tower_dims=[2])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        bottom_dims: Sequence[int] = (256, 128),
        tower_dims: Sequence[int] = (64,),
        activation: str = "relu",
        dropout: float = 0.0,
        norm: Literal["none", "layer"] = "none",
    ) -> None:
        super().__init__()
        self.num_scenarios = num_scenarios
        self.bottom = MLP(in_dim, bottom_dims, activation, dropout, norm)
        self.towers = Towers(
            self.bottom.out_dim, tower_dims, num_scenarios, num_tasks, activation, dropout
        )

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        groups = group_rows(scenario, self.num_scenarios)
        return groups.unsort(self.towers(groups.sort(self.bottom(x)), groups))
