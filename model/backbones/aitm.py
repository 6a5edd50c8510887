"""AITM: what a scenario learned is handed on to the next one by attention."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from msrec.model.layers.dropout import Dropout
from msrec.model.layers.mlp import ScenarioLinear, Towers, check_positive, make_activation
from msrec.model.layers.row_groups import RowGroups, group_rows


class AITM(nn.Module):
    """Adaptive information transfer: u_s = attention over [transfer(u_{s-1}), b_s(x)].

    u_1 = b_1(x); b_s is the scenario's bottom MLP. Attention weighs the two by softmax of
    <K h, Q h> / sqrt(d) and sums V h, with K, Q and V shared; logit_s = tower_s(u_s). The scenarios
    are a chain in the order of their ids: a row of scenario s runs the bottoms 1 to s.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, or a scenario is out of range.

    When:
        Scenarios whose order means something, such as a funnel. The cost of a row grows with the
        scenarios before its own.

    Source:
        Xi et al., KDD 2021 (arXiv 2105.08489). The chain goes over scenarios, where the paper's
        goes over conversion steps; so its calibrator loss, which orders the probabilities of steps,
        is left out, as in MTReclib.

    Example:
        >>> aitm = AITM(in_dim=8, num_scenarios=3, bottom_dims=[4])
        >>> aitm(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        bottom_dims: Sequence[int] = (128, 64),
        tower_dims: Sequence[int] = (64,),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(number_of_bottom_dims=len(bottom_dims))
        self.num_scenarios = num_scenarios
        sizes, dim = [in_dim, *bottom_dims], bottom_dims[-1]
        self.bottoms = nn.ModuleList(
            ScenarioLinear(a, b, num_scenarios) for a, b in zip(sizes, sizes[1:], strict=False)
        )
        # Transfer s leads from scenario s to scenario s + 1.
        self.transfers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_scenarios - 1))
        self.value, self.key, self.query = (nn.Linear(dim, dim) for _ in range(3))
        self.activation = make_activation(activation)
        self.dropout = Dropout(dropout)
        self.towers = Towers(dim, tower_dims, num_scenarios, num_tasks, activation, dropout)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        groups = group_rows(scenario, self.num_scenarios)
        x = groups.sort(x)
        own = self._every(x, groups) if groups.order is None else self._chain(x, groups.counts)
        return groups.unsort(self.towers(own, groups))

    def _chain(self, x: Tensor, counts: list[int]) -> Tensor:
        """u_s of sorted rows: scenario s needs the rows of s and of all later scenarios."""
        finished, u = [], x
        for s, count in enumerate(counts):
            u = self._step(s, x, u)
            finished.append(u[:count])
            x, u = x[count:], u[count:]
        return torch.cat(finished)

    def _every(self, x: Tensor, groups: RowGroups) -> Tensor:
        """The same where counts are not known: every u_s for every row, then the row's own."""
        every = [x]
        for s in range(self.num_scenarios):
            every.append(self._step(s, x, every[-1]))
        return groups.pick(torch.stack(every[1:]))

    def _step(self, s: int, x: Tensor, before: Tensor) -> Tensor:
        h = x
        for layer in cast(list[ScenarioLinear], self.bottoms):
            h = self.dropout(self.activation(layer.of(s, h)))
        if s == 0:
            return h
        both = torch.stack([self.transfers[s - 1](before), h], dim=1)
        score = (self.key(both) * self.query(both)).sum(2) / math.sqrt(h.shape[1])
        mixed: Tensor = (score.softmax(dim=1).unsqueeze(2) * self.value(both)).sum(1)
        return mixed
