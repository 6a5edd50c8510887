"""Partitioned norm: batch normalisation with separate moments per scenario."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from msrec.model.layers.group_functions import GroupedAffine, GroupedBatchNorm, GroupedMoments
from msrec.model.layers.precision import widened
from msrec.model.layers.row_groups import RowGroups


def is_distributed() -> bool:
    """Whether the model runs on several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _SumOverRanks(torch.autograd.Function):
    """all_reduce with a gradient, which is the sum over ranks as well."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


def _counts_all(weight: Tensor | None) -> bool:
    """Whether every row counts; reads the weights, which a GPU would have to wait for."""
    return weight is None or bool((weight > 0).all())


def is_sliced(x: Tensor, groups: RowGroups) -> bool:
    """Whether the norm runs group by group, as fits the cache of a CPU; a GPU runs all at once."""
    return x.device.type == "cpu" and groups.counts is not None


class PartitionedNorm(nn.Module):
    """x' = (g * g_s) * (x - mean_s) / sqrt(var_s + eps) + (b + b_s) for a row of scenario s.

    Training uses the moments of the scenario's rows in the batch, over all ranks, so that two ranks
    compute what one rank with both halves would. Rows of weight 0 do not count. A scenario with
    fewer than 2 rows has no variance and uses its moving averages. Evaluation always uses the
    moving averages, which only training changes.

    Shape:
        x: (B, dim), float, rows in the order of `groups`.
        weight: (B,), float, same order; None means all 1. A weight above 0 counts as 1.
        returns: (B, dim), float, same order.

    Source:
        Sheng et al., CIKM 2021. Moving averages follow nn.BatchNorm1d: momentum 0.1, unbiased
        variance, start at mean 0 and variance 1.
    """

    def __init__(
        self, dim: int, num_scenarios: int, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.shared_scale = nn.Parameter(torch.ones(dim))
        self.shared_shift = nn.Parameter(torch.zeros(dim))
        self.own_scale = nn.Parameter(torch.ones(num_scenarios, dim))
        self.own_shift = nn.Parameter(torch.zeros(num_scenarios, dim))
        self.register_buffer("moving_mean", torch.zeros(num_scenarios, dim))
        self.register_buffer("moving_var", torch.ones(num_scenarios, dim))

    def forward(self, x: Tensor, groups: RowGroups, weight: Tensor | None = None) -> Tensor:
        """Normalises sorted rows."""
        x = widened(x)
        mean, var = self.get_buffer("moving_mean"), self.get_buffer("moving_var")
        scale, shift = self.shared_scale * self.own_scale, self.shared_shift + self.own_shift
        if self.training:
            if is_sliced(x, groups) and not is_distributed() and _counts_all(weight):
                options = (groups.counts, self.momentum, self.eps)
                return GroupedBatchNorm.apply(x, scale, shift, mean, var, *options)  # type: ignore[no-any-return, no-untyped-call]
            mean, var = self._batch_moments(x, groups, weight)
        scale = scale * torch.rsqrt(var + self.eps)
        if is_sliced(x, groups):
            return GroupedAffine.apply(x, mean, scale, shift, groups.counts)  # type: ignore[no-any-return, no-untyped-call]
        return torch.addcmul(groups.lookup(shift), x - groups.lookup(mean), groups.lookup(scale))

    def _batch_moments(
        self, x: Tensor, groups: RowGroups, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns mean and variance (S, dim) of this step; updates the moving averages."""
        moving_mean, moving_var = self.get_buffer("moving_mean"), self.get_buffer("moving_var")
        used = torch.ones_like(x[:, 0]) if weight is None else (weight > 0).to(x.dtype)
        # Sums of distances to the moving mean: one exchange gives both moments, and the difference
        # of squares below loses no digits once the moving mean is near.
        count, total, squares = self._sums(x, used, moving_mean.clone(), groups)
        rows = count.clamp_min(1)
        offset = total / rows
        var = (squares / rows - offset.square()).clamp_min(0)  # below 0 by rounding only
        mean = moving_mean + offset
        enough = count >= 2
        with torch.no_grad():
            unbiased = var * (rows / (rows - 1).clamp_min(1))
            step = self.momentum * enough.to(x.dtype)
            new_mean = torch.lerp(moving_mean, mean, step)
            new_var = torch.lerp(moving_var, unbiased, step)
        mean = torch.where(enough, mean, moving_mean.clone())
        var = torch.where(enough, var, moving_var.clone())
        moving_mean.copy_(new_mean)
        moving_var.copy_(new_var)
        return mean, var

    @staticmethod
    def _sums(
        x: Tensor, used: Tensor, center: Tensor, groups: RowGroups
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns count (S, 1), sum and sum of squares (S, dim) of x - center, over all ranks."""
        if is_sliced(x, groups):
            sums = GroupedMoments.apply(x, used, center, groups.counts)  # type: ignore[no-untyped-call]
            total = torch.cat([groups.sum(used.unsqueeze(1), len(center)), *sums], dim=1)
        else:
            distance = (x - groups.lookup(center)) * used.unsqueeze(1)
            columns = torch.cat([used.unsqueeze(1), distance, distance.square()], dim=1)
            total = groups.sum(columns, len(center))
        if is_distributed():
            total = _SumOverRanks.apply(total)  # type: ignore[no-untyped-call]
        dim = x.shape[1]
        return total[:, :1], total[:, 1 : dim + 1], total[:, dim + 1 :]
