"""The metric of the validation that chooses the best checkpoint and ends a run."""

import difflib
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from msrec.data.labels import LabelKind
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import Schema
from msrec.launch.config.run_config import RunConfig
from msrec.model.metrics.definitions import (
    COMBINED_PREFIX,
    DIRECTION,
    MAIN_METRIC,
    OF_IMPRESSIONS,
    OF_REGRESSION,
    Array,
    Ints,
    ScenarioMetrics,
    metric_name,
    parse_metric_name,
)
from msrec.model.metrics.exact import Grouping, ScoreKind, sort_rows
from msrec.model.metrics.user_sums import LOSSES
from msrec.model.ranker import Outcome
from msrec.model.score_head import ScoreHead
from msrec.model.tasks import Task

STREAMING = ("auc", "log_loss", "ne", "rig", "mae", "rmse")
"""Metrics that the validation computes without keeping its rows."""


class ChosenMetric(NamedTuple):
    """A metric of one label, by which checkpoints are compared.

    name: in logs, such as `auc/all`.
    metric: field of `Metrics`.
    task: position of the label among those of the run.
    sign: 1 if higher is better, -1 if lower is better.
    is_combined: whether the combined score ranks the rows, not the label's own score.
    """

    name: str
    metric: str
    task: int
    sign: int
    is_combined: bool = False

    @property
    def needs_rows(self) -> bool:
        """Whether the metric is computed from all rows at once."""
        return self.is_combined or self.metric not in STREAMING


def choose_metric(
    name: str | None,
    tasks: Sequence[Task],
    scenarios: Sequence[str],
    *,
    has_impressions: bool = False,
    has_formula: bool = False,
) -> ChosenMetric:
    """Returns the metric of a name in logs; None is the AUC or RMSE of the first label.

    Args:
        name: such as `auc`, `rmse/label=watch/scenario=feed` or `combined_ndcg/label=like/all`.
        tasks: of the run.
        scenarios: names of the scenarios.
        has_impressions: whether the dataset has impressions.
        has_formula: whether the run has a combined score.

    Raises:
        ValueError: there is no such metric, or it has no better direction.
    """
    kinds: list[LabelKind] = ["binary" if task.is_binary else "regression" for task in tasks]
    if name is None:
        name = metric_name(MAIN_METRIC[kinds[0]])
    known = {
        metric_name(metric, label=task.name if number else None): (metric, number)
        for number, task in enumerate(tasks)
        for metric in _metrics(kinds[number], has_impressions, has_formula)
    }
    parts = parse_metric_name(name) or parse_metric_name(f"{name}/all")
    if parts is not None and (parts.scenario is None or parts.scenario in scenarios):
        found = known.get(metric_name(parts.metric, label=parts.label))
        if found is not None:
            metric = found[0].removeprefix(COMBINED_PREFIX)
            is_combined = metric != found[0]
            return ChosenMetric(
                metric_name(*parts), metric, found[1], DIRECTION[metric], is_combined
            )
    near = difflib.get_close_matches(name, known, n=5) or list(known)[:5]
    raise ValueError(
        f"trainer.metric must be a metric of a label of the run, of all rows or of a scenario; "
        f"got {name!r}, near it are {', '.join(near)}."
    )


def _metrics(kind: LabelKind, has_impressions: bool, has_formula: bool) -> list[str]:
    """Returns the metrics of a label that have a direction."""
    if kind == "regression":
        return [n for n in DIRECTION if n in OF_REGRESSION]
    names = [n for n in DIRECTION if n not in OF_REGRESSION]
    names = [n for n in names if has_impressions or n not in OF_IMPRESSIONS]
    rankings = [n for n in names if n not in LOSSES] if has_formula else []
    return [*names, *(COMBINED_PREFIX + n for n in rankings)]


def valid_impressions(
    config: RunConfig, schema: Schema, chosen: ChosenMetric
) -> Callable[[Ints], Ints] | None:
    """Returns a function from ids of validation rows to their impressions, if a metric needs it.

    It reads the impressions of the split at the first call and keeps them.
    """
    column = schema.impression
    if chosen.metric not in OF_IMPRESSIONS or column is None:
        return None

    @cache
    def impressions() -> Ints:
        reader = SplitReader(config.dataset, schema, "valid", [column], config.faults)
        column_of_all: Ints = reader.read()[column]
        return column_of_all

    return lambda row_ids: impressions()[row_ids]


class ValidationRows:
    """Rows of one label in a validation, for metrics that need all of them at once.

    They stay on the device until `named` reads them.

    Args:
        chosen: the metric.
        head: turns the model's outputs into scores, without calibration.
        impressions: returns the impressions of rows by their ids; called on rank 0 only. None if
            the metric needs none.
    """

    def __init__(
        self,
        chosen: ChosenMetric,
        head: ScoreHead,
        impressions: Callable[[Ints], Ints] | None = None,
    ) -> None:
        self._chosen, self._head, self._impressions = chosen, head, impressions
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, outcome: Outcome) -> None:
        """Adds the rows of a batch."""
        if not self._chosen.needs_rows:
            return
        task = self._chosen.task
        weight = outcome.weight
        if outcome.label_weight.shape[1]:
            weight = weight * outcome.label_weight[:, task]
        scores = self._head(outcome.outputs, outcome.scenario)
        score = scores[:, -1 if self._chosen.is_combined else task]
        label = outcome.label[:, task]
        columns = (score, label, outcome.user, weight, outcome.scenario, outcome.row_id)
        self._parts.append(columns)

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
            columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
            real = columns[-1] >= 0  # padding and excluded rows have -1
            values = [self._metrics(scenarios, *(column[real] for column in columns))]
        dist.broadcast_object_list(values)
        return values[0]

    def _metrics(
        self,
        scenarios: Sequence[str],
        score: Array,
        label: Array,
        user: Array,
        weight: Array,
        scenario: Array,
        row_id: Ints,
    ) -> dict[str, float]:
        task, is_combined = self._head.scales.tasks[self._chosen.task], self._chosen.is_combined
        kind: ScoreKind = "binary" if task.is_binary else "regression"
        if is_combined:
            kind = "ranking"
        impression = None if self._impressions is None else self._impressions(row_id)
        rows = sort_rows(score, label, user, weight, kind=kind, impression=impression)
        groups = rows.metrics_by(Grouping(scenarios, scenario))
        name = task.name if self._chosen.task else None
        named = ScenarioMetrics(rows.metrics(), groups).named(name)
        return {f"{COMBINED_PREFIX}{key}": v for key, v in named.items()} if is_combined else named
