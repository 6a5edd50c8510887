"""Training loss."""

from torch import Tensor, nn
from torch.nn import functional


def weighted_bce(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Binary cross entropy with logits: weighted sum over rows divided by B, mean over tasks.

    B includes padding rows (weight 0). Dividing by the sum of weights would give the real rows of a
    padded last batch more weight than all others of the epoch, and the mean over ranks of such
    losses would not be the loss of one rank with the whole batch.

    Shape:
        logits: (B, T), float.
        label: (B, T), float in [0, 1].
        weight: (B,), float, at least 0.
        returns: (), float.

    Units:
        nats per row.

    Example:
        >>> import torch
        >>> weighted_bce(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]), torch.tensor([1.0, 0.0]))
        tensor(0.3466)
    """
    losses = functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
    return (losses.mean(1) * weight).sum() / len(weight)


class RankLoss(nn.Module):
    """Cross entropy of the first label, plus those of the other labels and L2 on the vectors.

    The total is the entropy of the first label, plus `aux_weight` times the mean over the other
    labels, plus `l2 * sum(weight * ||vectors||^2) / B`. With `aux_weight` 0 the model has one logit
    and the other labels are ignored. L2 is part of the loss because fused optimizers ignore weight
    decay on CPU; it acts on the embedding rows of the batch only.

    Rows without labels, which are only scored, have the loss 0.

    Shape:
        logits: (B, T), float.
        label: (B, T), or (B, 0) for rows without labels.
        weight: (B,), float.
        vectors: (B, F, D), float, the embeddings.
        returns: the total, and the cross entropy of the first label without gradient; both ().
    """

    def __init__(self, l2: float = 0.0, aux_weight: float = 0.0) -> None:
        super().__init__()
        self.l2, self.aux_weight = l2, aux_weight

    def forward(  # noqa: D102
        self, logits: Tensor, label: Tensor, weight: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not label.shape[1]:
            zero = logits.new_zeros(())
            return zero, zero
        click = weighted_bce(logits[:, :1], label[:, :1], weight)
        total = click
        if self.aux_weight > 0:
            total = total + self.aux_weight * weighted_bce(logits[:, 1:], label[:, 1:], weight)
        if self.l2 > 0:
            total = total + self.l2 * (vectors.square().sum(dim=(1, 2)) @ weight / len(weight))
        return total, click.detach()
