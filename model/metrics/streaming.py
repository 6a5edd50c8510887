"""Streaming metrics for training: sums and histograms that are added up over ranks and saved."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from msrec.model.metrics.definitions import (
    Floats,
    Metrics,
    ScenarioMetrics,
    defined,
    loss_metrics,
)

LOGIT_RANGE = 16.0
"""Logits beyond +-16 (probability 1e-7) are in the first or last bin; their loss is exact."""
NUM_SUMS = 4
"""Last columns of a histogram's `counts`: rows, weight, weight * loss, weight * score."""
REGRESSION_SUMS = 6
"""Columns of `RegressionTotals.counts`."""


class CountedRows(NamedTuple):
    """Rows of a batch with safe values where a row does not count.

    Shape:
        output, label: (B,), float64; 0 in a row that does not count.
        scenario: (B,), int64; 0 in a row that does not count.
        used: (B,), float64, 1 in a row that counts, else 0.
        weight: (B,), float64; 0 in a row that does not count.
    """

    output: Tensor
    label: Tensor
    scenario: Tensor
    used: Tensor
    weight: Tensor

    def sums(self, group: Tensor, num_groups: int, columns: Sequence[Tensor]) -> Tensor:
        """Returns the sums of columns (B,) by group, (num_groups, number of columns)."""
        number = torch.arange(len(columns), device=group.device).unsqueeze(1)
        index, values = number * num_groups + group, torch.stack(list(columns))
        sums = values.new_zeros(len(columns) * num_groups)
        return sums.index_add_(0, index.flatten(), values.flatten()).view(-1, num_groups).T


