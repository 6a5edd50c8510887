"""Streaming metrics of all labels, in training since the last log line, and in validation."""

from collections.abc import Mapping, Sequence
from functools import partial

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

    Args:
        num_scenarios: of the dataset.
        scales: of the model's tasks.
    """

    def __init__(self, num_scenarios: int, scales: TaskScales) -> None:
        self._scales = scales
        self._metrics: list[StreamingMetrics] = [
            HistogramMetrics(num_scenarios) if task.is_binary else RegressionTotals(num_scenarios)
            for task in scales.tasks
        ]

    def add(self, outcome: Outcome) -> None:
        """Adds the rows of a batch."""
        is_binary = [task.is_binary for task in self._scales.tasks]
        outputs = outcome.outputs
        if not all(is_binary):
            binary = torch.tensor(is_binary, device=outputs.device)
            outputs = torch.where(binary, outputs, self._scales.scores(outputs))
        weight = outcome.weight.unsqueeze(1)
        weight = weight * outcome.label_weight if outcome.label_weight.shape[1] else weight
        values, labels, weights = (x.cpu().numpy() for x in (outputs, outcome.label, weight))
        scenario = outcome.scenario.cpu().numpy()
        last = weights.shape[1] - 1
        for task, metrics in enumerate(self._metrics):
            own_weight = weights[:, min(task, last)]
            metrics.update(values[:, task], labels[:, task], scenario, own_weight)

    def all_reduce(self) -> None:
        """Adds up the counts of all ranks, in place."""
        for metrics in self._metrics:
            counts = torch.from_numpy(metrics.counts)
            dist.all_reduce(counts)
            metrics.counts[:] = counts.numpy()

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
            metrics.merge(counts[name].numpy())

    def counts(self) -> dict[str, torch.Tensor]:
        """Returns the counts by their names in a checkpoint; the tensors share their memory."""
        return {name: torch.from_numpy(m.counts) for name, m in self._by_name().items()}

    def _by_name(self) -> dict[str, StreamingMetrics]:
        return {HISTOGRAM + (f"_{n}" if n else ""): m for n, m in enumerate(self._metrics)}


class MetricAccumulator:
    """Accumulates this rank's outcomes between two log lines.

    A checkpoint keeps the accumulated values and a resumed run starts with them. So a log line
    covers the same rows whether or not the run was interrupted.

    Args:
        num_scenarios: of the dataset.
        scales: of the model's tasks.
    """

    def __init__(self, num_scenarios: int, scales: TaskScales) -> None:
        self._new = partial(TaskMetrics, num_scenarios, scales)
        self._metrics = self._new()
        self._losses: list[torch.Tensor] = []
        self._resumed_losses: list[float] = []

    def add(self, outcome: Outcome) -> None:
        """Adds a step."""
        self._metrics.add(outcome)
        self._losses.append(outcome.losses[0])

    def is_empty(self) -> bool:
        """Whether there is nothing to log."""
        return not self._losses and not self._resumed_losses

    def reduced(self) -> tuple[TaskMetrics, list[float]]:
        """Returns the metrics and the mean loss of the first label in each step over all ranks.

        They are the same on each rank.
        """
        merged = self._new()
        merged.merge(self._metrics.counts())
        merged.all_reduce()
        if not self._losses:
            return merged, list(self._resumed_losses)
        losses = torch.stack(self._losses).double()
        dist.all_reduce(losses)
        losses /= dist.get_world_size()
        return merged, self._resumed_losses + losses.tolist()

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
