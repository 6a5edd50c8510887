"""Streaming metrics for training: sums and histograms that are added up over ranks and saved."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from msrec.model.metrics.definitions import (
    Array,
    Floats,
    Metrics,
    ScenarioMetrics,
    check_values,
    defined,
    loss_metrics,
)

LOGIT_RANGE = 16.0
"""Logits beyond +-16 (probability 1e-7) are in the first or last bin; their loss is exact."""
NUM_SUMS = 4
"""Last columns of a histogram's `counts`: rows, weight, weight * loss, weight * score."""
REGRESSION_SUMS = 6
"""Columns of `RegressionTotals.counts`."""


class StreamingMetrics(ABC):
    """Metrics of a stream of rows, overall and per scenario.

    All state is in `counts`, which may be summed over ranks, saved and restored. Rows of weight 0
    and rows without the label (NaN) do not count.

    Shape:
        counts: (S, ...), float64.
    """

    counts: Floats

    def merge(self, counts: Floats) -> None:
        """Adds the counts of another rank or of a checkpoint.

        Raises:
            ValueError: their shape differs: they are for other scenarios or bins.
        """
        if counts.shape != self.counts.shape:
            raise ValueError(
                f"metrics to merge must have counts of the shape {self.counts.shape}, scenarios "
                f"first; got {counts.shape}. Start new metrics instead."
            )
        self.counts += counts

    def reset(self) -> None:
        """Removes all rows; `counts` stays the same array."""
        self.counts[:] = 0

    def compute(self, names: Sequence[str]) -> ScenarioMetrics:
        """Returns the metrics of the rows so far; `names` are the scenarios' in order of ids."""
        scenarios = zip(names, self.counts, strict=True)
        return ScenarioMetrics(
            self._metrics(self.counts.sum(axis=0)),
            {name: self._metrics(counts) for name, counts in scenarios},
        )

    @abstractmethod
    def update(
        self, output: Array, label: Array, scenario: Array, weight: Array | None = None
    ) -> None:
        """Adds rows.

        Shape:
            output: (B,), logits of a binary label, scores of a regression label.
            label: (B,), NaN where it is missing.
            scenario: (B,), int in [0, S).
            weight: (B,); None means all 1.
        """

    @abstractmethod
    def _metrics(self, counts: Floats) -> Metrics: ...

    def _counted_rows(
        self, name: str, output: Array, label: Array, scenario: Array, weight: Array | None
    ) -> tuple[Array, Array, Array, Floats]:
        """Returns the rows that count, and their weights, after a check."""
        weights = np.ones(len(output)) if weight is None else np.asarray(weight, np.float64)
        used = (weights > 0) & ~np.isnan(label)
        check_values(name, output, ~used | np.isfinite(output), "a finite number")
        last = len(self.counts) - 1
        known = ~used | ((scenario >= 0) & (scenario <= last))
        check_values("scenario", scenario, known, f"0..{last}")
        if used.all():
            return output, label, scenario, weights
        return output[used], label[used], scenario[used], weights[used]


