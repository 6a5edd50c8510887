"""Definitions of the metrics: names, meanings, and formulas of those that are sums of losses."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msrec.data.labels import LabelKind

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Metrics:
    """Metrics of one group of rows; None for one that is undefined, such as AUC with one class.

    Of every label:

    rows: rows with the label and a weight above 0; the others do not count.
    missing: rows with a weight above 0, but without the label; None if there are none.
    calibration: mean score / mean label; above 1, the label is overestimated.
    intervals: metric -> its 95 % interval over users, see `bootstrap.Bootstrap`.

    Of a binary label:

    positives: rows with label 1.
    auc: P(score of a positive > score of a negative); a tie counts half.
    average_precision: mean over positives of the share of positives among the rows with the same or
        a higher score; also called PR-AUC.
    log_loss: mean of -log p(label), natural logarithm.
    ne: log_loss / (-q log q - (1 - q) log(1 - q)), where q is the mean label; below 1 is better
        than predicting q for all rows (He et al., ADKDD 2014).
    rig: 1 - ne, the relative information gain.
    calibration_error: expected calibration error. Rows are sorted by score into ten bins of equal
        weight, tied scores together: mean over rows of |mean score - mean label| of the row's bin.
    gauc: mean over users of the AUC of the user's rows, weighted by the weight of the rows.
    gauc_by_user: the same mean, unweighted.
    users, users_left_out: users in `gauc`, and users left out for having one class only. Of a
        regression label, `users` are all users with rows.
    ndcg: mean over users with a positive of NDCG@k of the user's rows by score.
    recall: mean over the same users of the share of their positives among their first k rows.
    users_ranked: number of users with a positive.
    gauc_by_impression, ndcg_by_impression: `gauc` and `ndcg` over impressions (lists of items that
        were shown together to a user) in place of users, if the rows have impressions.
    impressions, impressions_left_out: impressions in `gauc_by_impression`, and those left out for
        having one class only.

    Of a regression label, in its own unit where it has one:

    mae: mean of |score - label|.
    rmse: square root of the mean of (score - label)^2.
    spearman: correlation of the ranks of scores and labels; ties have the mean of their ranks.
    quantile_calibration_error: as `calibration_error`, with the label's values for clicks.
    """

    rows: int
    positives: int | None = None
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
    gauc_by_impression: float | None = None
    ndcg_by_impression: float | None = None
    impressions: int | None = None
    impressions_left_out: int | None = None
    mae: float | None = None
    rmse: float | None = None
    spearman: float | None = None
    quantile_calibration_error: float | None = None
    missing: int | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)


_METRIC_NAME = re.compile(
    r"(?P<metric>\w+)(/label=(?P<label>.*?))?/(all|scenario=(?P<scenario>.*))", re.DOTALL
)
METRIC_NAMES = tuple(f.name for f in fields(Metrics) if f.name != "intervals")
HIGHER_IS_BETTER = (
    *("auc", "average_precision", "rig", "gauc", "gauc_by_user", "ndcg", "recall"),
    *("gauc_by_impression", "ndcg_by_impression", "spearman"),
)
LOWER_IS_BETTER = (
    *("log_loss", "ne", "calibration_error", "mae", "rmse", "quantile_calibration_error"),
)
DIRECTION = dict.fromkeys(HIGHER_IS_BETTER, 1) | dict.fromkeys(LOWER_IS_BETTER, -1)
"""Metric -> 1 if higher is better, -1 if lower is better."""
COMBINED_PREFIX = "combined_"
"""Start of the names of metrics by which the combined score ranks the rows of a label."""
OF_IMPRESSIONS = ("gauc_by_impression", "ndcg_by_impression")
OF_REGRESSION = ("mae", "rmse", "spearman", "quantile_calibration_error")
"""Metrics of regression labels; those that have a direction and are not here are of binary ones."""
MAIN_METRIC: dict[LabelKind, str] = {"binary": "auc", "regression": "rmse"}
"""Kind of a label -> metric that is compared if none is named."""


@dataclass(frozen=True)
class ScenarioMetrics:
    """Metrics of all rows, and of the rows of each scenario by its name."""

    all: Metrics
    scenarios: dict[str, Metrics]

    def named(self, label: str | None = None) -> dict[str, float]:
        """Returns every defined value by its name in logs: `auc/all`, `ne/scenario=feed`."""
        groups: list[tuple[str | None, Metrics]] = [(None, self.all), *self.scenarios.items()]
        return {
            metric_name(name, scenario, label): float(value)
            for scenario, metrics in groups
            for name in METRIC_NAMES
            if (value := getattr(metrics, name)) is not None
        }


def metric_name(metric: str, scenario: str | None = None, label: str | None = None) -> str:
    """Returns the name of a metric in logs and curves; `parse_metric_name` is its inverse.

    Args:
        metric: field of `Metrics`.
        scenario: name of the scenario; None means all rows.
        label: name of the label; None means the first label of the dataset.

    Example:
        >>> metric_name("auc"), metric_name("auc", "feed"), metric_name("rmse", label="watch")
        ('auc/all', 'auc/scenario=feed', 'rmse/label=watch/all')
    """
    of_label = metric if label is None else f"{metric}/label={label}"
    return f"{of_label}/all" if scenario is None else f"{of_label}/scenario={scenario}"


class MetricName(NamedTuple):
    """Parts of a metric's name in logs, as the arguments of `metric_name`."""

    metric: str
    scenario: str | None
    label: str | None


def parse_metric_name(name: str) -> MetricName | None:
    """Returns the parts of a name in logs; None for other values, such as `loss`.

    Example:
        >>> parse_metric_name("rmse/label=a/b/scenario=feed")
        MetricName(metric='rmse', scenario='feed', label='a/b')
    """
    match = _METRIC_NAME.fullmatch(name)
    return None if match is None else MetricName(*match.group("metric", "scenario", "label"))


def loss_metrics(weight: Floats, clicked: Floats, loss: Floats, score: Floats) -> dict[str, Floats]:
    """Returns log loss, NE, RIG and calibration from weighted sums over rows; NaN if undefined.

    Shape:
        weight, clicked, loss, score: the same shape. Sums of weight, weight * label, weight * loss
            and weight * score.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        q = clicked / weight
        entropy = -(q * np.log(q) + (1 - q) * np.log(1 - q))
        log_loss = loss / weight
        ne = log_loss / entropy
        calibration = np.where(clicked > 0, score / clicked, np.nan)
    return {"log_loss": log_loss, "ne": ne, "rig": 1 - ne, "calibration": calibration}


def defined(values: Mapping[str, Floats]) -> dict[str, Any]:
    """Returns the values that are defined, as numbers."""
    return {name: float(value) for name, value in values.items() if np.isfinite(value)}


def check_values(name: str, values: Array, valid: Array, requirement: str) -> None:
    """Raises a ValueError that names the first row with an invalid value.

    Shape:
        values: (N,).
        valid: (N,), bool.
    """
    if not valid.all():
        row = int(np.argmin(valid))
        raise ValueError(f"{name} must be {requirement}; got {values[row]} at row {row}.")
