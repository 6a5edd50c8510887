"""HAMUR backbone."""

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from msrec.data.loading.row_counts import RowCounts
from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import MLP, RELU, Hidden, check_positive, linear_init
from msrec.model.layers.partitioned_norm import PartitionedNorm
from msrec.model.layers.precision import LayerNorm, float32_products, widened
from msrec.model.layers.row_groups import RowGroups, group_rows
from msrec.model.layers.scenario_layers import ScenarioLinear


class Adapter(nn.Module):
    """h + norm(sigmoid(h U1 I V1 + c1) U2 I V2 + c2), where I is a k x k matrix of the row.

    Products are taken from the left, so that no (dim x adapter_dim) matrix per row is built.

    Shape:
        h: (B, dim), float, rows in the order of `groups`.
        instance: (B, k, k), float.
        returns: (B, dim), float.
    """

    def __init__(self, dim: int, adapter_dim: int, k: int, num_scenarios: int, norm: str) -> None:
        super().__init__()
        self.down_left = nn.Parameter(torch.empty(dim, k))
        self.down_right = nn.Parameter(torch.empty(k, adapter_dim))
        self.down_bias = nn.Parameter(torch.zeros(adapter_dim))
        self.up_left = nn.Parameter(torch.empty(adapter_dim, k))
        self.up_right = nn.Parameter(torch.empty(k, dim))
        self.up_bias = nn.Parameter(torch.zeros(dim))
        for matrix in (self.down_left, self.down_right, self.up_left, self.up_right):
            linear_init(matrix, None, matrix.shape[0])
        partitioned = norm == "partitioned"
        self.norm = PartitionedNorm(dim, num_scenarios) if partitioned else LayerNorm(dim)

    def forward(
        self, h: Tensor, instance: Tensor, groups: RowGroups, weight: Tensor | None
    ) -> Tensor:
        """Adds the change by the adapter."""
        z = _times(h @ self.down_left, instance) @ self.down_right + self.down_bias
        z, instance = torch.sigmoid(widened(z)), widened(instance)
        # z is near 1/2 at first. The norm subtracts the mean and would leave the rounding.
        with float32_products(z):
            change: Tensor = _times(z @ self.up_left, instance) @ self.up_right + self.up_bias
        if isinstance(self.norm, PartitionedNorm):
            change = self.norm(change, groups, weight)
        else:
            change = self.norm(change)
        return h + change


def _times(rows: Tensor, instance: Tensor) -> Tensor:
    return torch.bmm(rows.unsqueeze(1), instance).squeeze(1)


class HAMUR(Backbone):
    """MLP per scenario, with adapters that a shared network generates for each row.

    The shared network maps x to a k x k matrix I. The adapters follow the last `num_adapters`
    hidden layers; each multiplies by low-rank matrices U I V and normalises its output with the
    moments of the scenario. Rows of weight 0 do not count in the moments.

    Raises:
        ValueError: there are more adapters than layers, or the norm is unknown.

    When:
        Scenarios with their own MLPs, where rows of one scenario differ too. The most expensive
        per row, for the k x k matrix.

    Source:
        Li et al., CIKM 2023 (arXiv 2309.06217). The norm is PartitionedNorm, with moving averages
        in evaluation, where the public code uses the moments of the batch there too; `norm: layer`
        makes rows independent in training as well. U and V start as nn.Linear, not as ones, which
        would make all k directions alike.

    Example:
        >>> model = HAMUR(BackboneShape(in_dim=8, num_scenarios=3), dims=[4], k=2)
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        dims: Sequence[int] = (256, 128),
        num_adapters: int = 1,
        adapter_dim: int = 32,
        k: int = 35,
        hyper_dims: Sequence[int] = (64,),
        norm: Literal["partitioned", "layer"] = "partitioned",
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        check_positive(adapter_dim=adapter_dim, k=k, num_adapters=num_adapters)
        if num_adapters > len(dims):
            raise ValueError(
                f"num_adapters must be at most the number of dims, {len(dims)}; got {num_adapters}."
            )
        if norm not in ("partitioned", "layer"):
            raise ValueError(f"HAMUR's norm must be 'partitioned' or 'layer'; got {norm!r}.")
        self.k = k
        in_dim, count = shape.in_dim, shape.num_scenarios
        sizes = [in_dim, *dims, shape.num_tasks]
        self.layers = nn.ModuleList(
            ScenarioLinear(a, b, count) for a, b in itertools.pairwise(sizes)
        )
        self.first_adapter = len(dims) - num_adapters
        self.adapters = nn.ModuleList(
            Adapter(dim, adapter_dim, k, count, norm) for dim in dims[self.first_adapter :]
        )
        hyper = MLP(in_dim, hyper_dims, Hidden(hidden.activation))
        self.hyper = nn.Sequential(hyper, nn.Linear(hyper.out_dim, k * k))
        self.finish = hidden.module()

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
        weight = None if weight is None else groups.sort(weight)
        instance = torch.unflatten(self.hyper(x), 1, (self.k, self.k))
        *hidden, last = self.layers
        for i, layer in enumerate(hidden):
            x = self.finish(layer(x, groups))
            if i >= self.first_adapter:
                x = self.adapters[i - self.first_adapter](x, instance, groups, weight)
        return groups.unsort(last(x, groups))
