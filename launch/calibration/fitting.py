"""Fits calibration maps per scenario: isotonic regression or Platt's logistic regression."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from msrec.launch.calibration.calibration_file import (
    IsotonicMap,
    LabelCalibration,
    Method,
    PlattMap,
    ScoreMap,
)
from msrec.model.calibration import PLATT_EPS

MIN_ROWS = 1000
"""Rows below which a scenario gets the map of all rows."""
Array = NDArray[Any]


def fit_label(
    score: Array,
    label: Array,
    weight: Array,
    scenario: Array,
    names: Sequence[str],
    method: Method,
) -> LabelCalibration:
    """Fits the maps of a binary label: of all rows, and of each scenario with enough rows.

    Shape:
        score: (N,), in [0, 1].
        label: (N,), 0 or 1, or NaN where it is missing; such rows do not count.
        weight: (N,), at least 0; rows of weight 0 do not count.
        scenario: (N,), index into `names`.

    Raises:
        ValueError: all rows that count have the same label.
    """
    used = (weight > 0) & ~np.isnan(label)
    score, label, weight, scenario = (c[used] for c in (score, label, weight, scenario))
    if reason := _reason_against(label, 2):
        raise ValueError(f"a label must be 0 in some rows and 1 in others; found {reason}.")
    maps: dict[str, ScoreMap] = {}
    fallbacks = {}
    for number, name in enumerate(names):
        mine = scenario == number
        if reason := _reason_against(label[mine], MIN_ROWS):
            fallbacks[name] = reason
        else:
            maps[name] = fit_map(score[mine], label[mine], weight[mine], method)
    whole = fit_map(score, label, weight, method)
    return LabelCalibration(all=whole, scenarios=maps, fallbacks=fallbacks)


def _reason_against(label: Array, min_rows: int) -> str | None:
    """Returns why rows are too few to fit a map on; None if they are enough."""
    rows, positives = len(label), int((label == 1).sum())
    if rows < min_rows:
        return f"{rows:,} rows, fewer than {min_rows:,}"
    return None if 0 < positives < rows else f"{rows:,} rows, all with label {label[0]:.0f}"


def fit_map(score: Array, label: Array, weight: Array, method: Method) -> ScoreMap:
    """Fits one map on rows of both labels.

    The isotonic map stays between 1 / (N + 2) and 1 minus it, so that no probability is 0 or 1.

    Source:
        Isotonic: Zadrozny and Elkan, KDD 2002. Platt: Platt 1999, on the logit.
    """
    rows, positives = len(label), int((label == 1).sum())
    x = score.astype(np.float64)
    if method == "platt":
        z = logit(np.clip(x, PLATT_EPS, 1 - PLATT_EPS))[:, np.newaxis]
        fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(z, label == 1, weight)
        slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
        return PlattMap(rows=rows, positives=positives, a=slope, b=intercept)
    lowest = 1 / (rows + 2)
    regression = IsotonicRegression(y_min=lowest, y_max=1 - lowest, out_of_bounds="clip")
    regression.fit(x, label, weight)
    knots = (regression.X_thresholds_.tolist(), regression.y_thresholds_.tolist())
    return IsotonicMap(rows=rows, positives=positives, x=knots[0], y=knots[1])
