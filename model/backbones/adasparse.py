"""AdaSparse: the scenario prunes the neurons of every layer."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from msrec.model.layers.dropout import Dropout
from msrec.model.layers.mlp import check_positive, make_activation


class AdaSparse(nn.Module):
    """Adaptively sparse MLP: h_{l+1} = act(W_l (h_l * pi_l) + b_l), pi_l = prune(V_l [e_s, h_l]).

    With p = sigmoid(alpha v): `binary` pi = [p > eps]; `scaling` pi = beta sigmoid(v);
    `fusion` pi = beta p [p > eps]. alpha starts at `alpha` and grows by `alpha_step` at every
    training step, so that p comes near to 0 or 1. h_0 is x, and the last layer gives the logits.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, or eps is not in [0, 1).

    When:
        Very many scenarios and little memory: one network, of which each scenario switches neurons
        on and off.

    Source:
        Yang et al., CIKM 2022 (arXiv 2206.13108), without its loss that steers the share of pruned
        neurons, as in Scenario-Wise-Rec, whose sign() however gives -v where the paper prunes. The
        gradient of `binary` is that of p (straight through), which the paper leaves open.

    Example:
        >>> model = AdaSparse(in_dim=8, num_scenarios=3, dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        dims: Sequence[int] = (256, 128),
        form: Literal["binary", "scaling", "fusion"] = "fusion",
        eps: float = 1e-2,
        beta: float = 2.0,
        alpha: float = 1.0,
        alpha_step: float = 1e-4,
        scenario_dim: int = 16,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(num_tasks=num_tasks, num_scenarios=num_scenarios, scenario_dim=scenario_dim)
        if form not in ("binary", "scaling", "fusion"):
            raise ValueError(f"form must be one of binary, scaling, fusion; got {form!r}.")
        if not 0 <= eps < 1:
            raise ValueError(f"eps must be in [0, 1); got {eps}.")
        self.form, self.eps, self.beta, self.alpha_step = form, eps, beta, alpha_step
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.scenario_embedding = nn.Embedding(num_scenarios, scenario_dim)
        sizes = [in_dim, *dims, num_tasks]
        self.pruners = nn.ModuleList(
            nn.Linear(scenario_dim + size, size, bias=False) for size in sizes[:-1]
        )
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.activation = make_activation(activation)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        if self.training:
            self.get_buffer("alpha").add_(self.alpha_step)
        embedded, last = self.scenario_embedding(scenario), len(self.layers) - 1
        for i, (pruner, layer) in enumerate(zip(self.pruners, self.layers, strict=True)):
            x = layer(x * self._factor(pruner(torch.cat([embedded, x], dim=1))))
            if i < last:
                x = self.dropout(self.activation(x))
        return x

    def _factor(self, v: Tensor) -> Tensor:
        if self.form == "scaling":
            return self.beta * torch.sigmoid(v)
        p = torch.sigmoid(self.get_buffer("alpha").clone() * v)
        kept = (p > self.eps).to(p.dtype)
        if self.form == "fusion":
            return self.beta * p * kept
        return kept + p - p.detach()
