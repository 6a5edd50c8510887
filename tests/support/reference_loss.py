"""The training loss of binary labels that every row has, as plainly as possible."""

from torch import Tensor
from torch.nn import functional


def weighted_bce(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum over rows of the mean cross entropy over tasks, divided by the rows.

    Shape:
        logits, label: (B, T), float.
        weight: (B,), float.
    """
    losses = functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
    return (losses.mean(1) * weight).sum() / len(weight)
