"""Interface of the backbones: the sizes that they are built for, and what they compute."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from msrec.data.loading.row_counts import RowCounts
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

    Args:
        parents: for each task the earlier task where it exists (conversion exists after a click),
            or None; empty if no task has one. The logit of such a task is conditional.

    Raises:
        ValueError: a size is below 1, or `parents` does not name an earlier task or None per task.
    """

    in_dim: int
    num_scenarios: int
    num_tasks: int = 1
    layout: FeatureLayout = FeatureLayout()
    parents: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        check_positive(
            in_dim=self.in_dim, num_scenarios=self.num_scenarios, num_tasks=self.num_tasks
        )
        if len(self.parents) not in (0, self.num_tasks) or any(
            parent is not None and not 0 <= parent < task
            for task, parent in enumerate(self.parents)
        ):
            raise ValueError(
                "parents must be empty or hold the number of an earlier task, or None, for each of "
                f"{self.num_tasks} tasks; got {self.parents}."
            )


class Backbone(nn.Module):
    """Base class of the models over one vector x per row.

    A subclass takes a `BackboneShape`; its keyword parameters are the options of a run.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float, at least 0; 0 marks padding rows, None means all 1. Read only by
            models that compute statistics of the batch.
        counts: (num_scenarios,), int64, rows of each scenario, on the host; see `group_rows`.
        returns: (B, num_tasks), float, one output per task: the logit of a binary label, or the
            standardised value of a regression label.

    Attributes:
        entire_space: whether a task with a parent is trained on all rows, by the product
            P(parent) * P(task | parent), as ESMM is.

    Raises:
        ValueError: a size is below 1; in `forward`, a scenario is out of range.
    """

    entire_space: ClassVar[bool] = False

    def __init__(self, shape: BackboneShape) -> None:
        super().__init__()
        self.num_scenarios = shape.num_scenarios
        self.num_tasks = shape.num_tasks

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns the logits of each row."""
        raise NotImplementedError

    def penalty(self, logits: Tensor, weight: Tensor) -> Tensor | None:
        """Returns a further term of the loss, or None for a model without one.

        Shape:
            logits: (B, num_tasks), float, of `forward`.
            weight: (B,), float, at least 0.
            returns: (), float, per row of the batch (B includes padding).
        """
        return None
