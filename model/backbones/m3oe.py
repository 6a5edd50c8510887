"""M3oE backbone."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.experts import Experts, mix
from msrec.model.layers.mlp import MLP, RELU, Hidden, check_positive
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.scenario_layers import ScenarioLinear, StarLinear, Towers


class M3oE(Backbone):
    """Multi-domain mixture of experts: shared and scenario experts over a star layer.

    logit_s = tower_s(sum_k g_k E_k(e) + w d_s). e = block(star(x)) + block(x), where a block is
    Linear, LayerNorm, activation; the gate g is the scenario's softmax of stopgrad(e); d_s = beta
    D_s(e) + (1 - beta) / (S - 1) sum of the other D_j(e); beta and w are sigmoids of two learned
    numbers. A row runs the experts D of all scenarios.

    Raises:
        ValueError: a share is not in (0, 1), or there are fewer than 2 scenarios.

    When:
        Few scenarios, when it is open how much each should take from the others: two learned
        numbers decide. The cost of a row grows with the number of scenarios.

    Source:
        Zhang et al., SIGIR 2024 (arXiv 2404.18465), with one task, so without task experts. The
        starting values of beta and w are options; the paper searches them.

    Example:
        >>> model = M3oE(BackboneShape(in_dim=8, num_scenarios=3), dim=4, expert_dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        dim: int = 128,
        num_shared: int = 4,
        expert_dims: Sequence[int] = (64,),
        tower_dims: Sequence[int] = (64,),
        own_share: float = 0.8,
        scenario_share: float = 0.5,
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        check_positive(dim=dim)
        count = shape.num_scenarios
        if count < 2:
            raise ValueError(f"num_scenarios must be at least 2; got {count}.")
        self.star = StarLinear(shape.in_dim, dim, count)
        self.star_block = MLP(dim, [dim], hidden, norm="layer")
        self.skip_block = MLP(shape.in_dim, [dim], hidden, norm="layer")
        self.shared = Experts(dim, expert_dims, num_shared, hidden)
        self.gates = ScenarioLinear(dim, num_shared, count)
        self.domain = Experts(dim, expert_dims, count, hidden)
        self.own_share = nn.Parameter(_logit(own_share, "own_share"))
        self.scenario_share = nn.Parameter(_logit(scenario_share, "scenario_share"))
        self.towers = Towers(expert_dims[-1], tower_dims, count, shape.num_tasks, hidden)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
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
