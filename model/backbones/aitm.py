"""AITM backbone."""

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import RELU, Hidden, check_positive
from msrec.model.layers.row_groups import RowGroups, group_rows
from msrec.model.layers.scenario_layers import ScenarioLinear, Towers


class AITM(Backbone):
    """Adaptive information transfer: each scenario attends to the result of the one before it.

    u_1 = b_1(x) and u_s = attention over [transfer_{s-1}(u_{s-1}), b_s(x)], where b_s is the bottom
    MLP of scenario s. The attention sums V h, weighted by the softmax of (K h) . (Q h) / sqrt(d),
    with K, Q and V shared; logit_s = tower_s(u_s). The chain follows the scenario ids: a row of
    scenario s runs the bottoms 1 to s.

    When:
        Scenarios with a meaningful order, such as a funnel. The cost of a row grows with the number
        of scenarios before its own.

    Source:
        Xi et al., KDD 2021 (arXiv 2105.08489). The chain goes over scenarios, where the paper's
        goes over conversion steps; so its calibrator loss, which orders the probabilities of steps,
        is left out, as in MTReclib.

    Example:
        >>> model = AITM(BackboneShape(in_dim=8, num_scenarios=3), bottom_dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        bottom_dims: Sequence[int] = (128, 64),
        tower_dims: Sequence[int] = (64,),
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        check_positive(number_of_bottom_dims=len(bottom_dims))
        count, dim = shape.num_scenarios, bottom_dims[-1]
        self.bottoms = nn.ModuleList(
            ScenarioLinear(a, b, count) for a, b in itertools.pairwise([shape.in_dim, *bottom_dims])
        )
        # Transfer s leads from scenario s to scenario s + 1.
        self.transfers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(count - 1))
        self.value, self.key, self.query = (nn.Linear(dim, dim) for _ in range(3))
        self.finish = hidden.module()
        self.towers = Towers(dim, tower_dims, count, shape.num_tasks, hidden)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios)
        x = groups.sort(x)
        u = self._pick_own(x, groups) if groups.order is None else self._chain(x, groups.counts)
        return groups.unsort(self.towers(u, groups))

    def _chain(self, x: Tensor, counts: list[int]) -> Tensor:
        """Returns u_s of sorted rows; step s runs for the rows of s and of all later scenarios."""
        finished, u = [], x
        for s, count in enumerate(counts):
            u = self._step(s, x, u)
            finished.append(u[:count])
            x, u = x[count:], u[count:]
        return torch.cat(finished)

    def _pick_own(self, x: Tensor, groups: RowGroups) -> Tensor:
        """Returns the same where counts are unknown: all u_s for every row, then the row's own."""
        steps = [x]
        for s in range(self.num_scenarios):
            steps.append(self._step(s, x, steps[-1]))
        return groups.pick(torch.stack(steps[1:]))

    def _step(self, s: int, x: Tensor, previous: Tensor) -> Tensor:
        h = x
        for layer in cast(list[ScenarioLinear], self.bottoms):
            h = self.finish(layer.of(s, h))
        if s == 0:
            return h
        both = torch.stack([self.transfers[s - 1](previous), h], dim=1)
        score = (self.key(both) * self.query(both)).sum(2) / math.sqrt(h.shape[1])
        mixed: Tensor = (score.softmax(dim=1).unsqueeze(2) * self.value(both)).sum(1)
        return mixed
