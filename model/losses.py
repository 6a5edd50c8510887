"""The training loss."""

from torch import Tensor
from torch.nn import functional as F


def weighted_bce(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Binary cross entropy with logits: the weighted sum over rows divided by B, mean over tasks.

    B counts padding rows (weight 0) too. Dividing by the sum of weights would give the real rows of
    a padded last batch more weight than all others of the epoch, and the mean over ranks of such
    losses would not be the loss of one rank with the whole batch.

    Shape:
        logits: (B, T), float.
        label: (B, T), float in [0, 1].
        weight: (B,), float, at least 0.
        returns: (), float.

    Units:
        nats a row.

    Example:
        >>> import torch
        >>> weighted_bce(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]), torch.tensor([1.0, 0.0]))
        tensor(0.3466)
    """
    losses = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    return (losses.mean(1) * weight).sum() / len(weight)
