"""AdaSparse backbone."""

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from msrec.data.loading.row_counts import RowCounts
from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import RELU, Hidden, check_positive


class AdaSparse(Backbone):
    """Adaptively sparse MLP: the scenario prunes neurons of every layer.

    h_{l+1} = act(W_l (h_l * pi_l) + b_l) with h_0 = x and the factors pi_l of v = V_l [e_s, h_l].
    With p = sigmoid(alpha v), `binary`: pi = [p > eps]; `scaling`: pi = beta sigmoid(v);
    `fusion`: pi = beta p [p > eps]. alpha starts at `alpha` and grows by `alpha_step` in every
    training step, so that p approaches 0 or 1. The last layer gives the logits.

    Raises:
        ValueError: the form is unknown, or eps is not in [0, 1).

    When:
        Very many scenarios and little memory: one network, with neurons that each scenario switches
        on and off.

    Source:
        Yang et al., CIKM 2022 (arXiv 2206.13108), without the loss that controls the share of
        pruned neurons, as in Scenario-Wise-Rec, whose sign() however gives -v where the paper
        prunes. The gradient of `binary` is that of p (straight through), which the paper leaves
        open.

    Example:
        >>> model = AdaSparse(BackboneShape(in_dim=8, num_scenarios=3), dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        dims: Sequence[int] = (256, 128),
        form: Literal["binary", "scaling", "fusion"] = "fusion",
        eps: float = 1e-2,
        beta: float = 2.0,
        alpha: float = 1.0,
        alpha_step: float = 1e-4,
        scenario_dim: int = 16,
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        check_positive(scenario_dim=scenario_dim)
        if form not in ("binary", "scaling", "fusion"):
            raise ValueError(f"form must be one of binary, scaling, fusion; got {form!r}.")
        if not 0 <= eps < 1:
            raise ValueError(f"eps must be in [0, 1); got {eps}.")
        self.form, self.eps, self.beta, self.alpha_step = form, eps, beta, alpha_step
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.scenario_embedding = nn.Embedding(shape.num_scenarios, scenario_dim)
        sizes = [shape.in_dim, *dims, shape.num_tasks]
        self.pruners = nn.ModuleList(
            nn.Linear(scenario_dim + size, size, bias=False) for size in sizes[:-1]
        )
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.finish = hidden.module()

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        if self.training:
            self.get_buffer("alpha").add_(self.alpha_step)
        embedded, last = self.scenario_embedding(scenario), len(self.layers) - 1
        for i, (pruner, layer) in enumerate(zip(self.pruners, self.layers, strict=True)):
            x = layer(x * self._factor(pruner(torch.cat([embedded, x], dim=1))))
            if i < last:
                x = self.finish(x)
        return x

    def _factor(self, v: Tensor) -> Tensor:
        if self.form == "scaling":
            return self.beta * torch.sigmoid(v)
        p = torch.sigmoid(self.get_buffer("alpha").clone() * v)
        kept = (p > self.eps).to(p.dtype)
        if self.form == "fusion":
            return self.beta * p * kept
        return kept + p - p.detach()
