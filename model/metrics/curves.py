"""Curves of scored rows for a report: score distribution, reliability diagram, ROC."""

import numpy as np

from msrec.model.metrics.definitions import Array, Floats
from msrec.model.metrics.ranking import score_order

Curve = tuple[list[float], list[float]]
"""x and y."""


def score_distribution(
    score: Array, label: Array, bins: int = 40
) -> tuple[Floats, dict[str, Floats]]:
    """Returns the edges of equal bins up to the largest score, and each label's share per bin."""
    edges = np.linspace(0.0, max(float(score.max(initial=0.0)), 1e-9), bins + 1)
    shares = {}
    for name, rows in (("positive", label > 0.5), ("negative", label <= 0.5)):
        counts = np.histogram(score[rows], edges)[0]
        shares[name] = counts / max(int(rows.sum()), 1)
    return edges, shares


def value_distribution(
    score: Array, label: Array, bins: int = 40
) -> tuple[Floats, dict[str, Floats]]:
    """Returns the edges of equal bins, and the shares of scores and of labels in each.

    The bins end at the 99 % quantile of the labels; the last one also holds all larger values.
    """
    label = label[~np.isnan(label)]
    low = min(float(score.min(initial=0.0)), float(label.min(initial=0.0)))
    high = float(np.quantile(label, 0.99)) if len(label) else low
    edges = np.linspace(low, max(high, low + 1e-9), bins + 1)
    shares = {}
    for name, values in (("scores", score), ("labels", label)):
        counts = np.histogram(values.clip(max=edges[-1]), edges)[0]
        shares[name] = counts / max(len(values), 1)
    return edges, shares


def reliability_curve(score: Array, label: Array, weight: Array, bins: int = 10) -> Curve:
    """Returns mean score and mean label in bins with equal numbers of rows, sorted by score.

    Example:
        >>> scores, labels = np.array([0.1, 0.3, 0.7, 0.9]), np.array([0, 0, 1, 1])
        >>> reliability_curve(scores, labels, np.ones(4), bins=2)
        ([0.2, 0.8], [0.0, 1.0])
    """
    score, label, weight = _sorted(score, label, weight)
    groups = [group for group in np.array_split(np.arange(len(score)), bins) if len(group)]
    predicted = [float(np.average(score[g], weights=weight[g])) for g in groups]
    observed = [float(np.average(label[g], weights=weight[g])) for g in groups]
    return predicted, observed


def roc_curve(score: Array, label: Array, weight: Array, points: int = 200) -> Curve:
    """Returns false and true positive rates from the highest score down, thinned to `points`.

    Empty if there is one class only.
    """
    score, label, weight = (column[::-1] for column in _sorted(score, label, weight))
    if not len(score):
        return [], []
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    true, false = np.cumsum(weight * label)[ends], np.cumsum(weight * (1 - label))[ends]
    if true[-1] <= 0 or false[-1] <= 0:
        return [], []
    true, false = true / true[-1], false / false[-1]
    # Even steps of true + false, from 0 to 2.
    kept = np.searchsorted(true + false, np.linspace(0, 2, points)).clip(0, len(true) - 1)
    kept = np.unique(kept)
    return [0.0, *false[kept].tolist()], [0.0, *true[kept].tolist()]


def _sorted(score: Array, label: Array, weight: Array) -> tuple[Floats, Floats, Floats]:
    """Returns the rows with a label and a weight above 0, by rising score, in float64."""
    used = (weight > 0) & ~np.isnan(label)
    score, label, weight = score[used], label[used], weight[used]
    order = score_order(score)
    return score[order].astype(float), label[order].astype(float), weight[order].astype(float)
