"""Metrics and losses of the training steps since the last log line."""

import torch
import torch.distributed as dist

from msrec.model.metrics.streaming import HistogramMetrics
from msrec.model.ranker import Outcome


class MetricAccumulator:
    """Accumulates this rank's outcomes between two log lines.

    A checkpoint keeps the accumulated values and a resumed run starts with them. So a log line
    covers the same rows whether or not the run was interrupted.

    Args:
        num_scenarios: of the dataset.
    """

    def __init__(self, num_scenarios: int) -> None:
        self._histogram = HistogramMetrics(num_scenarios)
        self._losses: list[torch.Tensor] = []
        self._resumed_losses: list[float] = []

    def add(self, outcome: Outcome) -> None:
        """Adds a step."""
        add_rows(self._histogram, outcome)
        self._losses.append(outcome.losses[0])

    def is_empty(self) -> bool:
        """Whether there is nothing to log."""
        return not self._losses and not self._resumed_losses

    def reduced(self) -> tuple[HistogramMetrics, list[float]]:
        """Returns the metrics and the mean loss of each step over all ranks, the same on each."""
        merged = HistogramMetrics(len(self._histogram.counts), self._histogram.bins)
        merged.merge(self._histogram.counts)
        all_reduce_counts(merged)
        if not self._losses:
            return merged, list(self._resumed_losses)
        losses = torch.stack(self._losses).double()
        dist.all_reduce(losses)
        losses /= dist.get_world_size()
        return merged, self._resumed_losses + losses.tolist()

    def clear(self) -> None:
        """Drops all values; called after a log line."""
        self._histogram.reset()
        self._losses, self._resumed_losses = [], []

    def restore(self, counts: torch.Tensor, losses: list[float]) -> None:
        """Loads what `reduced` returned when a checkpoint was saved, on any number of ranks.

        Rank 0 takes the rows of all ranks, since `reduced` adds up the ranks.

        Shape:
            counts: as `HistogramMetrics.counts`.
        """
        self.clear()
        if dist.get_rank() == 0:
            self._histogram.merge(counts.numpy())
        self._resumed_losses = list(losses)


def add_rows(histogram: HistogramMetrics, outcome: Outcome) -> None:
    """Adds the rows of a batch."""
    histogram.update(
        outcome.outputs[:, 0].cpu().numpy(),
        outcome.label[:, 0].cpu().numpy(),
        outcome.scenario.cpu().numpy(),
        outcome.weight.cpu().numpy(),
    )


def all_reduce_counts(histogram: HistogramMetrics) -> None:
    """Adds up the counts of all ranks, in place."""
    counts = torch.from_numpy(histogram.counts)
    dist.all_reduce(counts)
    histogram.counts[:] = counts.numpy()
