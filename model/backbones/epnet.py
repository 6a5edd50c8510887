"""EPNet: a gate made of the scenario scales every number of the input."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.layers.gates import Gate
from msrec.model.layers.mlp import MLP, check_positive


class EmbeddingGate(nn.Module):
    """x' = gate([scenario embedding, stopgrad(x)]) * x.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64.
        returns: (B, in_dim), float.
    """

    def __init__(self, in_dim: int, num_scenarios: int, scenario_dim: int, gate_dim: int) -> None:
        super().__init__()
        check_positive(num_scenarios=num_scenarios, scenario_dim=scenario_dim)
        self.scenario_embedding = nn.Embedding(num_scenarios, scenario_dim)
        self.gate = Gate(scenario_dim + in_dim, gate_dim, in_dim)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Scale each row for its scenario."""
        prior = torch.cat([self.scenario_embedding(scenario), x.detach()], dim=1)
        gated: Tensor = self.gate(prior) * x
        return gated


class EPNet(nn.Module):
    """Embedding personalised network: logit = MLP(x * 2 sigmoid(gate([e_s, stopgrad(x)]))).

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1.

    When:
        Many scenarios at little cost: one head, and a gate on the input that knows the scenario.

    Source:
        Chang et al., KDD 2023 (PEPNet, arXiv 2302.01115). One head for all scenarios, as the gate
        is all that EPNet adds; no batch norm, which Scenario-Wise-Rec has in its head.

    Example:
        >>> model = EPNet(in_dim=8, num_scenarios=3, dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        dims: Sequence[int] = (128, 64),
        scenario_dim: int = 16,
        gate_dim: int = 64,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(num_tasks=num_tasks)
        self.gate = EmbeddingGate(in_dim, num_scenarios, scenario_dim, gate_dim)
        self.mlp = MLP(in_dim, dims, activation, dropout)
        self.head = nn.Linear(self.mlp.out_dim, num_tasks)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        logits: Tensor = self.head(self.mlp(self.gate(x, scenario)))
        return logits
