"""Multi-head softmax attention over events, of which some or all may be masked."""

import torch
from torch import Tensor, nn

from msrec.model.layers.mlp import check_positive
from msrec.model.layers.precision import widened


def check_heads(dim: int, num_heads: int) -> None:
    """Raises a ValueError unless the heads divide the vectors evenly."""
    check_positive(dim=dim, num_heads=num_heads)
    if dim % num_heads:
        raise ValueError(
            f"num_heads must divide the size of the item vectors; got {num_heads} heads and "
            f"vectors of {dim} numbers. Change sequence.num_heads or embeddings.dim."
        )


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Returns (B, H, L, D / H) of (B, L, D)."""
    return torch.unflatten(x, 2, (num_heads, -1)).transpose(1, 2)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention in heads; a query whose keys are all masked gets the bias alone.

    Shape:
        query: (B, Q, D), float.
        keys: (B, L, D), float; the values too.
        mask: (B, L), bool, which keys count.
        returns: (B, Q, D), float.

    Raises:
        ValueError: `num_heads` does not divide `dim`.

    Source:
        Vaswani et al., NeurIPS 2017.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:  # noqa: D102
        q, k, v = (
            split_heads(x, self.num_heads)
            for x in (self.query(query), self.key(keys), self.value(keys))
        )
        logits = widened(q @ k.transpose(2, 3)) * self.scale
        mask = mask[:, None, None, :]
        # The lowest number instead of -inf: without any key the softmax is defined, then set to 0.
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        weights = torch.softmax(logits, dim=3) * mask
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return mixed
