"""Star layers: STAR with weights per scenario, AdaptDHM with weights per cluster."""

import itertools
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from msrec.data.loading.row_counts import RowCounts
from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import MLP, RELU, Hidden, check_positive
from msrec.model.layers.partitioned_norm import PartitionedNorm, is_distributed
from msrec.model.layers.precision import float32_products, widened
from msrec.model.layers.row_groups import RowGroups, group_rows
from msrec.model.layers.scenario_layers import StarLinear, can_chain_groups, chain_groups


class STAR(Backbone):
    """Star topology: the weights of a scenario are the shared ones times its own, element-wise.

    logit_t = star layers_t(norm_s(x)) + MLP_t([e_s, x]). A star layer has W_s = W_shared * W_own[s]
    and b_s = b_shared + b_own[s]; norm_s uses the moments of the scenario's rows; e_s is the
    embedding of the scenario. Rows of weight 0 do not count in the moments. The labels share all
    star layers but the last of `dims` and the one to the logit, and all of the auxiliary MLP but
    its last layer.

    Raises:
        ValueError: the norm is unknown.

    When:
        Scenarios of unequal size over one strong shared network. Each has a copy of all layers, so
        parameters grow with the number of scenarios; time hardly does.

    Source:
        Sheng et al., CIKM 2021 (arXiv 2101.11427). The last star layer has no activation, so that
        the main logit takes both signs, and evaluation uses moving averages, so that the score of a
        row does not depend on its batch; Scenario-Wise-Rec differs in both. The auxiliary network
        sees x before the norm. A batch holds one scenario in the paper, all scenarios here; the
        norm uses the moments of each scenario's rows. The paper has one label; the towers of
        several are star layers too.

    Example:
        >>> model = STAR(BackboneShape(in_dim=8, num_scenarios=3), dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        dims: Sequence[int] = (256, 128, 64),
        aux_dims: Sequence[int] = (64,),
        scenario_dim: int = 16,
        hidden: Hidden = RELU,
        norm: Literal["partitioned", "none"] = "partitioned",
    ) -> None:
        super().__init__(shape)
        check_positive(scenario_dim=scenario_dim)
        if norm not in ("partitioned", "none"):
            raise ValueError(f"STAR's norm must be 'partitioned' or 'none'; got {norm!r}.")
        in_dim, count, tasks = shape.in_dim, shape.num_scenarios, shape.num_tasks
        self.norm = PartitionedNorm(in_dim, count) if norm == "partitioned" else None
        # The last two layers are the towers of the tasks.
        self.layers = nn.ModuleList(
            StarLinear(a, b if i < len(dims) - 1 else tasks * b, count)
            for i, (a, b) in enumerate(itertools.pairwise([in_dim, *dims, 1]))
        )
        self.finish = hidden.module()
        self.scenario_embedding = nn.Embedding(count, scenario_dim)
        aux = MLP(scenario_dim + in_dim, aux_dims, hidden)
        self.aux = nn.Sequential(aux, nn.Linear(aux.out_dim, tasks))

    def main_logit(self, x: Tensor, groups: RowGroups, weight: Tensor | None = None) -> Tensor:
        """Returns the logits of the star layers; rows and weights in the order of `groups`."""
        if self.norm is not None:
            x = self.norm(x, groups, weight)
        *shared, last = layers = cast(list[StarLinear], self.layers)
        if self.num_tasks == 1 and can_chain_groups(x, groups, self.finish):
            return chain_groups(x, groups, [layer.of_groups() for layer in layers])
        tower = shared.pop() if shared else None
        for layer in shared:
            x = self.finish(layer(x, groups))
        if tower is None:
            return last(x, groups)  # type: ignore[no-any-return]
        of_tasks = [self.finish(h) for h in tower.by_task(x, groups, self.num_tasks)]
        return torch.cat(last.by_task(of_tasks, groups, self.num_tasks), dim=1)

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios, counts)
        sorted_weight = None if weight is None else groups.sort(weight)
        main = groups.unsort(self.main_logit(groups.sort(x), groups, sorted_weight))
        aux: Tensor = self.aux[0](
            torch.cat([self.scenario_embedding(scenario), x], dim=1), self.aux[1]
        )
        return main + aux


class AdaptDHM(Backbone):
    """Adaptive distribution hierarchical model: rows are clustered, and clusters have star layers.

    A row goes to the cluster c of the largest x mu_c, whatever its scenario. Layers have
    W = W_shared * W_c and b = b_shared + b_c. In every training step the centres mu, unit vectors
    without gradient, move `num_passes` times: mu_c <- normalise(beta mu_c + (1 - beta) sum_i r_ic
    x_i) with r = softmax(x mu). Rows of weight 0 do not move them.

    Raises:
        ValueError: beta is not in [0, 1].

    When:
        Scenario labels that are coarse or missing: the model finds groups of rows by itself.

    Source:
        Li et al., arXiv 2211.12105, as implemented in Scenario-Wise-Rec. The paper has one label;
        further ones have their own outputs of the last star layer. Rows are routed by the
        centres from before the step, so that a row never depends on its batch; the sums go over all
        ranks; biases are used, which Scenario-Wise-Rec creates and ignores.

    Example:
        >>> model = AdaptDHM(BackboneShape(in_dim=8, num_scenarios=3), dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        num_clusters: int = 3,
        dims: Sequence[int] = (256, 128),
        beta: float = 0.9,
        num_passes: int = 3,
        hidden: Hidden = RELU,
    ) -> None:
        super().__init__(shape)
        check_positive(num_clusters=num_clusters, num_passes=num_passes)
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1]; got {beta}.")
        self.num_clusters, self.beta, self.num_passes = num_clusters, beta, num_passes
        centres = functional.normalize(torch.randn(num_clusters, shape.in_dim), dim=1)
        self.register_buffer("moving_centres", centres)
        sizes = [shape.in_dim, *dims, shape.num_tasks]
        self.layers = nn.ModuleList(
            StarLinear(a, b, num_clusters) for a, b in itertools.pairwise(sizes)
        )
        self.finish = hidden.module()

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        rows = widened(x.detach())
        with float32_products(rows):  # rows go to the same clusters as in an evaluation
            cluster = (rows @ self.get_buffer("moving_centres").T).argmax(dim=1)
            if self.training:
                self._move_centres(rows, weight)
        groups = group_rows(cluster, self.num_clusters, name="cluster")
        h = groups.sort(x)
        *hidden, last = self.layers
        for layer in hidden:
            h = self.finish(layer(h, groups))
        return groups.unsort(last(h, groups))

    def _move_centres(self, x: Tensor, weight: Tensor | None) -> None:
        centres = self.get_buffer("moving_centres")
        for _ in range(self.num_passes):
            share = (x @ centres.T).softmax(dim=1)
            if weight is not None:
                share = share * (weight > 0).to(x.dtype).unsqueeze(1)
            total = share.T @ x
            if is_distributed():
                dist.all_reduce(total)
            moved = self.beta * centres + (1 - self.beta) * total
            centres.copy_(functional.normalize(moved, dim=1))
