"""Training loss: the losses of all labels and their weights."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from msrec.model.tasks import TaskScales

Weighting = Literal["fixed", "uncertainty", "gradnorm"]
GRADNORM_STEP = 0.01
MIN_GRADNORM_WEIGHT = 0.01


class LossOptions(NamedTuple):
    """Options of `RankLoss`.

    weights: (T,), of the labels' losses; empty means 1 for each.
    weighting: change of the weights in training, see `RankLoss`.
    entire_space: learn a label that exists only where another is 1 from all rows.
    gradnorm_alpha: strength with which GradNorm prefers labels whose loss falls slowly.
    l2: weight of the mean squared norm of the embeddings.
    """

    weights: Sequence[float] = ()
    weighting: Weighting = "fixed"
    entire_space: bool = False
    gradnorm_alpha: float = 1.5
    l2: float = 0.0


DEFAULT_LOSS = LossOptions()


class RankLoss(nn.Module):
    """Weighted sum of the labels' losses, plus L2 on the vectors.

    The loss of a binary label is its cross entropy; that of a regression label is half the squared
    error of its standardised value. Each is the weighted sum over the rows that have the label,
    divided by B. B includes padding rows (weight 0). Dividing by the sum of weights would give the
    real rows of a padded last batch more weight than all others of the epoch, and the mean over
    ranks of such losses would not be the loss of one rank with the whole batch. So a label that few
    rows have weighs less, as in the likelihood of all labels.

    `entire_space`: a label that exists only where its parent is 1 is learned from all rows, as the
    product of probabilities, P(parent) P(label | parent).

    `weighting`: `fixed` keeps the weights. `uncertainty` learns s_t for each label and adds
    exp(-s_t) loss_t + s_t / 2. `gradnorm` moves the weights by steps of 1 % so that the gradients
    of all labels in the embeddings get the same norm, larger for labels whose loss falls slowly.

    L2 is part of the loss because fused optimizers ignore weight decay on CPU; it acts on the
    embedding rows of the batch only. Rows without labels, which are only scored, have the loss 0.

    Shape:
        outputs: (B, T), float, logits or standardised values.
        label: (B, T), NaN in a row without the label; or (B, 0) for rows without labels.
        weight: (B,), float, at least 0.
        label_weight: (B, T), float, or (B, 0).
        vectors: (B, F, D), float, the embeddings.
        returns: the total, (); and the loss of each label without gradient, (T,), nats.

    Source:
        ESMM (arXiv 1804.07931) for the entire space; Kendall et al. (arXiv 1705.07115) for
        uncertainty; GradNorm (arXiv 1711.02257), with the embeddings as the shared layer, and steps
        of equal size in the direction of its gradient.
    """

    def __init__(self, scales: TaskScales, options: LossOptions = DEFAULT_LOSS) -> None:
        super().__init__()
        self.scales, self.options = scales, options
        num_tasks = len(scales.tasks)
        weights = torch.tensor(list(options.weights) or [1.0] * num_tasks)
        self.register_buffer("weights", weights, persistent=False)
        if options.weighting == "uncertainty":
            self.log_variance = nn.Parameter(torch.zeros(num_tasks))
        if options.weighting == "gradnorm":
            self.register_buffer("gradnorm_weights", torch.ones(num_tasks))
            self.register_buffer("first_losses", torch.zeros(num_tasks))

    def forward(  # noqa: D102
        self, outputs: Tensor, label: Tensor, weight: Tensor, label_weight: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        num_tasks = len(self.scales.tasks)
        if not label.shape[1]:
            return outputs.new_zeros(()), outputs.new_zeros(num_tasks)
        targets = self.scales.targets(label)
        row_weights = weight.unsqueeze(1).expand_as(targets)
        if label_weight.shape[1]:
            row_weights = row_weights * label_weight
        pairs = [self._rows(n, outputs, targets) for n in range(num_tasks)]
        rows, exist = (torch.stack(each, dim=1) for each in zip(*pairs, strict=True))
        row_weights = torch.where(exist, row_weights, 0)
        losses = (rows * row_weights).sum(0) / len(weight)
        total = (self._weighted(losses, row_weights, vectors) * self.get_buffer("weights")).sum()
        if self.options.l2 > 0:
            squares = vectors.square().sum(dim=(1, 2))
            total = total + self.options.l2 * (squares @ weight / len(weight))
        return total, losses.detach()

    def _rows(self, number: int, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss of a label in each row (B,), and which rows have it (B,), bool."""
        task = self.scales.tasks[number]
        output, target = outputs[:, number], targets[:, number]
        exists = ~torch.isnan(target)
        if task.is_binary and task.parent is not None and self.options.entire_space:
            return self._entire_space(number, outputs, targets)
        target = torch.where(exists, target, 0)
        if task.is_binary:
            rows = functional.binary_cross_entropy_with_logits(output, target, reduction="none")
        else:
            rows = (output - target).square() / 2
        return rows, exists

    def _entire_space(self, number: int, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `_rows` for the product of a label with those that it depends on."""
        log_p = functional.logsigmoid(outputs[:, number])
        target, parent = targets[:, number], self.scales.tasks[number].parent
        is_known, is_zero = ~torch.isnan(target), torch.zeros_like(target, dtype=torch.bool)
        while parent is not None:
            log_p = log_p + functional.logsigmoid(outputs[:, parent])
            is_known = is_known & (targets[:, parent] == 1)
            is_zero = is_zero | (targets[:, parent] == 0)
            parent = self.scales.tasks[parent].parent
        product = torch.where(is_known, target, 0)
        log_p = log_p.clamp(max=-1e-7)  # log(1 - p) of p = 1 is not finite
        log_q = torch.where(
            log_p > -math.log(2),
            torch.log(-torch.expm1(log_p)),
            torch.log1p(-torch.exp(log_p)),
        )
        return -(product * log_p + (1 - product) * log_q), is_known | is_zero

    def _weighted(self, losses: Tensor, row_weights: Tensor, vectors: Tensor) -> Tensor:
        """Returns the losses (T,) after the learned weights."""
        match self.options.weighting:
            case "uncertainty":
                share = row_weights.sum(0) / len(row_weights)
                return torch.exp(-self.log_variance) * losses + self.log_variance / 2 * share
            case "gradnorm":
                if torch.is_grad_enabled() and vectors.requires_grad:
                    self._move_weights(losses, vectors)
                # A copy, since the next step changes the buffer in place.
                return self.get_buffer("gradnorm_weights").clone() * losses
        return losses

    def _move_weights(self, losses: Tensor, vectors: Tensor) -> None:
        """Takes a step of GradNorm; the same on every rank."""
        norms = [torch.autograd.grad(each, vectors, retain_graph=True)[0].norm() for each in losses]
        statistics = torch.stack([torch.stack(norms).square(), losses.detach()])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(statistics)
            statistics = statistics / dist.get_world_size()
        norm, loss = statistics[0].sqrt(), statistics[1]
        weights, first = self.get_buffer("gradnorm_weights"), self.get_buffer("first_losses")
        first.copy_(torch.where(first > 0, first, loss))
        progress = loss / first.clamp(min=1e-12)
        rate = progress / progress.mean().clamp(min=1e-12)
        scaled = weights * norm
        target = scaled.mean() * rate**self.options.gradnorm_alpha
        moved = weights * (1 - GRADNORM_STEP * torch.sign(scaled - target))
        moved = moved.clamp(min=MIN_GRADNORM_WEIGHT)
        weights.copy_(moved * len(weights) / moved.sum())
