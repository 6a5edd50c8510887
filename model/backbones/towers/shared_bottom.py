"""SharedBottom backbone."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import MLP, RELU, Hidden
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.scenario_layers import Towers


class SharedBottom(Backbone):
    """MLP shared by all scenarios, with one tower per scenario.

    logit_s = tower_s(bottom(x)).

    When:
        As the first model to try: the cheapest, and hard to beat where scenarios are alike.

    Source:
        Caruana 1997, in the form of Scenario-Wise-Rec. A tower has `num_tasks` outputs, where the
        multi-task papers have one tower per task; no batch norm (see the layer `MLP`).

    Example:
        >>> import torch
        >>> shape = BackboneShape(in_dim=8, num_scenarios=3)
        >>> model = SharedBottom(shape, bottom_dims=[4], tower_dims=[2])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        bottom_dims: Sequence[int] = (256, 128),
        tower_dims: Sequence[int] = (64,),
        hidden: Hidden = RELU,
        norm: Literal["none", "layer"] = "none",
    ) -> None:
        super().__init__(shape)
        self.bottom = MLP(shape.in_dim, bottom_dims, hidden, norm)
        size = self.bottom.out_dim
        self.towers = Towers(size, tower_dims, shape.num_scenarios, shape.num_tasks, hidden)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios)
        return groups.unsort(self.towers(groups.sort(self.bottom(x)), groups))
