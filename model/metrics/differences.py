"""Paired differences of two runs in the metrics of the same rows, with corrected p-values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from msrec.model.metrics.bootstrap import CONFIDENCE, MIN_USERS, NORMS, jackknife_error
from msrec.model.metrics.definitions import DIRECTION, MAIN_METRIC
from msrec.model.metrics.user_sums import UserSums

COMPARED = tuple(metric for metric in DIRECTION if metric not in NORMS)
"""Metrics that can be compared."""
ALL = "all"
"""Name of the group of all rows."""
ZERO = 1e-12
"""Differences up to here are rounding errors."""


@dataclass(frozen=True)
class Difference:
    """Difference of two runs in one metric on the same rows; undefined values are None.

    `p` belongs to the two-sided t-test of a difference of 0. `p_holm` is the same value, corrected
    for the number of scenarios and labels; the group of all rows has none if there is one label.
    """

    rows: int
    users: int
    first: float | None
    second: float | None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None

    def outcome(self, metric: str) -> str:
        """Returns whether the second run is `better`, `worse` or `undecided` in the metric."""
        p = self.p if self.p_holm is None else self.p_holm
        if p is None or self.difference is None or p >= 1 - CONFIDENCE:
            return "undecided"
        return "better" if DIRECTION[metric] * self.difference > 0 else "worse"


Differences = dict[str, dict[str, Difference]]
"""Metric -> "all" or a scenario -> difference."""


def differences(first: UserSums, second: UserSums) -> dict[str, Difference]:
    """Returns the difference of each metric over one group of rows, from the sums of both runs."""
    totals = [sums.table.sum(axis=0) for sums in (first, second)]
    values = [
        sums.values(total, total) for sums, total in zip((first, second), totals, strict=True)
    ]
    without_one = [
        sums.values(total - sums.table, total)
        for sums, total in zip((first, second), totals, strict=True)
    ]
    counts = first.counts()
    num_blocks = len(first.blocks)
    by_metric = {}
    for metric in (metric for metric in COMPARED if metric in values[0]):
        one, two = (float(value[metric]) for value in values)
        fields: dict[str, Any] = {
            "rows": counts["rows"],
            "users": counts["users"] + counts.get("users_left_out", 0),
            "first": one if np.isfinite(one) else None,
            "second": two if np.isfinite(two) else None,
        }
        jackknifed = without_one[1][metric] - without_one[0][metric]
        if num_blocks >= MIN_USERS and np.isfinite(one) and np.isfinite(jackknifed).all():
            fields |= _t_test(two - one, jackknife_error(jackknifed), num_blocks - 1)
        elif np.isfinite(two - one):
            fields["difference"] = two - one
        by_metric[metric] = Difference(**fields)
    return by_metric


def _t_test(difference: float, error: float, degrees: int) -> dict[str, Any]:
    half_width = float(stdtrit(degrees, 0.5 + CONFIDENCE / 2)) * error
    if abs(difference) <= ZERO and error <= ZERO:  # both runs rank the rows alike
        p = 1.0
    elif error:
        p = float(2 * stdtr(degrees, -abs(difference) / error))
    else:
        p = 0.0
    interval = (difference - half_width, difference + half_width)
    return {"difference": difference, "interval": interval, "p": p}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns p-values corrected for their number; None stays None and does not count.

    Example:
        >>> holm([0.01, None, 0.04, 0.03])
        [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return corrected


def correct(by_label: dict[str, Differences]) -> dict[str, Differences]:
    """Returns the differences with p-values corrected by Holm's method.

    A family of tests is a metric in all scenarios of all labels. The main metrics, AUC of binary
    and RMSE of regression labels, are one family. The differences over all rows are another
    question: with several labels they are a family of their own, with one label they stay as they
    are.
    """
    families: dict[tuple[str, bool], list[tuple[str, str, str]]] = {}
    for label, metrics in by_label.items():
        for metric, groups in metrics.items():
            family = "main" if metric in MAIN_METRIC.values() else metric
            for group in groups:
                cells = families.setdefault((family, group == ALL), [])
                cells.append((label, metric, group))
    corrected = {
        label: {metric: dict(groups) for metric, groups in metrics.items()}
        for label, metrics in by_label.items()
    }
    for (_, is_whole), cells in families.items():
        if is_whole and len(cells) == 1:
            continue
        p_values = holm([by_label[label][metric][group].p for label, metric, group in cells])
        for (label, metric, group), p in zip(cells, p_values, strict=True):
            cell = by_label[label][metric][group]
            corrected[label][metric][group] = replace(cell, p_holm=p)
    return corrected
