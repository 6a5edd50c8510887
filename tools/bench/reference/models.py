"""Multi-scenario models in plain PyTorch, as an engineer writes them by hand.

Reference of the benches: the layers and widths of msrec's defaults, and none of its code.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from msrec.tools.bench.reference.layers import by_scenario, mlp, tower


class PlainMLP(nn.Module):
    """MLP without scenarios."""

    def __init__(
        self, in_dim: int, num_scenarios: int, dim: int, dims: Sequence[int] = (256, 128)
    ) -> None:
        super().__init__()
        self.layers = tower(in_dim, *dims)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.layers(x).squeeze(1)
        return logits


class SharedBottom(nn.Module):
    """MLP for all rows, and a tower per scenario."""

    def __init__(self, in_dim: int, num_scenarios: int, dim: int) -> None:
        super().__init__()
        self.bottom = mlp(in_dim, 256, 128)
        self.towers = nn.ModuleList(tower(128, 64) for _ in range(num_scenarios))

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""
        h = self.bottom(x)
        return by_scenario(lambda s, rows: self.towers[s](h[rows]), scenario, len(self.towers))


class MMoE(nn.Module):
    """Four experts for all rows; a gate and a tower per scenario."""

    def __init__(self, in_dim: int, num_scenarios: int, dim: int) -> None:
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
        self, in_dim: int, num_scenarios: int, dim: int, dims: Sequence[int] = (256, 128, 64)
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


class Separate(nn.Module):
    """MLP per scenario."""

    def __init__(self, in_dim: int, num_scenarios: int, dim: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(tower(in_dim, 256, 128) for _ in range(num_scenarios))

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""
        return by_scenario(lambda s, rows: self.towers[s](x[rows]), scenario, len(self.towers))


class OMoE(nn.Module):
    """Four experts and one gate for all rows; a tower per scenario."""

    def __init__(self, in_dim: int, num_scenarios: int, dim: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp(in_dim, 128, 64) for _ in range(4))
        self.gate = nn.Linear(in_dim, 4)
        self.towers = nn.ModuleList(tower(64, 64) for _ in range(num_scenarios))

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        h = (self.gate(x).softmax(dim=1).unsqueeze(2) * experts).sum(1)
        return by_scenario(lambda s, rows: self.towers[s](h[rows]), scenario, len(self.towers))


class PLE(nn.Module):
    """Two experts per scenario and two for all rows, in one level; gate and tower per scenario."""

    def __init__(self, in_dim: int, num_scenarios: int, dim: int) -> None:
        super().__init__()
        self.shared = nn.ModuleList(mlp(in_dim, 128, 64) for _ in range(2))
        self.own = nn.ModuleList(mlp(in_dim, 128, 64) for _ in range(2 * num_scenarios))
        self.gates = nn.ModuleList(nn.Linear(in_dim, 4) for _ in range(num_scenarios))
        self.towers = nn.ModuleList(tower(64, 64) for _ in range(num_scenarios))

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""
        shared = [expert(x) for expert in self.shared]

        def of_scenario(s: int, rows: Tensor) -> Tensor:
            h = x[rows]
            own = [self.own[2 * s](h), self.own[2 * s + 1](h)]
            experts = torch.stack([*own, *(expert[rows] for expert in shared)], dim=1)
            gate = self.gates[s](h).softmax(dim=1)
            logits: Tensor = self.towers[s]((gate.unsqueeze(2) * experts).sum(1))
            return logits

        return by_scenario(of_scenario, scenario, len(self.towers))


class InputGate(nn.Module):
    """Scales the input by a gate made from the scenario and the input."""

    def __init__(self, in_dim: int, num_scenarios: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_scenarios, 16)
        self.gate = nn.Sequential(mlp(16 + in_dim, 64), nn.Linear(64, in_dim), nn.Sigmoid())

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the scaled input, (B, in_dim)."""
        gate: Tensor = self.gate(torch.cat([self.embedding(scenario), x.detach()], dim=1))
        return 2 * gate * x


