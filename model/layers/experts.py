"""Experts: several MLPs over the same input, run as batched products, and their mixture."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.layers.group_functions import ExpertLinear
from msrec.model.layers.mlp import Hidden, check_positive, linear_init
from msrec.model.layers.precision import product_dtype, softmax
from msrec.model.layers.row_groups import RowGroups


def mix(gate: Tensor, outputs: Tensor) -> Tensor:
    """Returns the weighted sum of the outputs of experts.

    Shape:
        gate: (B, E), float.
        outputs: (E, B, D), float.
        returns: (B, D), float.
    """
    return (gate.T.unsqueeze(2) * outputs).sum(0)


def mix_by_task(gates: Tensor, outputs: Tensor, num_tasks: int) -> list[Tensor]:
    """Returns the sum of the same outputs for each task, weighted by the softmax of its gate.

    Shape:
        gates: (B, T * E), float, logits, those of one task after those of another.
        outputs: (E, B, D), float.
        returns: (B, D) for each task.
    """
    return [mix(softmax(gate, dim=1), outputs) for gate in gates.chunk(num_tasks, dim=1)]


class Experts(nn.Module):
    """Experts for all rows: one wide product for their first layers, then one batched product each.

    Shape:
        x: (B, in_dim), float.
        returns: (E, B, dims[-1]), float.
    """

    def __init__(self, in_dim: int, dims: Sequence[int], num_experts: int, hidden: Hidden) -> None:
        super().__init__()
        check_positive(num_experts=num_experts, number_of_expert_dims=len(dims))
        self.num_experts = num_experts
        self.first = nn.Linear(in_dim, num_experts * dims[0])
        sizes = list(itertools.pairwise(dims))
        self.weights = nn.ParameterList(torch.empty(num_experts, a, b) for a, b in sizes)
        self.biases = nn.ParameterList(torch.empty(num_experts, 1, b) for _, b in sizes)
        for (fan_in, _), weight, bias in zip(sizes, self.weights, self.biases, strict=True):
            linear_init(weight, bias, fan_in)
        self.finish = hidden.module()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs of all experts."""
        wide = self.finish(self.first(x))
        h: Tensor = torch.unflatten(wide, 1, (self.num_experts, -1)).transpose(0, 1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            if torch.compiler.is_exporting():
                h = torch.baddbmm(bias, h, weight)
            else:
                h = ExpertLinear.apply(h, weight, bias, product_dtype(h))  # type: ignore[no-untyped-call]
            h = self.finish(h)
        return h


class ScenarioExperts(nn.Module):
    """Experts per scenario; a row runs those of its own scenario, or those of all.

    Source:
        The scenario-specific experts of PLE and SAR-Net.
    """

    def __init__(
        self,
        in_dim: int,
        dims: Sequence[int],
        num_experts: int,
        num_scenarios: int,
        hidden: Hidden,
    ) -> None:
        super().__init__()
        check_positive(num_experts=num_experts, number_of_expert_dims=len(dims))
        self.num_experts = num_experts
        self.dims = list(dims)
        sizes = list(itertools.pairwise([in_dim, *dims]))
        self.weights = nn.ParameterList(
            torch.empty(num_scenarios, num_experts, a, b) for a, b in sizes
        )
        self.biases = nn.ParameterList(torch.empty(num_scenarios, num_experts, b) for b in dims)
        for (fan_in, _), weight, bias in zip(sizes, self.weights, self.biases, strict=True):
            linear_init(weight, bias, fan_in)
        self.finish = hidden.module()

    def own(self, x: Tensor, groups: RowGroups) -> Tensor:
        """Returns the outputs of the experts of each row's scenario.

        Shape:
            x: (B, in_dim), float, rows in the order of `groups`.
            returns: (E, B, dims[-1]), float, same order.
        """
        # The experts of a scenario have the same input: their first layers are one wide product.
        first = self.weights[0].transpose(1, 2).flatten(2)
        wide = self.finish(groups.linear(x, first, self.biases[0].flatten(1)))
        outputs = list(torch.chunk(wide, self.num_experts, dim=1))
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            for e, h in enumerate(outputs):
                outputs[e] = self.finish(groups.linear(h, weight[:, e], bias[:, e]))
        return torch.stack(outputs)

    def every(self, x: Tensor) -> Tensor:
        """Returns the outputs of the experts of all scenarios, for each row.

        Shape:
            x: (B, in_dim), one input for all, or (S, B, in_dim), one for each scenario; float.
            returns: (S * E, B, dims[-1]), float.
        """
        weight, bias = self.weights[0], self.biases[0]
        h: Tensor
        if x.dim() == 2:
            wide = x @ weight.permute(2, 0, 1, 3).flatten(1) + bias.flatten()
            h = torch.unflatten(wide, 1, (-1, self.dims[0])).transpose(0, 1)
        else:
            h = torch.baddbmm(bias.flatten(1).unsqueeze(1), x, weight.transpose(1, 2).flatten(2))
            h = torch.unflatten(h, 2, (self.num_experts, -1)).transpose(1, 2).flatten(0, 1)
        h = self.finish(h)
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            h = torch.baddbmm(bias.flatten(0, 1).unsqueeze(1), h, weight.flatten(0, 1))
            h = self.finish(h)
        return h
