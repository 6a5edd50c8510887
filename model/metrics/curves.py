"""Curves of scored rows: distribution of scores, reliability diagram, ROC."""

import numpy as np

from msrec.model.metrics.ranking import Array, Floats, score_order

Points = tuple[list[float], list[float]]
"""x and y."""


def score_shares(score: Array, label: Array, bins: int = 40) -> tuple[Floats, dict[str, Floats]]:
    """Edges of equal bins up to the largest score, and the share of each label's rows in them."""
    edges = np.linspace(0.0, max(float(score.max(initial=0.0)), 1e-9), bins + 1)
    shares = {}
    for name, chosen in (("positive", label > 0.5), ("negative", label <= 0.5)):
        counts = np.histogram(score[chosen], edges)[0]
        shares[name] = counts / max(int(chosen.sum()), 1)
    return edges, shares


def reliability(score: Array, label: Array, weight: Array, bins: int = 10) -> Points:
    """Mean score and share of clicks of rows in `bins` groups of equal size, sorted by score.

    Example:
        >>> ones = np.ones(4)
        >>> reliability(np.array([0.1, 0.3, 0.7, 0.9]), np.array([0, 0, 1, 1]), ones, bins=2)
        ([0.2, 0.8], [0.0, 1.0])
    """
    score, label, weight = _sorted(score, label, weight)
    groups = [group for group in np.array_split(np.arange(len(score)), bins) if len(group)]
    said = [float(np.average(score[g], weights=weight[g])) for g in groups]
    seen = [float(np.average(label[g], weights=weight[g])) for g in groups]
    return said, seen


def roc(score: Array, label: Array, weight: Array, points: int = 200) -> Points:
    """False and true positive rates from the highest score down, thinned to about `points`.

    Empty where there is one class only.
    """
    score, label, weight = (column[::-1] for column in _sorted(score, label, weight))
    if not len(score):
        return [], []
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    true, false = np.cumsum(weight * label)[ends], np.cumsum(weight * (1 - label))[ends]
    if true[-1] <= 0 or false[-1] <= 0:
        return [], []
    true, false = true / true[-1], false / false[-1]
    wanted = np.linspace(0, 2, points)
    kept = np.unique(np.searchsorted(true + false, wanted).clip(0, len(true) - 1))
    return [0.0, *false[kept].tolist()], [0.0, *true[kept].tolist()]


def _sorted(score: Array, label: Array, weight: Array) -> tuple[Floats, Floats, Floats]:
    """Rows that count, by rising score, in float64."""
    used = weight > 0
    score, label, weight = score[used], label[used], weight[used]
    order = score_order(score)
    return score[order].astype(float), label[order].astype(float), weight[order].astype(float)
