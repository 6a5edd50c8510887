"""EPNet backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import MLP, RELU, Hidden, check_positive


class Gate(nn.Module):
    """2 sigmoid(V relu(U prior + u) + v): factors in (0, 2), 1 where the gate knows nothing.

    Shape:
        prior: (B, in_dim), float.
        returns: (B, out_dim), float, in (0, 2).

    Source:
        Chang et al., KDD 2023 (PEPNet, arXiv 2302.01115), its Gate NU with gamma = 2.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        check_positive(gate_dim=hidden_dim)
        self.hidden = nn.Linear(in_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, out_dim)

    def forward(self, prior: Tensor) -> Tensor:
        """Returns the factors of each row."""
        return 2 * torch.sigmoid(self.out(torch.relu(self.hidden(prior))))


class EmbeddingGate(nn.Module):
    """x' = gate([scenario embedding, stopgrad(x)]) * x.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64.
        returns: (B, in_dim), float.
    """

    def __init__(self, in_dim: int, num_scenarios: int, scenario_dim: int, gate_dim: int) -> None:
        super().__init__()
        check_positive(scenario_dim=scenario_dim)
        self.scenario_embedding = nn.Embedding(num_scenarios, scenario_dim)
        self.gate = Gate(scenario_dim + in_dim, gate_dim, in_dim)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Scales each row for its scenario."""
        prior = torch.cat([self.scenario_embedding(scenario), x.detach()], dim=1)
        gated: Tensor = self.gate(prior) * x
        return gated


class EPNet(Backbone):
    """Embedding personalised network: a gate made from the scenario scales every column of x.

    logit = MLP(x * 2 sigmoid(gate([e_s, stopgrad(x)]))).

    When:
        Many scenarios at little cost: one head, and a gate on the input that knows the scenario.

    Source:
        Chang et al., KDD 2023 (PEPNet, arXiv 2302.01115). One head for all scenarios, as the gate
        is all that EPNet adds; no batch norm, which Scenario-Wise-Rec has in its head.

    Example:
        >>> model = EPNet(BackboneShape(in_dim=8, num_scenarios=3), dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        dims: Sequence[int] = (128, 64),
        scenario_dim: int = 16,
        gate_dim: int = 64,
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        self.gate = EmbeddingGate(shape.in_dim, shape.num_scenarios, scenario_dim, gate_dim)
        self.mlp = MLP(shape.in_dim, dims, hidden)
        self.head = nn.Linear(self.mlp.out_dim, shape.num_tasks)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        logits: Tensor = self.head(self.mlp(self.gate(x, scenario)))
        return logits
