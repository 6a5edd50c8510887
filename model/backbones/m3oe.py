"""M3oE backbone."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.data.loading.row_counts import RowCounts
from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.experts import Experts, mix_by_task
from msrec.model.layers.mlp import MLP, RELU, Hidden, check_positive
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.scenario_layers import ScenarioLinear, StarLinear, Towers


class M3oE(Backbone):
    """Multi-domain mixture of experts: shared, scenario and task experts over a star layer.

    logit_st = tower_st(sum_k g_stk E_k(e) + w d_s + w' c_t). e = block(star(x)) + block(x), where a
    block is Linear, LayerNorm, activation; the gate g_st is a softmax of stopgrad(e); d_s = beta
    D_s(e) + (1 - beta) / (S - 1) sum of the other D_j(e), and c_t is the same of the task experts
    C; beta, w and those of the tasks are sigmoids of learned numbers. With one label there is no
    c_t. A row runs the experts D of all scenarios.

    Raises:
        ValueError: a share is not in (0, 1), or there are fewer than 2 scenarios.

    When:
        Few scenarios, when it is open how much each should take from the others: two learned
        numbers decide, and two more between labels. The cost of a row grows with the number of
        scenarios.

    Source:
        Zhang et al., SIGIR 2024 (arXiv 2404.18465). The starting values of the shares are options,
        with one for both betas; the paper searches them. Towers have no norm.

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
        task_share: float = 0.5,
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        check_positive(dim=dim)
        count, tasks = shape.num_scenarios, shape.num_tasks
        if count < 2:
            raise ValueError(f"num_scenarios must be at least 2; got {count}.")
        self.star = StarLinear(shape.in_dim, dim, count)
        self.star_block = MLP(dim, [dim], hidden, norm="layer")
        self.skip_block = MLP(shape.in_dim, [dim], hidden, norm="layer")
        self.shared = Experts(dim, expert_dims, num_shared, hidden)
        self.gates = ScenarioLinear(dim, tasks * num_shared, count)
        self.domain = Experts(dim, expert_dims, count, hidden)
        self.own_share = nn.Parameter(_logit(own_share, "own_share"))
        self.scenario_share = nn.Parameter(_logit(scenario_share, "scenario_share"))
        self.towers = Towers(expert_dims[-1], tower_dims, count, tasks, hidden)
        self.task: Experts | None = None
        if tasks > 1:
            self.task = Experts(dim, expert_dims, tasks, hidden)
            self.own_task_share = nn.Parameter(_logit(own_share, "own_share"))
            self.task_share = nn.Parameter(_logit(task_share, "task_share"))

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios, counts)
        x = groups.sort(x)
        e = self.star_block(self.star(x, groups)) + self.skip_block(x)
        gates, domain = self.gates(e.detach(), groups), self.domain(e)
        of_scenario = _blended(groups.pick(domain), domain, self.own_share)
        of_scenario = torch.sigmoid(self.scenario_share) * of_scenario
        fused = [h + of_scenario for h in mix_by_task(gates, self.shared(e), self.num_tasks)]
        if self.task is not None:
            task = self.task(e)
            of_tasks = torch.sigmoid(self.task_share) * _blended(task, task, self.own_task_share)
            fused = [h + change for h, change in zip(fused, of_tasks, strict=True)]
        return groups.unsort(self.towers(fused, groups))


def _blended(own: Tensor, outputs: Tensor, own_share: Tensor) -> Tensor:
    """Returns beta own + (1 - beta) / (E - 1) * sum of the other outputs, with E outputs (E, B, D).

    `own` is (B, D), or (E, B, D) for each output as the own one.
    """
    beta = torch.sigmoid(own_share)
    return beta * own + (1 - beta) / (len(outputs) - 1) * (outputs.sum(0) - own)


def _logit(share: float, name: str) -> Tensor:
    if not 0 < share < 1:
        raise ValueError(f"{name} must be in (0, 1); got {share}.")
    return torch.tensor(math.log(share / (1 - share)))
