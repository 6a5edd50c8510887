"""The metric of the validation that chooses the best checkpoint and ends a run."""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from msrec.data.labels import LabelKind
from msrec.model.metrics.definitions import (
    DIRECTION,
    MAIN_METRIC,
    OF_IMPRESSIONS,
    OF_REGRESSION,
    Array,
    ScenarioMetrics,
    metric_name,
    parse_metric_name,
)
from msrec.model.metrics.exact import Grouping, ScoreKind, sort_rows
from msrec.model.ranker import Outcome
from msrec.model.tasks import Task, TaskScales

STREAMING = ("auc", "log_loss", "ne", "rig", "mae", "rmse")
"""Metrics that the validation computes without keeping its rows."""


class ChosenMetric(NamedTuple):
    """A metric of one label, by which checkpoints are compared.

    name: in logs, such as `auc/all`.
    metric: field of `Metrics`.
    task: position of the label among those of the run.
    sign: 1 if higher is better, -1 if lower is better.
    """

    name: str
    metric: str
    task: int
    sign: int

    @property
    def needs_rows(self) -> bool:
        """Whether the metric is computed from all rows at once."""
        return self.metric not in STREAMING


def choose_metric(
    name: str | None, tasks: Sequence[Task], scenarios: Sequence[str]
) -> ChosenMetric:
    """Returns the metric of a name in logs; None is the AUC or RMSE of the first label.

    Raises:
        ValueError: there is no such metric, or it has no better direction.
    """
    kinds: list[LabelKind] = ["binary" if task.is_binary else "regression" for task in tasks]
    if name is None:
        name = metric_name(MAIN_METRIC[kinds[0]])
    parts = parse_metric_name(name) or parse_metric_name(f"{name}/all")
    if parts is not None and (parts.scenario is None or parts.scenario in scenarios):
        labels = [None, *(task.name for task in tasks[1:])]
        number = labels.index(parts.label) if parts.label in labels else None
        if number is not None and parts.metric in _metrics(kinds[number]):
            return ChosenMetric(metric_name(*parts), parts.metric, number, DIRECTION[parts.metric])
    known = [
        metric_name(metric, label=task.name if number else None)
        for number, task in enumerate(tasks)
        for metric in _metrics(kinds[number])
    ]
    near = difflib.get_close_matches(name, known, n=5) or known[:5]
    raise ValueError(
        f"trainer.metric must be a metric of a label of the run, of all rows or of a scenario; "
        f"got {name!r}, near it are {', '.join(near)}."
    )


def _metrics(kind: LabelKind) -> list[str]:
    """Returns the metrics of a label that have a direction and need no impressions."""
    of_regression = kind == "regression"
    names = [n for n in DIRECTION if (n in OF_REGRESSION) == of_regression]
    return [n for n in names if n not in OF_IMPRESSIONS]


class ValidationRows:
    """Rows of one label in a validation, for metrics that need all of them at once.

    They stay on the device until `named` reads them.

    Args:
        chosen: the metric.
        scales: of the model's tasks.
    """

    def __init__(self, chosen: ChosenMetric, scales: TaskScales) -> None:
        self._chosen, self._scales = chosen, scales
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, outcome: Outcome) -> None:
        """Adds the rows of a batch."""
        if not self._chosen.needs_rows:
            return
        task = self._chosen.task
        weight = outcome.weight
        if outcome.label_weight.shape[1]:
            weight = weight * outcome.label_weight[:, task]
        score = self._scales.scores(outcome.outputs)[:, task]
        label = outcome.label[:, task]
        self._parts.append((score, label, outcome.user, weight, outcome.scenario))

    def named(self, scenarios: Sequence[str]) -> dict[str, float]:
        """Returns the exact metrics of the rows of all ranks by name, the same on each rank."""
        if not self._chosen.needs_rows:
            return {}
        own: tuple[Array, ...] = tuple(
            torch.cat(column).cpu().numpy() for column in zip(*self._parts, strict=True)
        )
        is_main = dist.get_rank() == 0
        parts = [own] * dist.get_world_size()
        dist.gather_object(own, parts if is_main else None)
        values: list[dict[str, float]] = [{}]
        if is_main:
            score, label, user, weight, scenario = map(np.concatenate, zip(*parts, strict=True))
            task = self._scales.tasks[self._chosen.task]
            kind: ScoreKind = "binary" if task.is_binary else "regression"
            rows = sort_rows(score, label, user, weight, kind=kind)
            groups = rows.metrics_by(Grouping(scenarios, scenario))
            name = task.name if self._chosen.task else None
            values = [ScenarioMetrics(rows.metrics(), groups).named(name)]
        dist.broadcast_object_list(values)
        return values[0]
