"""Parts of the reference models of the benches: plain PyTorch, and none of msrec's code."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Bag = tuple[Tensor, Tensor]
"""Values (n,) and offsets (B,) of a multi-valued feature, int64."""


class Tables(nn.ModuleList):
    """Embedding tables, one per feature; a multi-valued feature is the mean of its vectors.

    Args:
        sizes: number of rows of each table.
        multi: whether each feature has several values.
        dim: size of the vectors.
        sparse: whether gradients are sparse, as large tables need it.
    """

    def __init__(
        self, sizes: Sequence[int], multi: Sequence[bool], dim: int, sparse: bool = False
    ) -> None:
        super().__init__(
            nn.EmbeddingBag(size, dim, mode="mean", sparse=sparse)
            if is_multi
            else nn.Embedding(size, dim, sparse=sparse)
            for size, is_multi in zip(sizes, multi, strict=True)
        )

    def forward(self, ids: Sequence[Tensor | Bag]) -> Tensor:
        """Returns the vectors of all features, (B, F * dim)."""
        pairs = zip(self, ids, strict=True)
        vectors = [table(x) if isinstance(x, Tensor) else table(*x) for table, x in pairs]
        return torch.cat(vectors, dim=1)


def mlp(*sizes: int) -> nn.Sequential:
    """Returns linear layers with a ReLU after each."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers)


def tower(*sizes: int) -> nn.Sequential:
    """Returns an MLP with a linear layer to one logit."""
    return nn.Sequential(*mlp(*sizes), nn.Linear(sizes[-1], 1))


def by_scenario(function: Callable[[int, Tensor], Tensor], scenario: Tensor, n: int) -> Tensor:
    """Returns a logit per row: `function(s, rows)` of the rows (indices) of each scenario."""
    logits = torch.empty(len(scenario))
    for s in range(n):
        rows = (scenario == s).nonzero().squeeze(1)
        logits[rows] = function(s, rows).squeeze(1).float()
    return logits


class Net(nn.Module):
    """Tables and an MLP over the dense features, and a model over both.

    Args:
        tables: returns the vectors of all features, `num_features` of `dim` numbers.
        num_dense: number of dense features.
        num_scenarios: number of scenarios.
        model: called with the width of its input, the number of scenarios and `dim`.

    Shape:
        ids: input of `tables`, which returns (B, F * dim).
        dense: (B, num_dense), float.
        scenario: (B,), int64.
        returns: (B,), logits.
    """

    def __init__(
        self,
        tables: nn.Module,
        num_features: int,
        dim: int,
        num_dense: int,
        num_scenarios: int,
        model: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.tables = tables
        self.bottom = mlp(num_dense, 64) if num_dense else None
        in_dim = num_features * dim + (64 if num_dense else 0)
        self.model = model(in_dim, num_scenarios, dim)

    def forward(self, ids: object, dense: Tensor, scenario: Tensor) -> Tensor:
        """Looks up, concatenates and scores."""
        x = self.tables(ids)
        if self.bottom is not None:
            x = torch.cat([self.bottom(dense), x], dim=1)
        logits: Tensor = self.model(x, scenario)
        return logits
