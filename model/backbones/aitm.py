"""AITM backbone."""

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from msrec.data.loading.row_counts import RowCounts
from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import RELU, Hidden, check_positive
from msrec.model.layers.precision import widened
from msrec.model.layers.row_groups import RowGroups, group_rows
from msrec.model.layers.scenario_layers import ScenarioLinear, Towers


class AITM(Backbone):
    """Adaptive information transfer: each label attends to the result of the one before it.

    u_1 = b_1(x) and u_t = attention over [transfer_{t-1}(u_{t-1}), b_t(x)], where b_t is the bottom
    MLP of label t. The attention sums V h, weighted by the softmax of (K h) . (Q h) / sqrt(d), with
    K, Q and V shared; logit_t = tower_t(u_t). Each scenario has its own bottoms, transfers and
    towers. The chain follows the order of the labels.

    With one label the chain goes over the scenarios in the order of their ids: u_s = attention over
    [transfer_{s-1}(u_{s-1}), b_s(x)], and a row of scenario s runs the bottoms 1 to s.

    The loss has the further term `calibrator` * mean over rows of sum_t max(0, P_t - P_{t-1}), as
    a label further down the chain is never more probable. P is the probability on all rows. For a
    label with `exists_where` it is a product with the parent's and cannot be larger: a label whose
    parent is the one before it adds nothing, and without other labels there is no term.

    Raises:
        ValueError: `calibrator` is below 0.

    When:
        Labels in a meaningful order, such as click, cart, purchase; or one label and scenarios that
        are a funnel, where the cost of a row grows with the number of scenarios before its own. Set
        `calibrator` only where all labels are binary and each implies the one before it.

    Source:
        Xi et al., KDD 2021 (arXiv 2105.08489), with separate parts per scenario. The chain over
        scenarios is ours. `calibrator` is off unless set, because labels such as like and watch
        time do not imply each other; the paper, whose labels do, uses 0.6.

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
        calibrator: float = 0.0,
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        check_positive(number_of_bottom_dims=len(bottom_dims))
        if calibrator < 0:
            raise ValueError(f"calibrator must be at least 0; got {calibrator}.")
        self.calibrator, self.parents = calibrator, shape.parents or (None,) * shape.num_tasks
        count, tasks, dim = shape.num_scenarios, shape.num_tasks, bottom_dims[-1]
        self.bottoms = nn.ModuleList(
            ScenarioLinear(a, tasks * b, count)
            for a, b in itertools.pairwise([shape.in_dim, *bottom_dims])
        )
        # Transfer t leads from label t to label t + 1; with one label, from scenario to scenario.
        self.transfers = nn.ModuleList(
            ScenarioLinear(dim, dim, count) if tasks > 1 else nn.Linear(dim, dim)
            for _ in range((tasks if tasks > 1 else count) - 1)
        )
        self.value, self.key, self.query = (nn.Linear(dim, dim) for _ in range(3))
        self.finish = hidden.module()
        self.towers = Towers(dim, tower_dims, count, tasks, hidden)

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios, counts)
        x = groups.sort(x)
        if self.num_tasks > 1:
            return groups.unsort(self.towers(self._over_tasks(x, groups), groups))
        sizes = groups.counts
        u = self._pick_own(x, groups) if sizes is None else self._chain(x, sizes)
        return groups.unsort(self.towers(u, groups))

    def penalty(self, logits: Tensor, weight: Tensor) -> Tensor | None:
        """Returns the calibrator's term, or None if it is off or zero by construction."""
        parents = enumerate(self.parents)
        free = [task for task, parent in parents if task and parent != task - 1]
        if not free or not self.calibrator:
            return None
        joint: list[Tensor] = []
        for p, parent in zip(logits.sigmoid().unbind(1), self.parents, strict=True):
            joint.append(p if parent is None else joint[parent] * p)
        rise = sum(torch.relu(joint[task] - joint[task - 1]) for task in free)
        return self.calibrator * (rise * weight).sum() / len(weight)

    def _over_tasks(self, x: Tensor, groups: RowGroups) -> list[Tensor]:
        """Returns u_t of sorted rows for each label."""
        h: Tensor | list[Tensor] = x
        for layer in cast(list[ScenarioLinear], self.bottoms):
            h = [self.finish(part) for part in layer.by_task(h, groups, self.num_tasks)]
        u = [h[0]]
        for transfer, own in zip(self.transfers, h[1:], strict=True):
            u.append(self._attention(transfer(u[-1], groups), own))
        return u

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
        return self._attention(self.transfers[s - 1](previous), h)

    def _attention(self, transferred: Tensor, h: Tensor) -> Tensor:
        both = torch.stack([transferred, h], dim=1)
        products = widened(self.key(both)) * self.query(both)
        score = products.sum(2) / math.sqrt(h.shape[1])
        mixed: Tensor = (score.softmax(dim=1).unsqueeze(2) * self.value(both)).sum(1)
        return mixed
