"""Multi-scenario models in plain PyTorch, as an engineer writes them by hand.

Reference of the benches: the layers and widths of msrec's defaults, and none of its code.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

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
        logits[rows] = function(s, rows).squeeze(1)
    return logits


class PlainMLP(nn.Module):
    """MLP without scenarios."""

    def __init__(self, in_dim: int, num_scenarios: int, dims: Sequence[int] = (256, 128)) -> None:
        super().__init__()
        self.layers = tower(in_dim, *dims)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.layers(x).squeeze(1)
        return logits


class SharedBottom(nn.Module):
    """MLP for all rows, and a tower per scenario."""

    def __init__(self, in_dim: int, num_scenarios: int) -> None:
        super().__init__()
        self.bottom = mlp(in_dim, 256, 128)
        self.towers = nn.ModuleList(tower(128, 64) for _ in range(num_scenarios))

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""
        h = self.bottom(x)
        return by_scenario(lambda s, rows: self.towers[s](h[rows]), scenario, len(self.towers))


class MMoE(nn.Module):
    """Four experts for all rows; a gate and a tower per scenario."""

    def __init__(self, in_dim: int, num_scenarios: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp(in_dim, 128, 64) for _ in range(4))
        self.gates = nn.ModuleList(nn.Linear(in_dim, 4) for _ in range(num_scenarios))
        self.towers = nn.ModuleList(tower(64, 64) for _ in range(num_scenarios))

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)

        def of_scenario(s: int, rows: Tensor) -> Tensor:
            gate = self.gates[s](x[rows]).softmax(dim=1)
            logits: Tensor = self.towers[s]((gate.unsqueeze(2) * experts[rows]).sum(1))
            return logits

        return by_scenario(of_scenario, scenario, len(self.towers))


class STAR(nn.Module):
    """Batch norm and star layers per scenario, and an auxiliary network over the scenario."""

    def __init__(
        self, in_dim: int, num_scenarios: int, dims: Sequence[int] = (256, 128, 64)
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(in_dim) for _ in range(num_scenarios))
        self.scale, self.shift = nn.Parameter(torch.ones(in_dim)), nn.Parameter(torch.zeros(in_dim))
        sizes = list(itertools.pairwise([in_dim, *dims, 1]))
        self.shared = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)
        # One parameter for each scenario, since the gradient of a slice would be as large as all.
        of_each = [size for size in sizes for _ in range(num_scenarios)]
        self.own_weights = nn.ParameterList(torch.ones(b, a) for a, b in of_each)
        self.own_biases = nn.ParameterList(torch.zeros(b) for _, b in of_each)
        self.embedding = nn.Embedding(num_scenarios, 16)
        self.aux = tower(in_dim + 16, 64)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""

        def of_scenario(s: int, rows: Tensor) -> Tensor:
            norm = cast(nn.BatchNorm1d, self.norms[s])
            scale, shift = self.scale * norm.weight, self.shift + norm.bias
            moments = (norm.running_mean, norm.running_var)
            h = functional.batch_norm(x[rows], *moments, scale, shift, self.training)
            for i, layer in enumerate(cast(list[nn.Linear], self.shared)):
                own = i * len(self.norms) + s
                weight, bias = layer.weight * self.own_weights[own], self.own_biases[own]
                h = functional.linear(h, weight, layer.bias + bias)
                h = h.relu() if i < len(self.shared) - 1 else h
            return h

        main = by_scenario(of_scenario, scenario, len(self.norms))
        aux: Tensor = self.aux(torch.cat([self.embedding(scenario), x], dim=1)).squeeze(1)
        return main + aux


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": PlainMLP,
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "star": STAR,
}


class Net(nn.Module):
    """Tables and an MLP over the dense features, and a model over both.

    Shape:
        ids: input of `tables`, which returns (B, F * dim).
        dense: (B, num_dense), float.
        scenario: (B,), int64.
        returns: (B,), logits.
    """

    def __init__(
        self,
        tables: nn.Module,
        sparse_dim: int,
        num_dense: int,
        num_scenarios: int,
        model: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.tables = tables
        self.bottom = mlp(num_dense, 64) if num_dense else None
        in_dim = sparse_dim + (64 if num_dense else 0)
        self.model = model(in_dim, num_scenarios)

    def forward(self, ids: object, dense: Tensor, scenario: Tensor) -> Tensor:
        """Looks up, concatenates and scores."""
        x = self.tables(ids)
        if self.bottom is not None:
            x = torch.cat([self.bottom(dense), x], dim=1)
        logits: Tensor = self.model(x, scenario)
        return logits