class HistogramMetrics(StreamingMetrics):
    """AUC, log loss, NE and calibration of a binary label.

    The state::

        counts[s, y]  = [ weight per logit bin ... | rows  weight  weight*loss  weight*score ]
                          `bins` of them             exact sums

    Only AUC depends on the bins: rows of one bin count as ties. With the default width of 1/256
    logit it agrees with the exact AUC to 1e-4 if logits vary by 0.1 or more; a model with nearly
    the same score for every row needs more bins. GAUC is not measured here.

    Shape:
        counts: (S, 2, bins + 4), float64; S scenarios, then label 0 and 1.

    Raises:
        ValueError: `num_scenarios` is below 1 or `bins` below 2.

    Example:
        >>> feed = HistogramMetrics(num_scenarios=1)
        >>> feed.update(np.array([-1.0, 0.5, 2.0]), np.array([0, 0, 1]), np.zeros(3, int))
        >>> feed.compute(["feed"]).all.auc
        1.0
    """

    def __init__(self, num_scenarios: int, bins: int = 8192) -> None:
        if num_scenarios < 1 or bins < 2:
            raise ValueError(
                "num_scenarios must be at least 1 and bins at least 2; "
                f"got num_scenarios={num_scenarios}, bins={bins}."
            )
        self.bins = bins
        self.counts: Floats = np.zeros((num_scenarios, 2, bins + NUM_SUMS))

    def update(
        self, output: Array, label: Array, scenario: Array, weight: Array | None = None
    ) -> None:
        """Adds rows, see `StreamingMetrics`.

        Raises:
            ValueError: a logit is not finite, a label is not 0, 1 or NaN, or a scenario is unknown.
        """
        logit, label, scenario, weights = self._counted_rows(
            "logit", output, label, scenario, weight
        )
        check_values("label", label, (label == 0) | (label == 1), "0 or 1")
        z, clicked = logit.astype(np.float64), label == 1
        group = scenario.astype(np.int64) * 2 + clicked
        position = (z + LOGIT_RANGE) * (self.bins / (2 * LOGIT_RANGE))
        bin_of = np.clip(position, 0, self.bins - 1).astype(np.int64)
        np.add.at(self.counts.reshape(-1), group * self.counts.shape[-1] + bin_of, weights)
        loss = np.logaddexp(0.0, z)
        score = np.exp(z - loss)
        loss -= np.where(clicked, z, 0.0)
        for column, values in enumerate((None, weights, weights * loss, weights * score)):
            sums = np.bincount(group, values, minlength=2 * len(self.counts))
            self.counts[:, :, self.bins + column] += sums.reshape(-1, 2)

    def _metrics(self, counts: Floats) -> Metrics:
        negative, positive = counts[:, : self.bins]
        below = np.cumsum(negative) - negative
        pairs = positive.sum() * negative.sum()
        area = (positive * (below + 0.5 * negative)).sum()
        rows, weight, loss, score = counts[:, self.bins :].sum(axis=0)
        positives, clicked = counts[1, self.bins : self.bins + 2]
        return Metrics(
            int(rows),
            int(positives),
            auc=float(area / pairs) if pairs > 0 else None,
            **defined(loss_metrics(weight, clicked, loss, score)),
        )


class RegressionTotals(StreamingMetrics):
    """MAE, RMSE and calibration of a regression label. Spearman's correlation is not measured.

    The state::

        counts[s] = [ rows  weight  weight*|error|  weight*error^2  weight*score  weight*label ]

    Shape:
        counts: (S, 6), float64.

    Raises:
        ValueError: `num_scenarios` is below 1.

    Example:
        >>> feed = RegressionTotals(num_scenarios=1)
        >>> feed.update(np.array([3.0, 5.0]), np.array([3.0, 1.0]), np.zeros(2, int))
        >>> feed.compute(["feed"]).all.mae
        2.0
    """

    def __init__(self, num_scenarios: int) -> None:
        if num_scenarios < 1:
            raise ValueError(f"num_scenarios must be at least 1; got {num_scenarios}.")
        self.counts: Floats = np.zeros((num_scenarios, REGRESSION_SUMS))

    def update(
        self, output: Array, label: Array, scenario: Array, weight: Array | None = None
    ) -> None:
        """Adds rows, see `StreamingMetrics`.

        Raises:
            ValueError: a score or a label is infinite, or a scenario is unknown.
        """
        score, label, scenario, w = self._counted_rows("score", output, label, scenario, weight)
        check_values("label", label, np.isfinite(label), "a finite number")
        score, label = score.astype(np.float64), label.astype(np.float64)
        error = np.abs(score - label)
        group = scenario.astype(np.int64)
        columns = (None, w, w * error, w * error**2, w * score, w * label)
        for column, values in enumerate(columns):
            self.counts[:, column] += np.bincount(group, values, len(self.counts))

    def _metrics(self, counts: Floats) -> Metrics:
        rows, weight, absolute, squared, score, label = counts
        if not rows:
            return Metrics(0)
        return Metrics(
            int(rows),
            mae=float(absolute / weight),
            rmse=float(np.sqrt(squared / weight)),
            calibration=float(score / label) if label > 0 else None,
        )
