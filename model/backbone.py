"""Interface of the backbones: the sizes that they are built for, and what they compute."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from msrec.model.layers.mlp import check_positive


@dataclass(frozen=True)
class FeatureLayout:
    """Positions of the embedding vectors in x: `start` other columns, F vectors of size D, more.

    Example:
        >>> layout = FeatureLayout(("user_id", "item_id"), dim=2, start=1)
        >>> x = torch.tensor([[9.0, 1.0, 2.0, 3.0, 4.0]])
        >>> layout.vectors(x).tolist(), layout.select(x, ["item_id"]).tolist()
        ([[[1.0, 2.0], [3.0, 4.0]]], [[3.0, 4.0]])
    """

    names: tuple[str, ...] = ()
    dim: int = 0
    start: int = 0

    @property
    def end(self) -> int:
        """Column after the last vector."""
        return self.start + len(self.names) * self.dim

    def vectors(self, x: Tensor) -> Tensor:
        """Returns all vectors: (B, in_dim) -> (B, F, D)."""
        columns = x[:, self.start : self.end]
        return torch.unflatten(columns, 1, (len(self.names), self.dim))

    def select(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """Returns the concatenated vectors of some features: (B, in_dim) -> (B, len(names) * D).

        Raises:
            ValueError: a feature has no vector in x.
        """
        self.check(names)
        starts = [self.start + self.names.index(name) * self.dim for name in names]
        return torch.cat([x[:, start : start + self.dim] for start in starts], dim=1)

    def check(self, names: Sequence[str]) -> None:
        """Refuses features without a vector in x.

        Raises:
            ValueError: a feature has no vector in x.
        """
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise ValueError(
                f"every feature named must be one of {', '.join(self.names)}; got "
                f"{', '.join(unknown)}."
            )


@dataclass(frozen=True)
class BackboneShape:
    """Sizes of a backbone that the data and the other parts of a model decide.

    Raises:
        ValueError: a size is below 1.
    """

    in_dim: int
    num_scenarios: int
    num_tasks: int = 1
    layout: FeatureLayout = FeatureLayout()

    def __post_init__(self) -> None:
        check_positive(
            in_dim=self.in_dim, num_scenarios=self.num_scenarios, num_tasks=self.num_tasks
        )


class Backbone(nn.Module):
    """Base class of the models over one vector x per row.

    A subclass takes a `BackboneShape`; its keyword parameters are the options of a run.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float, at least 0; 0 marks padding rows, None means all 1. Read only by
            models that compute statistics of the batch.
        returns: (B, num_tasks), float, logits.

    Raises:
        ValueError: a size is below 1; in `forward`, a scenario is out of range.
    """

    def __init__(self, shape: BackboneShape) -> None:
        super().__init__()
        self.num_scenarios = shape.num_scenarios

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns the logits of each row."""
        raise NotImplementedError
