"""STAR: every scenario's network is the shared one times its own, element by element."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from msrec.model.layers.dropout import Dropout
from msrec.model.layers.mlp import MLP, check_positive, make_activation
from msrec.model.layers.partitioned_norm import PartitionedNorm
from msrec.model.layers.row_groups import RowGroups, group_rows
from msrec.model.layers.star_linear import StarLinear


class STAR(nn.Module):
    """Star topology adaptive recommender: logit = star layers(norm_s(x)) + MLP([e_s, x]).

    A star layer has W_s = W_shared * W_own[s], element by element, and b_s = b_shared + b_own[s];
    norm_s takes the moments of the scenario's rows; e_s is the scenario's embedding.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float, at least 0: rows of weight 0 do not enter the norm's moments; None
            means all 1.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, the norm is unknown, or a scenario is out of range.

    When:
        Scenarios of unequal size over one strong shared network. Each has a copy of all layers, so
        parameters grow with their number; time hardly does.

    Source:
        Sheng et al., CIKM 2021 (arXiv 2101.11427). The last star layer has no activation, so the
        main logit takes both signs, and evaluation uses moving averages, so that a row's score does
        not depend on its batch; Scenario-Wise-Rec does otherwise in both. The auxiliary network
        sees [scenario embedding, x], x before the norm. In training the paper's batch holds one
        scenario; ours is mixed, and the norm takes the moments of each scenario's rows.

    Example:
        >>> star = STAR(in_dim=8, num_scenarios=3, dims=[4])
        >>> star(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        dims: Sequence[int] = (256, 128, 64),
        aux_dims: Sequence[int] = (64,),
        scenario_dim: int = 16,
        activation: str = "relu",
        dropout: float = 0.0,
        norm: Literal["partitioned", "none"] = "partitioned",
    ) -> None:
        super().__init__()
        check_positive(num_tasks=num_tasks, scenario_dim=scenario_dim)
        if norm not in ("partitioned", "none"):
            raise ValueError(f"STAR's norm must be 'partitioned' or 'none'; got {norm!r}.")
        self.num_scenarios = num_scenarios
        self.norm = PartitionedNorm(in_dim, num_scenarios) if norm == "partitioned" else None
        sizes = [in_dim, *dims, num_tasks]
        self.layers = nn.ModuleList(
            StarLinear(a, b, num_scenarios) for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.activation = make_activation(activation)
        self.dropout = Dropout(dropout)
        self.scenario_embedding = nn.Embedding(num_scenarios, scenario_dim)
        aux = MLP(scenario_dim + in_dim, aux_dims, activation, dropout)
        self.aux = nn.Sequential(aux, nn.Linear(aux.out_dim, num_tasks))

    def main_logit(self, x: Tensor, groups: RowGroups, weight: Tensor | None = None) -> Tensor:
        """Logits of the star layers alone; rows and weights in the order of `groups`."""
        if self.norm is not None:
            x = self.norm(x, groups, weight)
        for layer in self.layers[:-1]:
            x = self.dropout(self.activation(layer(x, groups)))
        logits: Tensor = self.layers[-1](x, groups)
        return logits

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        groups = group_rows(scenario, self.num_scenarios)
        sorted_weight = None if weight is None else groups.sort(weight)
        main = groups.unsort(self.main_logit(groups.sort(x), groups, sorted_weight))
        aux: Tensor = self.aux(torch.cat([self.scenario_embedding(scenario), x], dim=1))
        return main + aux
