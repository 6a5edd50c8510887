"""M3oE: shared and scenario experts over a star layer, fused by learned numbers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.layers.experts import Experts, mix
from msrec.model.layers.mlp import MLP, ScenarioLinear, Towers, check_positive
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.star_linear import StarLinear


class M3oE(nn.Module):
    """Multi-domain multi-task mixture of experts: logit_s = tower_s(sum_k g_k E_k(e) + w d_s).

    e = block(star(x)) + block(x), a block being Linear, LayerNorm, activation; the gate g is the
    scenario's softmax of stopgrad(e); d_s = beta D_s(e) + (1 - beta) / (S - 1) sum of the other
    D_j(e); beta and w are sigmoids of two learned numbers. A row runs all scenarios' experts D.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, a share is not in (0, 1), there are fewer than 2 scenarios,
            or one is out of range.

    When:
        Few scenarios, when it is open how much each should take from the others: two learned
        numbers say. The cost of a row grows with their number.

    Source:
        Zhang et al., SIGIR 2024 (arXiv 2404.18465), with one task, so without task experts. The
        starting values of beta and w are options; the paper searches them.

    Example:
        >>> model = M3oE(in_dim=8, num_scenarios=3, dim=4, expert_dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        dim: int = 128,
        num_shared: int = 4,
        expert_dims: Sequence[int] = (64,),
        tower_dims: Sequence[int] = (64,),
        own_share: float = 0.8,
        scenario_share: float = 0.5,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_tasks=num_tasks)
        if num_scenarios < 2:
            raise ValueError(f"num_scenarios must be at least 2; got {num_scenarios}.")
        self.num_scenarios = num_scenarios
        self.star = StarLinear(in_dim, dim, num_scenarios)
        self.star_block = MLP(dim, [dim], activation, dropout, norm="layer")
        self.skip_block = MLP(in_dim, [dim], activation, dropout, norm="layer")
        self.shared = Experts(dim, expert_dims, num_shared, activation, dropout)
        self.gates = ScenarioLinear(dim, num_shared, num_scenarios)
        self.domain = Experts(dim, expert_dims, num_scenarios, activation, dropout)
        self.own_share = nn.Parameter(_logit(own_share, "own_share"))
        self.scenario_share = nn.Parameter(_logit(scenario_share, "scenario_share"))
        self.towers = Towers(
            expert_dims[-1], tower_dims, num_scenarios, num_tasks, activation, dropout
        )

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        groups = group_rows(scenario, self.num_scenarios)
        x = groups.sort(x)
        e = self.star_block(self.star(x, groups)) + self.skip_block(x)
        gate = self.gates(e.detach(), groups).softmax(dim=1)
        domain = self.domain(e)
        own, total = groups.pick(domain), domain.sum(0)
        beta = torch.sigmoid(self.own_share)
        blended = beta * own + (1 - beta) / (self.num_scenarios - 1) * (total - own)
        fused = mix(gate, self.shared(e)) + torch.sigmoid(self.scenario_share) * blended
        return groups.unsort(self.towers(fused, groups))


def _logit(share: float, name: str) -> Tensor:
    if not 0 < share < 1:
        raise ValueError(f"{name} must be in (0, 1); got {share}.")
    return torch.tensor(math.log(share / (1 - share)))
