"""Calibration of probabilities per scenario and label: piecewise linear or logistic."""

from collections.abc import Sequence

import torch
from torch import nn

PLATT_EPS = 1e-7
"""Probabilities are clipped to [PLATT_EPS, 1 - PLATT_EPS] before their logit is taken."""
Knots = tuple[Sequence[float], Sequence[float]]
"""Scores, rising, and the calibrated probability of each."""


class IsotonicCalibration(nn.Module):
    """Piecewise linear map of probabilities, constant beyond its first and last knot.

    All maps are in one list of knots, the scores of map number m = scenario * T + label shifted by
    2 m, so that a single binary search finds the knots of every row.

    Args:
        maps: (S, T) knots; None keeps the score as it is.

    Shape:
        score: (B, T), float; probabilities in [0, 1] where there is a map.
        scenario: (B,), int64 in [0, S).
        returns: (B, T), as `score`.

    Example:
        >>> halved = IsotonicCalibration([[([0.2, 0.6], [0.1, 0.3])]])
        >>> halved(torch.tensor([[0.1], [0.4], [0.9]]), torch.zeros(3, dtype=torch.int64))
        tensor([[0.1000],
                [0.2000],
                [0.3000]])
    """

    shifted: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    has_map: torch.Tensor

    def __init__(self, maps: Sequence[Sequence[Knots | None]]) -> None:
        super().__init__()
        x, y, number = [], [], []
        for m, knots in enumerate(knots for row in maps for knots in row):
            xs, ys = knots or ([0.0, 1.0], [0.0, 1.0])
            # One knot below 0 and one above 1, so that every score is between two knots.
            x += [-0.5, *xs, 1.5]
            y += [ys[0], *ys, ys[-1]]
            number += [m] * (len(xs) + 2)
        self.register_buffer("x", torch.tensor(x, dtype=torch.float64))
        self.register_buffer("y", torch.tensor(y, dtype=torch.float64))
        self.register_buffer("shifted", self.x + 2.0 * torch.tensor(number))
        has_map = [[knots is not None for knots in row] for row in maps]
        self.register_buffer("has_map", torch.tensor(has_map))

    def forward(self, score: torch.Tensor, scenario: torch.Tensor) -> torch.Tensor:  # noqa: D102
        num_labels = score.shape[1]
        number = scenario[:, None] * num_labels + torch.arange(num_labels, device=score.device)
        p = score.double()
        has_map = self.has_map[scenario]
        place = torch.where(has_map, p, 0.0)
        right = torch.searchsorted(self.shifted, (place + 2.0 * number).contiguous(), right=True)
        left = right - 1
        share = (place - self.x[left]) / (self.x[right] - self.x[left])
        mapped = self.y[left] + share * (self.y[right] - self.y[left])
        return torch.where(has_map, mapped, p).to(score.dtype)


class PlattCalibration(nn.Module):
    """Logistic map of probabilities: sigmoid(a * logit(p) + b).

    Args:
        maps: (S, T) pairs of a and b; None keeps the score as it is.

    Shape:
        score: (B, T), float; probabilities in [0, 1] where there is a map.
        scenario: (B,), int64 in [0, S).
        returns: (B, T), as `score`.

    Source:
        Platt, Advances in Large Margin Classifiers 1999, without his change of the labels.
    """

    a: torch.Tensor
    b: torch.Tensor
    has_map: torch.Tensor

    def __init__(self, maps: Sequence[Sequence[tuple[float, float] | None]]) -> None:
        super().__init__()
        pairs = [[pair or (1.0, 0.0) for pair in row] for row in maps]
        a_and_b = torch.tensor(pairs, dtype=torch.float64)
        self.register_buffer("a", a_and_b[:, :, 0].contiguous())
        self.register_buffer("b", a_and_b[:, :, 1].contiguous())
        has_map = [[pair is not None for pair in row] for row in maps]
        self.register_buffer("has_map", torch.tensor(has_map))

    def forward(self, score: torch.Tensor, scenario: torch.Tensor) -> torch.Tensor:  # noqa: D102
        has_map, p = self.has_map[scenario], score.double()
        clipped = torch.where(has_map, p, 0.5).clamp(PLATT_EPS, 1 - PLATT_EPS)
        logit = self.a[scenario] * torch.logit(clipped) + self.b[scenario]
        return torch.where(has_map, torch.sigmoid(logit), p).to(score.dtype)
