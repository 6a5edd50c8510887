"""What a click model is judged by: the names, meanings and formulas of the metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Metrics:
    """The metrics of one group of rows; None where one is undefined, as AUC is with one class.

    rows: rows with a weight above 0; the others count nowhere.
    positives: those of them with label 1.
    auc: P(score of a positive > score of a negative), a tie counts half.
    average_precision: mean over positives of the share of positives among the rows that score as
        high or higher; also called PR-AUC.
    log_loss: mean of -log p(label), natural logarithm.
    ne: log_loss / (-q log q - (1 - q) log(1 - q)), q the mean label; below 1 is better than
        predicting q for all (He et al., ADKDD 2014).
    rig: 1 - ne, the relative information gain.
    calibration: mean score / mean label; above 1 is too sure of clicks.
    calibration_error: rows in ten groups of equal weight by score, tied scores together: mean over
        rows of |mean score - mean label| in the row's group (expected calibration error).
    gauc: mean over users of the user's own AUC, a user counts by impressions.
    gauc_by_user: the same mean, every user counts once.
    users, users_left_out: users in `gauc`, and those left out for having one class only.
    ndcg: mean over users with a positive of NDCG@k of the user's rows by score.
    recall: mean over the same users of the share of their positives among their first k rows.
    users_ranked: those users.
    intervals: metric -> its 95 % interval over users, see `intervals.Bootstrap`.
    """

    rows: int
    positives: int
    auc: float | None = None
    average_precision: float | None = None
    log_loss: float | None = None
    ne: float | None = None
    rig: float | None = None
    calibration: float | None = None
    calibration_error: float | None = None
    gauc: float | None = None
    gauc_by_user: float | None = None
    users: int | None = None
    users_left_out: int | None = None
    ndcg: float | None = None
    recall: float | None = None
    users_ranked: int | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)


VALUES = tuple(found.name for found in fields(Metrics) if found.name != "intervals")


@dataclass(frozen=True)
class ScenarioMetrics:
    """Metrics of all rows, and of each scenario's rows by the scenario's name."""

    all: Metrics
    scenarios: dict[str, Metrics]

    def named(self) -> dict[str, float]:
        """Every defined value by its name, for logs: `auc/all`, `ne/scenario=feed`."""
        groups: list[tuple[str | None, Metrics]] = [(None, self.all), *self.scenarios.items()]
        return {
            metric_name(name, scenario): float(value)
            for scenario, metrics in groups
            for name in VALUES
            if (value := getattr(metrics, name)) is not None
        }


def metric_name(metric: str, scenario: str | None = None) -> str:
    """The one place that says how a metric is called in logs and curves.

    Example:
        >>> metric_name("auc"), metric_name("auc", "feed")
        ('auc/all', 'auc/scenario=feed')
    """
    return f"{metric}/all" if scenario is None else f"{metric}/scenario={scenario}"


def loss_values(weight: Floats, clicked: Floats, loss: Floats, score: Floats) -> dict[str, Floats]:
    """Log loss, NE, RIG and calibration from weighted sums over rows; NaN where undefined.

    Shape:
        weight, clicked, loss, score: any one shape. Sums of weight, weight * label, weight * loss
            and weight * score.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        q = clicked / weight
        entropy = -(q * np.log(q) + (1 - q) * np.log(1 - q))
        log_loss = loss / weight
        ne = log_loss / entropy
        calibration = np.where(clicked > 0, score / clicked, np.nan)
    return {"log_loss": log_loss, "ne": ne, "rig": 1 - ne, "calibration": calibration}


def from_sums(
    rows: int,
    positives: int,
    weight: float,
    weight_positive: float,
    loss: float,
    score: float,
    auc: float | None,
) -> Metrics:
    """Metrics that follow from weighted sums over a group of rows, and its AUC."""
    sums = (np.asarray(value, np.float64) for value in (weight, weight_positive, loss, score))
    return Metrics(rows, positives, auc=auc, **defined(loss_values(*sums)))


def defined(values: Mapping[str, Floats]) -> dict[str, Any]:
    """Single values without those that are undefined."""
    return {name: float(value) for name, value in values.items() if np.isfinite(value)}
