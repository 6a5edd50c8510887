"""Streaming metrics of all labels, in training since the last log line, and in validation."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, Self

import torch
import torch.distributed as dist

from msrec.model.metrics.definitions import ScenarioMetrics
from msrec.model.metrics.streaming import HistogramMetrics, RegressionTotals, StreamingMetrics
from msrec.model.ranker import Outcome
from msrec.model.tasks import TaskScales

HISTOGRAM = "train_histogram"
"""Name, in a checkpoint, of the counts of the first label; `_1` and so on is added for others."""


class TaskMetrics:
    """Streaming metrics of the labels of a run, overall and per scenario.

    They stay on the device until they are read.

    Args:
        num_scenarios: of the dataset.
        scales: of the model's tasks.
        device: of the outcomes.
    """

    def __init__(self, num_scenarios: int, scales: TaskScales, device: torch.device) -> None:
        self._scales = scales
        is_binary = [task.is_binary for task in scales.tasks]
        self._is_binary = None if all(is_binary) else torch.tensor(is_binary, device=device)
        self._metrics: list[StreamingMetrics] = [
            HistogramMetrics(num_scenarios, device=device)
            if task.is_binary
            else RegressionTotals(num_scenarios, device=device)
            for task in scales.tasks
        ]

    def add(self, outcome: Outcome) -> None:
        """Adds the rows of a batch."""
        outputs = outcome.outputs
        if self._is_binary is not None:
            outputs = torch.where(self._is_binary, outputs, self._scales.scores(outputs))
        weights = outcome.weight.unsqueeze(1)
        if outcome.label_weight.shape[1]:
            weights = weights * outcome.label_weight
        last = weights.shape[1] - 1
        for task, metrics in enumerate(self._metrics):
            weight = weights[:, min(task, last)]
            metrics.update(outputs[:, task], outcome.label[:, task], outcome.scenario, weight)

    def all_reduce(self) -> None:
        """Adds up the counts of all ranks, in place."""
        for metrics in self._metrics:
            dist.all_reduce(metrics.counts)
            dist.all_reduce(metrics.faults)

    def add_all(self, other: Self) -> None:
        """Adds the rows of other metrics on the same device."""
        for metrics, more in zip(self._metrics, other._metrics, strict=True):
            metrics.counts += more.counts
            metrics.faults += more.faults

    def check(self) -> None:
        """Refuses rows with invalid values, see `StreamingMetrics.check`."""
        for metrics in self._metrics:
            metrics.check()

    def computed(self, scenarios: Sequence[str]) -> list[ScenarioMetrics]:
        """Returns the metrics of each label."""
        return [metrics.compute(scenarios) for metrics in self._metrics]

    def named(self, scenarios: Sequence[str]) -> dict[str, float]:
        """Returns every defined metric by its name in logs."""
        values: dict[str, float] = {}
        for number, metrics in enumerate(self.computed(scenarios)):
            values |= metrics.named(self._scales.tasks[number].name if number else None)
        return values

    def reset(self) -> None:
        """Removes all rows."""
        for metrics in self._metrics:
            metrics.reset()

    def merge(self, counts: Mapping[str, torch.Tensor]) -> None:
        """Adds counts by their names in a checkpoint."""
        for name, metrics in self._by_name().items():
            metrics.merge(counts[name])

    def counts(self) -> dict[str, torch.Tensor]:
        """Returns the counts on the host, by their names in a checkpoint."""
        return {name: metrics.counts.cpu() for name, metrics in self._by_name().items()}

    def _by_name(self) -> dict[str, StreamingMetrics]:
        return {HISTOGRAM + (f"_{n}" if n else ""): m for n, m in enumerate(self._metrics)}


class Unlogged(NamedTuple):
    """Values of the steps since the last log line, the same on each rank.

    metrics: of the rows of all ranks.
    losses: mean loss of the first label in each step.
    bad: steps from the first one whose losses are not finite to the last one, and the losses of
        all labels in that step; None if all are finite.
    """

    metrics: TaskMetrics
    losses: list[float]
    bad: tuple[int, list[float]] | None = None


class MetricAccumulator:
    """Accumulates this rank's outcomes between two log lines, on the device.

    A checkpoint keeps the accumulated values and a resumed run starts with them. So a log line
    covers the same rows whether or not the run was interrupted.

    Args:
        num_scenarios: of the dataset.
        scales: of the model's tasks.
        device: of the outcomes.
    """

    def __init__(self, num_scenarios: int, scales: TaskScales, device: torch.device) -> None:
        self._new = partial(TaskMetrics, num_scenarios, scales, device)
        self._metrics = self._new()
        self._losses: list[torch.Tensor] = []
        self._resumed_losses: list[float] = []

    def add(self, outcome: Outcome) -> None:
        """Adds a step."""
        self._metrics.add(outcome)
        self._losses.append(outcome.losses)

    def is_empty(self) -> bool:
        """Whether there is nothing to log."""
        return not self._losses and not self._resumed_losses

    def reduced(self) -> Unlogged:
        """Returns the values over all ranks; this waits for the device."""
        merged = self._new()
        merged.add_all(self._metrics)
        merged.all_reduce()
        if not self._losses:
            return Unlogged(merged, list(self._resumed_losses))
        means = torch.stack(self._losses).double()
        dist.all_reduce(means)
        means /= dist.get_world_size()
        steps: list[list[float]] = means.tolist()
        bad = next(
            (
                (len(steps) - number, losses)
                for number, losses in enumerate(steps)
                if not all(map(math.isfinite, losses))
            ),
            None,
        )
        return Unlogged(merged, self._resumed_losses + [losses[0] for losses in steps], bad)

    def clear(self) -> None:
        """Drops all values; called after a log line."""
        self._metrics.reset()
        self._losses, self._resumed_losses = [], []

    def empty_counts(self) -> dict[str, torch.Tensor]:
        """Returns zeros to load the counts of a checkpoint into."""
        return self._new().counts()

    def restore(self, counts: Mapping[str, torch.Tensor], losses: list[float]) -> None:
        """Loads what `reduced` returned when a checkpoint was saved, on any number of ranks.

        Rank 0 takes the rows of all ranks, since `reduced` adds up the ranks.
        """
        self.clear()
        if dist.get_rank() == 0:
            self._metrics.merge(counts)
        self._resumed_losses = list(losses)
