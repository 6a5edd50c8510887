"""STAR backbone."""

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import MLP, RELU, Hidden, check_positive
from msrec.model.layers.partitioned_norm import PartitionedNorm
from msrec.model.layers.row_groups import RowGroups, group_rows
from msrec.model.layers.scenario_layers import StarLinear


class STAR(Backbone):
    """Star topology: the weights of a scenario are the shared ones times its own, element-wise.

    logit = star layers(norm_s(x)) + MLP([e_s, x]). A star layer has W_s = W_shared * W_own[s] and
    b_s = b_shared + b_own[s]; norm_s uses the moments of the scenario's rows; e_s is the embedding
    of the scenario. Rows of weight 0 do not count in the moments.

    Raises:
        ValueError: the norm is unknown.

    When:
        Scenarios of unequal size over one strong shared network. Each has a copy of all layers, so
        parameters grow with the number of scenarios; time hardly does.

    Source:
        Sheng et al., CIKM 2021 (arXiv 2101.11427). The last star layer has no activation, so that
        the main logit takes both signs, and evaluation uses moving averages, so that the score of a
        row does not depend on its batch; Scenario-Wise-Rec differs in both. The auxiliary network
        sees x before the norm. A batch holds one scenario in the paper, all scenarios here; the
        norm uses the moments of each scenario's rows.

    Example:
        >>> model = STAR(BackboneShape(in_dim=8, num_scenarios=3), dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        dims: Sequence[int] = (256, 128, 64),
        aux_dims: Sequence[int] = (64,),
        scenario_dim: int = 16,
        hidden: Hidden = RELU,
        norm: Literal["partitioned", "none"] = "partitioned",
    ) -> None:
        super().__init__(shape)
        check_positive(scenario_dim=scenario_dim)
        if norm not in ("partitioned", "none"):
            raise ValueError(f"STAR's norm must be 'partitioned' or 'none'; got {norm!r}.")
        in_dim, count = shape.in_dim, shape.num_scenarios
        self.norm = PartitionedNorm(in_dim, count) if norm == "partitioned" else None
        self.layers = nn.ModuleList(
            StarLinear(a, b, count) for a, b in itertools.pairwise([in_dim, *dims, shape.num_tasks])
        )
        self.finish = hidden.module()
        self.scenario_embedding = nn.Embedding(count, scenario_dim)
        aux = MLP(scenario_dim + in_dim, aux_dims, hidden)
        self.aux = nn.Sequential(aux, nn.Linear(aux.out_dim, shape.num_tasks))

    def main_logit(self, x: Tensor, groups: RowGroups, weight: Tensor | None = None) -> Tensor:
        """Returns the logits of the star layers; rows and weights in the order of `groups`."""
        if self.norm is not None:
            x = self.norm(x, groups, weight)
        *hidden, last = self.layers
        for layer in hidden:
            x = self.finish(layer(x, groups))
        x = last(x, groups)
        return x

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios)
        sorted_weight = None if weight is None else groups.sort(weight)
        main = groups.unsort(self.main_logit(groups.sort(x), groups, sorted_weight))
        aux: Tensor = self.aux(torch.cat([self.scenario_embedding(scenario), x], dim=1))
        return main + aux
