"""HAMUR: adapters whose weights a shared network makes from each row."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from msrec.model.layers.dropout import Dropout
from msrec.model.layers.mlp import MLP, ScenarioLinear, check_positive, linear_init, make_activation
from msrec.model.layers.partitioned_norm import PartitionedNorm
from msrec.model.layers.row_groups import RowGroups, group_rows


class Adapter(nn.Module):
    """h + norm(sigmoid(h U1 I V1 + c1) U2 I V2 + c2), I being the row's own k x k matrix.

    The products are taken from the left, so no (dim x adapter_dim) matrix of a row is ever made.

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
        for part in (self.down_left, self.down_right, self.up_left, self.up_right):
            linear_init(part, None, part.shape[0])
        partitioned = norm == "partitioned"
        self.norm = PartitionedNorm(dim, num_scenarios) if partitioned else nn.LayerNorm(dim)

    def forward(
        self, h: Tensor, instance: Tensor, groups: RowGroups, weight: Tensor | None
    ) -> Tensor:
        """Add the adapter's change."""
        z = torch.sigmoid(_times(h @ self.down_left, instance) @ self.down_right + self.down_bias)
        change = _times(z @ self.up_left, instance) @ self.up_right + self.up_bias
        rest = (groups, weight) if isinstance(self.norm, PartitionedNorm) else ()
        changed: Tensor = h + self.norm(change, *rest)
        return changed


def _times(rows: Tensor, instance: Tensor) -> Tensor:
    return torch.bmm(rows.unsqueeze(1), instance).squeeze(1)


class HAMUR(nn.Module):
    """Hyper adapter for multi-scenario: an MLP per scenario, adapters after its last layers.

    A shared network makes a k x k matrix I of each row's x; every adapter multiplies by U I V, low
    rank and the row's own, and its output is normalised with its scenario's moments.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float, at least 0: rows of weight 0 do not enter the norm's moments; None
            means all 1.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, there are more adapters than layers, the norm is unknown, or
            a scenario is out of range.

    When:
        Scenarios that have their MLPs already and want rows to be told apart too. The dearest per
        row: its k x k matrix.

    Source:
        Li et al., CIKM 2023 (arXiv 2309.06217). The norm is PartitionedNorm, with moving averages
        in evaluation, where the public code uses the moments of the batch there too; `norm: layer`
        makes rows independent in training as well. U and V start as nn.Linear, not as ones, which
        would make all k directions alike.

    Example:
        >>> model = HAMUR(in_dim=8, num_scenarios=3, dims=[4], num_adapters=1, k=2)
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        dims: Sequence[int] = (256, 128),
        num_adapters: int = 1,
        adapter_dim: int = 32,
        k: int = 35,
        hyper_dims: Sequence[int] = (64,),
        norm: Literal["partitioned", "layer"] = "partitioned",
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(num_tasks=num_tasks, adapter_dim=adapter_dim, k=k, num_adapters=num_adapters)
        if num_adapters > len(dims):
            raise ValueError(
                f"num_adapters must be at most the number of dims, {len(dims)}; got {num_adapters}."
            )
        if norm not in ("partitioned", "layer"):
            raise ValueError(f"HAMUR's norm must be 'partitioned' or 'layer'; got {norm!r}.")
        self.num_scenarios, self.k = num_scenarios, k
        sizes = [in_dim, *dims, num_tasks]
        self.layers = nn.ModuleList(
            ScenarioLinear(a, b, num_scenarios) for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.first_adapter = len(dims) - num_adapters
        self.adapters = nn.ModuleList(
            Adapter(dim, adapter_dim, k, num_scenarios, norm) for dim in dims[self.first_adapter :]
        )
        hyper = MLP(in_dim, hyper_dims, activation)
        self.hyper = nn.Sequential(hyper, nn.Linear(hyper.out_dim, k * k))
        self.activation = make_activation(activation)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        groups = group_rows(scenario, self.num_scenarios)
        x = groups.sort(x)
        weight = None if weight is None else groups.sort(weight)
        instance = torch.unflatten(self.hyper(x), 1, (self.k, self.k))
        for i, layer in enumerate(self.layers[:-1]):
            x = self.dropout(self.activation(layer(x, groups)))
            if i >= self.first_adapter:
                x = self.adapters[i - self.first_adapter](x, instance, groups, weight)
        return groups.unsort(self.layers[-1](x, groups))
