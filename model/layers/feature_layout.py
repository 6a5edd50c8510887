"""Where the looked-up vectors stand in x, for the backbones that look at single features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureLayout:
    """The layout of x: `start` columns of something else, then F vectors of D numbers, then more.

    Example:
        >>> fields = FeatureLayout(("user_id", "item_id"), dim=2, start=1)
        >>> x = torch.tensor([[9.0, 1.0, 2.0, 3.0, 4.0]])
        >>> fields.vectors(x).tolist(), fields.of(x, ["item_id"]).tolist()
        ([[[1.0, 2.0], [3.0, 4.0]]], [[3.0, 4.0]])
    """

    names: tuple[str, ...]
    dim: int
    start: int = 0

    @property
    def end(self) -> int:
        """The column behind the last vector."""
        return self.start + len(self.names) * self.dim

    def vectors(self, x: Tensor) -> Tensor:
        """(B, in_dim) -> (B, F, D)."""
        columns = x[:, self.start : self.end]
        return torch.unflatten(columns, 1, (len(self.names), self.dim))

    def of(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """(B, in_dim) -> (B, len(names) * D), the vectors of some features side by side.

        Raises:
            ValueError: a feature is not there.
        """
        starts = [self.start + place * self.dim for place in self.positions(names)]
        return torch.cat([x[:, start : start + self.dim] for start in starts], dim=1)

    def positions(self, names: Sequence[str]) -> list[int]:
        """Where features stand among the vectors.

        Raises:
            ValueError: a feature is not there.
        """
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise ValueError(
                f"every feature named must be one of {', '.join(self.names)}; got "
                f"{', '.join(unknown)}."
            )
        return [self.names.index(name) for name in names]