class EPNet(nn.Module):
    """Gate on the input of an MLP."""

    def __init__(self, in_dim: int, num_scenarios: int, dim: int) -> None:
        super().__init__()
        self.gate = InputGate(in_dim, num_scenarios)
        self.layers = tower(in_dim, 128, 64)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.layers(self.gate(x, scenario)).squeeze(1)
        return logits


class PPNet(nn.Module):
    """MLP per scenario; gates made from two ids and the input scale the input of each layer."""

    def __init__(self, in_dim: int, num_scenarios: int, dim: int) -> None:
        super().__init__()
        self.id_dim, self.num_scenarios, sizes = 2 * dim, num_scenarios, [in_dim, 128, 64]
        self.hidden = nn.ModuleList(mlp(self.id_dim + in_dim, 64) for _ in sizes)
        pairs = list(itertools.pairwise([*sizes, 1]))
        each = range(num_scenarios)
        self.gates = nn.ModuleList(
            nn.ModuleList(nn.Linear(64, size) for size in sizes) for _ in each
        )
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(*pair) for pair in pairs) for _ in each)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""
        prior = torch.cat([x[:, : self.id_dim], x.detach()], dim=1)
        hidden = [layer(prior) for layer in self.hidden]

        def of_scenario(s: int, rows: Tensor) -> Tensor:
            h = x[rows]
            gates = cast(nn.ModuleList, self.gates[s])
            layers = cast(nn.ModuleList, self.layers[s])
            for i, (gate, layer) in enumerate(zip(gates, layers, strict=True)):
                h = layer(h * 2 * torch.sigmoid(gate(hidden[i][rows])))
                h = h.relu() if i < len(layers) - 1 else h
            return h

        return by_scenario(of_scenario, scenario, self.num_scenarios)


class PEPNet(nn.Module):
    """Gate on the input of PPNet."""

    def __init__(self, in_dim: int, num_scenarios: int, dim: int) -> None:
        super().__init__()
        self.gate = InputGate(in_dim, num_scenarios)
        self.ppnet = PPNet(in_dim, num_scenarios, dim)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.ppnet(self.gate(x, scenario), scenario)
        return logits


class DLRM(nn.Module):
    """Dot products of all pairs of vectors, and an MLP over them; without dense features."""

    def __init__(self, in_dim: int, num_scenarios: int, dim: int) -> None:
        super().__init__()
        count = in_dim // dim
        self.dim, self.pairs = dim, torch.tril_indices(count, count, -1)
        self.layers = tower(count * (count - 1) // 2, 256, 128)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""
        vectors = x.view(len(x), -1, self.dim)
        dots = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        logits: Tensor = self.layers(dots).squeeze(1)
        return logits


class DCNv2(nn.Module):
    """Two cross layers beside an MLP."""

    def __init__(self, in_dim: int, num_scenarios: int, dim: int) -> None:
        super().__init__()
        self.cross = nn.ModuleList(nn.Linear(in_dim, in_dim) for _ in range(2))
        self.layers = mlp(in_dim, 256, 128)
        self.head = nn.Linear(in_dim + 128, 1)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""
        crossed = x
        for layer in self.cross:
            crossed = x * layer(crossed) + crossed
        logits: Tensor = self.head(torch.cat([crossed, self.layers(x)], dim=1)).squeeze(1)
        return logits


class DeepFM(nn.Module):
    """Dot products of all pairs of vectors, a linear layer and an MLP; without dense features."""

    def __init__(self, in_dim: int, num_scenarios: int, dim: int) -> None:
        super().__init__()
        self.dim, self.linear, self.layers = dim, nn.Linear(in_dim, 1), tower(in_dim, 256, 128)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the logits."""
        vectors = x.view(len(x), -1, self.dim)
        pairs = vectors.sum(1).square() - vectors.square().sum(1)
        logits: Tensor = self.linear(x).squeeze(1) + self.layers(x).squeeze(1) + pairs.sum(1) / 2
        return logits


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": PlainMLP,
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "star": STAR,
    "separate": Separate,
    "omoe": OMoE,
    "ple": PLE,
    "epnet": EPNet,
    "ppnet": PPNet,
    "pepnet": PEPNet,
    "dlrm": DLRM,
    "dcnv2": DCNv2,
    "deepfm": DeepFM,
}
