"""AdaptDHM: rows find their own clusters, and each cluster has star weights."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from msrec.model.layers.dropout import Dropout
from msrec.model.layers.mlp import check_positive, make_activation
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.star_linear import StarLinear


class AdaptDHM(nn.Module):
    """Adaptive distribution hierarchical model: a row goes to the cluster c of the largest x mu_c.

    Its layers are star layers of the cluster: W = W_shared * W_c, b = b_shared + b_c. The scenario
    is not looked at. At every training step the centres, unit vectors without gradient, move
    `num_passes` times: mu_c <- normalise(beta mu_c + (1 - beta) sum_i r_ic x_i), r = softmax(x mu).

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64; not used.
        weight: (B,), float, at least 0: rows of weight 0 do not move the centres.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, or beta is not in [0, 1].

    When:
        Scenario labels that are coarse or missing: the model finds its own groups of rows.

    Source:
        Li et al., arXiv 2211.12105, as read in Scenario-Wise-Rec. Rows are routed by the centres as
        they were before the step, so that a row never depends on its batch; the sums go over all
        ranks; biases are used, which Scenario-Wise-Rec makes and leaves out.

    Example:
        >>> model = AdaptDHM(in_dim=8, num_scenarios=3, dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        num_clusters: int = 3,
        dims: Sequence[int] = (256, 128),
        beta: float = 0.9,
        num_passes: int = 3,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(
            num_tasks=num_tasks,
            num_scenarios=num_scenarios,
            num_clusters=num_clusters,
            num_passes=num_passes,
        )
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1]; got {beta}.")
        self.num_clusters, self.beta, self.num_passes = num_clusters, beta, num_passes
        centres = functional.normalize(torch.randn(num_clusters, in_dim), dim=1)
        self.register_buffer("moving_centres", centres)
        sizes = [in_dim, *dims, num_tasks]
        self.layers = nn.ModuleList(
            StarLinear(a, b, num_clusters) for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.activation = make_activation(activation)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row by its own cluster."""
        cluster = (x.detach() @ self.get_buffer("moving_centres").T).argmax(dim=1)
        if self.training:
            self._move_centres(x.detach(), weight)
        groups = group_rows(cluster, self.num_clusters, "cluster")
        h, last = groups.sort(x), len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            h = layer(h, groups)
            if i < last:
                h = self.dropout(self.activation(h))
        return groups.unsort(h)

    def _move_centres(self, x: Tensor, weight: Tensor | None) -> None:
        centres = self.get_buffer("moving_centres")
        if weight is not None:
            used = (weight > 0).to(x.dtype).unsqueeze(1)
        for _ in range(self.num_passes):
            share = (x @ centres.T).softmax(dim=1)
            total = (share if weight is None else share * used).T @ x
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(total)
            moved = self.beta * centres + (1 - self.beta) * total
            centres.copy_(functional.normalize(moved, dim=1))
