"""Scores of a model's outputs: of each label, calibrated, and combined by a formula."""

import torch
from torch import Tensor, nn

from msrec.model.metrics.combined import CombinedScore
from msrec.model.tasks import TaskScales


class ScoreHead(nn.Module):
    """Turns the outputs of a model into the scores that people read.

    Args:
        scales: of the model's tasks.
        calibration: maps scores (B, T) and scenarios (B,) to calibrated scores; None leaves them.
        combined: formula over the labels' scores; None adds no score.

    Shape:
        outputs: (B, T), float.
        scenario: (B,), int64.
        returns: (B, T), or (B, T + 1) with a formula, float: probabilities, values of regression
            labels in their unit, and the combined score last.
    """

    def __init__(
        self,
        scales: TaskScales,
        calibration: nn.Module | None = None,
        combined: CombinedScore | None = None,
    ) -> None:
        super().__init__()
        self.scales, self.calibration, self.combined = scales, calibration, combined

    @property
    def labels(self) -> list[str]:
        """Names of the labels, in the order of their scores."""
        return [task.name for task in self.scales.tasks]

    def forward(self, outputs: Tensor, scenario: Tensor) -> Tensor:  # noqa: D102
        scores = self.scales.scores(outputs)
        if self.calibration is not None:
            scores = self.calibration(scores, scenario)
        if self.combined is None:
            return scores
        by_label = dict(zip(self.labels, scores.unbind(1), strict=True))
        return torch.cat([scores, self.combined(by_label).unsqueeze(1)], dim=1)
