"""Layers with one set of weights per scenario; each row uses those of its scenario only."""

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from msrec.model.layers.dropout import Dropout
from msrec.model.layers.group_functions import ReLUChain
from msrec.model.layers.mlp import RELU, Hidden, ReLU, can_chain, check_positive, linear_init
from msrec.model.layers.row_groups import RowGroups


def can_chain_groups(x: Tensor, groups: RowGroups, finish: nn.Sequential) -> bool:
    """Whether `chain_groups` may replace layers with `finish` between them."""
    activation, dropout = finish
    is_relu = type(activation) is ReLU and cast(Dropout, dropout).p == 0
    return is_relu and groups.tiles is None and groups.counts is not None and can_chain(x)


def chain_groups(x: Tensor, groups: RowGroups, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Returns the output of linear layers with a ReLU between them, as `ReLUChain`.

    Shape:
        x: (B, in), float32, rows in the order of `groups`.
        layers: weight (G, in, out) and bias (G, out) of each.
        returns: (B, out), same order.
    """
    parameters = [parameter for layer in layers for parameter in layer]
    return ReLUChain.apply(x, groups.counts, False, *parameters)  # type: ignore[no-any-return, no-untyped-call]


class ScenarioLinear(nn.Module):
    """Linear layer with separate weights per scenario, and per task in `by_task`.

    Shape:
        x: (B, in_dim), float, rows in the order of `groups`.
        returns: (B, out_dim), float, same order.

    Example:
        >>> from msrec.model.layers.row_groups import group_rows
        >>> groups = group_rows(torch.tensor([2, 0]), 3)
        >>> ScenarioLinear(8, 4, num_scenarios=3)(groups.sort(torch.zeros(2, 8)), groups).shape
        torch.Size([2, 4])
    """

    def __init__(self, in_dim: int, out_dim: int, num_scenarios: int) -> None:
        super().__init__()
        check_positive(out_dim=out_dim, num_scenarios=num_scenarios)
        self.weight = nn.Parameter(torch.empty(num_scenarios, in_dim, out_dim))
        self.bias = nn.Parameter(torch.empty(num_scenarios, out_dim))
        linear_init(self.weight, self.bias, in_dim)

    def forward(self, x: Tensor, groups: RowGroups) -> Tensor:
        """Multiplies sorted rows by the weights of their scenario."""
        return groups.linear(x, self.weight, self.bias)

    def by_task(
        self, x: Tensor | Sequence[Tensor], groups: RowGroups, num_tasks: int
    ) -> list[Tensor]:
        """Returns (B, out_dim / num_tasks) for each task, see `RowGroups.linear_by_task`."""
        return groups.linear_by_task(x, self.weight, self.bias, num_tasks)

    def of(self, scenario: int, x: Tensor) -> Tensor:
        """Multiplies all rows by the weights of one scenario."""
        return torch.addmm(self.bias[scenario], x, self.weight[scenario])


class StarLinear(nn.Module):
    """Linear layer of STAR: W_s = W_shared * W_own[s] (element-wise), b_s = b_shared + b_own[s].

    Own weights start at 1 and own biases at 0, so that all groups start as the shared layer.

    Shape:
        x: (B, in_dim), float, rows in the order of `groups`.
        returns: (B, out_dim), float, same order.
    """

    def __init__(self, in_dim: int, out_dim: int, num_groups: int) -> None:
        super().__init__()
        check_positive(out_dim=out_dim, num_groups=num_groups)
        self.shared_weight = nn.Parameter(torch.empty(in_dim, out_dim))
        self.shared_bias = nn.Parameter(torch.empty(out_dim))
        self.own_weight = nn.Parameter(torch.ones(num_groups, in_dim, out_dim))
        self.own_bias = nn.Parameter(torch.zeros(num_groups, out_dim))
        linear_init(self.shared_weight, self.shared_bias, in_dim)

    def forward(self, x: Tensor, groups: RowGroups) -> Tensor:
        """Multiplies sorted rows by the weights of their group."""
        return groups.linear(x, *self.of_groups())

    def by_task(
        self, x: Tensor | Sequence[Tensor], groups: RowGroups, num_tasks: int
    ) -> list[Tensor]:
        """Returns (B, out_dim / num_tasks) for each task, see `RowGroups.linear_by_task`."""
        return groups.linear_by_task(x, *self.of_groups(), num_tasks)

    def of_groups(self) -> tuple[Tensor, Tensor]:
        """Returns weights (G, in, out) and biases (G, out)."""
        return self.shared_weight * self.own_weight, self.shared_bias + self.own_bias


class Towers(nn.Module):
    """MLP per scenario and task: hidden layers of sizes `dims`, then a linear layer to the logit.

    Shape:
        x: (B, in_dim), float, the same for all tasks, or one such tensor per task; rows in the
            order of `groups`.
        returns: (B, num_tasks), float, same order.
    """

    def __init__(
        self,
        in_dim: int,
        dims: Sequence[int],
        num_scenarios: int,
        num_tasks: int = 1,
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__()
        check_positive(num_tasks=num_tasks)
        self.num_tasks = num_tasks
        self.layers = nn.ModuleList(
            ScenarioLinear(a, num_tasks * b, num_scenarios)
            for a, b in itertools.pairwise([in_dim, *dims, 1])
        )
        self.finish = hidden.module()

    def forward(self, x: Tensor | Sequence[Tensor], groups: RowGroups) -> Tensor:
        """Runs each sorted row through the towers of its scenario."""
        *hidden, last = layers = cast(list[ScenarioLinear], self.layers)
        if (
            isinstance(x, Tensor)
            and self.num_tasks == 1
            and can_chain_groups(x, groups, self.finish)
        ):
            return chain_groups(x, groups, [(layer.weight, layer.bias) for layer in layers])
        for layer in hidden:
            x = [self.finish(h) for h in layer.by_task(x, groups, self.num_tasks)]
        return torch.cat(last.by_task(x, groups, self.num_tasks), dim=1)