class StreamingMetrics(ABC):
    """Metrics of a stream of rows, overall and per scenario.

    The state is on the device of the rows: `update` adds to it and reads nothing back. `counts` may
    be summed over ranks, saved and restored. Rows of weight 0 and rows without the label (NaN) do
    not count. Rows with an invalid value are counted in `faults`, and `check` refuses them.

    Shape:
        counts: (S, ...), float64.
        faults: (3,), int64, rows with an invalid output, label and scenario.
    """

    output_name: ClassVar[str]
    label_rule: ClassVar[str]

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts
        self.faults = torch.zeros(3, dtype=torch.int64, device=counts.device)

    def merge(self, counts: Tensor) -> None:
        """Adds the counts of another rank or of a checkpoint.

        Raises:
            ValueError: their shape differs: they are for other scenarios or bins.
        """
        if counts.shape != self.counts.shape:
            raise ValueError(
                f"metrics to merge must have counts of the shape {tuple(self.counts.shape)}, "
                f"scenarios first; got {tuple(counts.shape)}. Start new metrics instead."
            )
        self.counts += counts.to(self.counts.device)

    def reset(self) -> None:
        """Removes all rows; `counts` stays the same tensor."""
        self.counts.zero_()
        self.faults.zero_()

    def check(self) -> None:
        """Refuses rows with invalid values; waits for the device.

        Raises:
            ValueError: an output is not finite, a label has another value than its kind allows, or
                a scenario is unknown.
        """
        rules = ("a finite number", self.label_rule, f"0..{len(self.counts) - 1}")
        names = (self.output_name, "label", "scenario")
        for name, rule, rows in zip(names, rules, self.faults.tolist(), strict=True):
            if rows:
                raise ValueError(f"{name} must be {rule} in every row; it is not in {rows} rows.")

    def compute(self, names: Sequence[str]) -> ScenarioMetrics:
        """Returns the metrics of the rows so far; `names` are the scenarios' in order of ids.

        Raises:
            ValueError: see `check`.
        """
        self.check()
        counts: Floats = self.counts.cpu().numpy()
        scenarios = zip(names, counts, strict=True)
        return ScenarioMetrics(
            self._metrics(counts.sum(axis=0)),
            {name: self._metrics(of_scenario) for name, of_scenario in scenarios},
        )

    def update(
        self, output: Tensor, label: Tensor, scenario: Tensor, weight: Tensor | None = None
    ) -> None:
        """Adds rows.

        Shape:
            output: (B,), logits of a binary label, scores of a regression label.
            label: (B,), NaN where it is missing.
            scenario: (B,), int64 in [0, S).
            weight: (B,); None means all 1.
        """
        weight = torch.ones_like(output) if weight is None else weight
        counted = (weight > 0) & ~torch.isnan(label)
        is_known = (scenario >= 0) & (scenario < len(self.counts))
        is_valid = torch.stack([torch.isfinite(output), self._is_valid(label), is_known])
        self.faults += (counted & ~is_valid).sum(1)
        used = counted & is_valid.all(0)
        output, label, scenario, weight = (
            torch.where(used, values, 0) for values in (output, label, scenario, weight)
        )
        columns = output.double(), label.double(), scenario, used.double(), weight.double()
        self._add(CountedRows(*columns))

    @abstractmethod
    def _is_valid(self, label: Tensor) -> Tensor: ...

    @abstractmethod
    def _add(self, rows: CountedRows) -> None: ...

    @abstractmethod
    def _metrics(self, counts: Floats) -> Metrics: ...


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
        >>> logit, label = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([0.0, 0.0, 1.0])
        >>> feed.update(logit, label, torch.zeros(3, dtype=torch.int64))
        >>> feed.compute(["feed"]).all.auc
        1.0
    """

    output_name, label_rule = "logit", "0 or 1"

    def __init__(
        self, num_scenarios: int, bins: int = 8192, device: torch.device | None = None
    ) -> None:
        if num_scenarios < 1 or bins < 2:
            raise ValueError(
                "num_scenarios must be at least 1 and bins at least 2; "
                f"got num_scenarios={num_scenarios}, bins={bins}."
            )
        self.bins = bins
        shape = (num_scenarios, 2, bins + NUM_SUMS)
        super().__init__(torch.zeros(shape, dtype=torch.float64, device=device))

    def _is_valid(self, label: Tensor) -> Tensor:
        return (label == 0) | (label == 1)

    def _add(self, rows: CountedRows) -> None:
        z, clicked, weight = rows.output, rows.label == 1, rows.weight
        group = rows.scenario * 2 + clicked
        position = (z + LOGIT_RANGE) * (self.bins / (2 * LOGIT_RANGE))
        bin_of = position.clamp(0, self.bins - 1).long()
        self.counts.view(-1).index_add_(0, group * self.counts.shape[-1] + bin_of, weight)
        loss = _softplus(z)
        score = torch.exp(z - loss)
        loss = loss - torch.where(clicked, z, 0)
        columns = (rows.used, weight, weight * loss, weight * score)
        sums = rows.sums(group, 2 * len(self.counts), columns)
        self.counts[:, :, self.bins :] += sums.reshape(-1, 2, NUM_SUMS)

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
        >>> score, label = torch.tensor([3.0, 5.0]), torch.tensor([3.0, 1.0])
        >>> feed.update(score, label, torch.zeros(2, dtype=torch.int64))
        >>> feed.compute(["feed"]).all.mae
        2.0
    """

    output_name, label_rule = "score", "a finite number"

    def __init__(self, num_scenarios: int, device: torch.device | None = None) -> None:
        if num_scenarios < 1:
            raise ValueError(f"num_scenarios must be at least 1; got {num_scenarios}.")
        shape = (num_scenarios, REGRESSION_SUMS)
        super().__init__(torch.zeros(shape, dtype=torch.float64, device=device))

    def _is_valid(self, label: Tensor) -> Tensor:
        return torch.isfinite(label)

    def _add(self, rows: CountedRows) -> None:
        score, label, w = rows.output, rows.label, rows.weight
        error = (score - label).abs()
        columns = (rows.used, w, w * error, w * error.square(), w * score, w * label)
        self.counts += rows.sums(rows.scenario, len(self.counts), columns)

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


def _softplus(z: Tensor) -> Tensor:
    """Returns log(1 + e^z); on a CPU by NumPy, whose last digit differs from torch's."""
    if z.device.type == "cpu":
        return torch.from_numpy(np.logaddexp(0.0, z.numpy()))
    return torch.logaddexp(z.new_zeros(()), z)
