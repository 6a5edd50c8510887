"""Tasks of a model, one per label: from labels to targets, and from outputs to scores."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from msrec.data.labels import LabelOptions, LabelScale, Transform
from msrec.data.schema import Schema


class Task(NamedTuple):
    """A label that a model predicts.

    name: of the label.
    scale: of a regression label; None for a binary label.
    clip: smallest and largest value of a regression label in training.
    transform: of a regression label.
    parent: position of the task whose label must be 1 for this label to exist; None if it always
        exists or the model does not predict that label.
    """

    name: str
    scale: LabelScale | None = None
    clip: tuple[float, float] | None = None
    transform: Transform = "none"
    parent: int | None = None

    @property
    def is_binary(self) -> bool:
        """Whether the label is 0 or 1."""
        return self.scale is None


def make_tasks(schema: Schema, labels: Sequence[str]) -> list[Task]:
    """Returns the tasks of some labels of a dataset, in their order.

    Raises:
        ValueError: a label comes before the one that it depends on.
    """
    return [_task(name, schema.label(name), labels) for name in labels]


def _task(name: str, options: LabelOptions, labels: Sequence[str]) -> Task:
    parent = options.exists_where
    position = labels.index(parent) if parent is not None and parent in labels else None
    if position is not None and position > labels.index(name):
        raise ValueError(
            f"label {name!r} must come after {parent!r}, on which it depends; the labels are "
            f"{', '.join(labels)}."
        )
    if options.kind == "binary":
        return Task(name, parent=position)
    return Task(name, options.scale, options.clip, options.transform, position)


class TaskScales(nn.Module):
    """Targets of the labels, and scores of a model's outputs.

    A binary label is its own target and its output a logit; the score is the probability. A
    regression label is clipped, transformed and standardised; its score has the unit of the label
    and lies within the values of the training rows. With a logarithm, training by squared error
    makes the score a geometric mean, which is below the mean.

    Shape:
        label: (B, T), float32, NaN in a row without the label.
        outputs: (B, T), float.

    Example:
        >>> scale = LabelScale(low=0, high=60, mean=2, std=0.5)
        >>> scales = TaskScales([Task("click"), Task("watch", scale, (0.0, 60.0), "log")])
        >>> scales.targets(torch.tensor([[1.0, 0.0]])).tolist()
        [[1.0, -4.0]]
        >>> scales.scores(torch.tensor([[0.0, -4.0]])).tolist()
        [[0.5, 0.0]]
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        for number, task in enumerate(tasks):
            if task.scale is not None and task.transform == "quantile":
                for kind, values in (("knots", task.scale.knots), ("ranks", task.scale.ranks)):
                    tensor = torch.tensor(values, dtype=torch.float32)
                    self.register_buffer(f"{kind}_{number}", tensor, persistent=False)

    def targets(self, label: Tensor) -> Tensor:
        """Returns the targets (B, T), NaN where the label is missing."""
        if all(task.is_binary for task in self.tasks):
            return label
        return torch.stack([self._target(n, label[:, n]) for n in range(len(self.tasks))], dim=1)

    def scores(self, outputs: Tensor) -> Tensor:
        """Returns the scores (B, T): probabilities, and values in the unit of the label."""
        if all(task.is_binary for task in self.tasks):
            return torch.sigmoid(outputs)
        return torch.stack([self._score(n, outputs[:, n]) for n in range(len(self.tasks))], dim=1)

    def _target(self, number: int, label: Tensor) -> Tensor:
        task = self.tasks[number]
        if task.scale is None:
            return label
        if task.clip is not None:
            label = label.clamp(*task.clip)
        if task.transform == "log":
            label = torch.log1p(label)
        elif task.transform == "quantile":
            label = interpolate(label, *self._knots_and_ranks(number))
        return (label - task.scale.mean) / task.scale.std

    def _score(self, number: int, output: Tensor) -> Tensor:
        task = self.tasks[number]
        if task.scale is None:
            return torch.sigmoid(output)
        values = output * task.scale.std + task.scale.mean
        if task.transform == "log":
            values = torch.expm1(values)
        elif task.transform == "quantile":
            knots, ranks = self._knots_and_ranks(number)
            values = interpolate(values, ranks, knots)
        return values.clamp(task.scale.low, task.scale.high)

    def _knots_and_ranks(self, number: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"knots_{number}"), self.get_buffer(f"ranks_{number}")


def interpolate(x: Tensor, knots: Tensor, heights: Tensor) -> Tensor:
    """Returns the heights at x of the line through points, constant before and after them.

    Shape:
        x: any, float.
        knots: (K,), float, ascending, distinct; K at least 2.
        heights: (K,), float.
        returns: as x.

    Example:
        >>> points = torch.tensor([0.0, 2.0]), torch.tensor([10.0, 20.0])
        >>> interpolate(torch.tensor([-1.0, 0.5, 9.0]), *points).tolist()
        [10.0, 12.5, 20.0]
    """
    right = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
    left = right - 1
    share = ((x - knots[left]) / (knots[right] - knots[left])).clamp(0, 1)
    return heights[left] + share * (heights[right] - heights[left])
