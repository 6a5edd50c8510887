"""AdaptDHM backbone."""

import itertools
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import RELU, Hidden, check_positive
from msrec.model.layers.partitioned_norm import is_distributed
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.scenario_layers import StarLinear


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
        Li et al., arXiv 2211.12105, as implemented in Scenario-Wise-Rec. Rows are routed by the
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

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        cluster = (x.detach() @ self.get_buffer("moving_centres").T).argmax(dim=1)
        if self.training:
            self._move_centres(x.detach(), weight)
        groups = group_rows(cluster, self.num_clusters, "cluster")
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
