"""Dropout whose mask is cheap to draw on CPU, where torch's own takes a fifth of a small step."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

LEVELS = 1 << 16


class Dropout(nn.Module):
    """Zero elements with probability `p` in training, scale the others up so that the mean stays.

    On CPU the mask comes from NumPy's SFC64, seeded by torch's generator: the same `manual_seed`
    draws the same mask. `p` is rounded to 1/65536 there. Elsewhere this is torch's dropout.

    Shape:
        x: any, float.
        returns: as x.

    Raises:
        ValueError: `p` is not in [0, 1).

    Source:
        Srivastava et al., JMLR 2014.

    Example:
        >>> y = Dropout(0.5)(torch.ones(10_000))
        >>> sorted(set(y.tolist())), abs(y.mean().item() - 1) < 0.05
        ([0.0, 2.0], True)
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be in [0, 1); got {p}.")
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mask and scale."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.p)
        dropped = round(self.p * LEVELS)
        seed = int(torch.randint(1 << 62, ()))
        draws = np.random.Generator(np.random.SFC64(seed)).bytes(2 * x.numel())
        levels = torch.frombuffer(bytearray(draws), dtype=torch.int16).view(x.shape)
        keep = (levels >= dropped - LEVELS // 2).to(x.dtype)
        return x * keep.mul_(LEVELS / (LEVELS - dropped))

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"p={self.p}"
