"""Separate backbone."""

from collections.abc import Sequence

from torch import Tensor

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import RELU, Hidden
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.scenario_layers import Towers


class Separate(Backbone):
    """Separate MLP for each scenario, with nothing in common.

    logit_s = MLP_s(x). The tables and the bottom MLP of the dense features stay shared, unless the
    run sets `embeddings.per_scenario: true` and `interaction.bottom_dims: []`. Then it trains S
    independent models, each on its own rows, which only stop together.

    When:
        As the reference that shows what sharing is worth. It is right where scenarios have many
        rows each and little in common.

    Source:
        No paper; the reference that every multi-scenario paper calls "single" or "separate".

    Example:
        >>> import torch
        >>> model = Separate(BackboneShape(in_dim=8, num_scenarios=3), dims=[4])
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
        self.towers = Towers(shape.in_dim, dims, shape.num_scenarios, shape.num_tasks, hidden)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios)
        return groups.unsort(self.towers(groups.sort(x), groups))
