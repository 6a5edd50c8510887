"""What was trained on since the last log line: metrics and losses that a checkpoint keeps too."""

import torch
import torch.distributed as dist

from msrec.model.metrics.streaming import HistogramMetrics
from msrec.model.ranker import Outcome


class MetricAccumulator:
    """Adds up a rank's training rows until they are logged.

    A resumed run goes on with what its checkpoint had: so a log line covers the same rows whether
    the run was killed or not.

    Args:
        num_scenarios: of the data set.
    """

    def __init__(self, num_scenarios: int) -> None:
        self._histogram = HistogramMetrics(num_scenarios)
        self._losses: list[torch.Tensor] = []
        self._before: list[float] = []

    def add(self, outcome: Outcome) -> None:
        """Add a step."""
        add_rows(self._histogram, outcome)
        self._losses.append(outcome.loss)

    def is_empty(self) -> bool:
        """Whether there is nothing to log."""
        return not self._losses and not self._before

    def reduced(self) -> tuple[HistogramMetrics, list[float]]:
        """The rows of all ranks, and the mean loss of each global batch; the same on every rank."""
        merged = HistogramMetrics(len(self._histogram.counts), self._histogram.bins)
        merged.merge(self._histogram.counts)
        all_reduce_counts(merged)
        if not self._losses:
            return merged, list(self._before)
        losses = torch.stack(self._losses).double()
        dist.all_reduce(losses)
        losses /= dist.get_world_size()
        return merged, self._before + [float(loss) for loss in losses]

    def clear(self) -> None:
        """Forget all."""
        self._histogram.reset()
        self._losses, self._before = [], []

    def restore(self, counts: torch.Tensor, losses: list[float]) -> None:
        """Take what `reduced` gave when a checkpoint was saved, on any number of ranks.

        Shape:
            counts: as `HistogramMetrics.counts`.
        """
        self.clear()
        if dist.get_rank() == 0:
            self._histogram.merge(counts.numpy())
        self._before = list(losses)


def add_rows(histogram: HistogramMetrics, outcome: Outcome) -> None:
    """Add the rows of a batch."""
    histogram.update(
        outcome.logits[:, 0].cpu().numpy(),
        outcome.label[:, 0].cpu().numpy(),
        outcome.scenario.cpu().numpy(),
        outcome.weight.cpu().numpy(),
    )


def all_reduce_counts(histogram: HistogramMetrics) -> None:
    """Sum over ranks, in place."""
    counts = torch.from_numpy(histogram.counts)
    dist.all_reduce(counts)
    histogram.counts[:] = counts.numpy()
