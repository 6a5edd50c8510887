"""What a click model is judged by, overall and per scenario, computed exactly from predictions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from msrec.launch.ranking import Array, Floats, GroupAucs, Ints, grouped_aucs, stable_order

EPS = float(np.finfo(np.float64).eps)
"""Probabilities are clipped to [EPS, 1 - EPS] inside the logarithm, as scikit-learn does."""
CHUNK = 1 << 20
"""Rows whose logarithms are in memory at once."""


@dataclass(frozen=True)
class Metrics:
    """The metrics of one group of rows; None where one is undefined, as AUC is with one class.

    rows: rows with a weight above 0; the others count nowhere.
    positives: those of them with label 1.
    auc: P(score of a positive > score of a negative), a tie counts half.
    log_loss: mean of -log p(label), natural logarithm.
    ne: log_loss / (-q log q - (1 - q) log(1 - q)), q the mean label; below 1 is better than
        predicting q for all (He et al., ADKDD 2014).
    calibration: mean score / mean label; above 1 is too sure of clicks.
    gauc: mean over users of the user's own AUC, a user counts by impressions.
    gauc_by_user: the same mean, every user counts once.
    users, users_left_out: users in `gauc`, and those left out for having one class only.
    """

    rows: int
    positives: int
    auc: float | None = None
    log_loss: float | None = None
    ne: float | None = None
    calibration: float | None = None
    gauc: float | None = None
    gauc_by_user: float | None = None
    users: int | None = None
    users_left_out: int | None = None


@dataclass(frozen=True)
class ScenarioMetrics:
    """Metrics of all rows, and of each scenario's rows by the scenario's name."""

    all: Metrics
    scenarios: dict[str, Metrics]

    def named(self) -> dict[str, float]:
        """Every defined value by its name, for logs: `auc/all`, `ne/scenario=feed`."""
        groups: list[tuple[str | None, Metrics]] = [(None, self.all), *self.scenarios.items()]
        return {
            metric_name(field.name, scenario): float(value)
            for scenario, metrics in groups
            for field in fields(Metrics)
            if (value := getattr(metrics, field.name)) is not None
        }


def metric_name(metric: str, scenario: str | None = None) -> str:
    """The one place that says how a metric is called in logs and curves.

    Example:
        >>> metric_name("auc"), metric_name("auc", "feed")
        ('auc/all', 'auc/scenario=feed')
    """
    return f"{metric}/all" if scenario is None else f"{metric}/scenario={scenario}"


def exact_metrics(
    score: Array,
    label: Array,
    scenario: Array,
    user: Array,
    names: Sequence[str],
    weight: Array | None = None,
) -> ScenarioMetrics:
    """All metrics in float64, ties included: one sort by score, reused for every grouping.

    Shape:
        score: (N,), float32 or float64 probabilities in [0, 1].
        label: (N,), 0 or 1, any dtype.
        scenario: (N,), int in [0, len(names)), at most 65,536 scenarios.
        user: (N,), int in [0, 2^32), equal for the rows of a user.
        weight: (N,), at least 0; rows of weight 0 are left out. None: all 1.

    Raises:
        ValueError: a value is out of its range; names the row.

    Source:
        Equal to scikit-learn's roc_auc_score and log_loss, with sample_weight where given.

    Example:
        >>> zeros = np.zeros(4, np.int64)
        >>> scores = np.array([0.1, 0.4, 0.4, 0.8])
        >>> exact_metrics(scores, np.array([0, 0, 1, 1]), zeros, zeros, ["feed"]).all.auc
        0.875
    """
    _check("score", score, (score >= 0) & (score <= 1), "between 0 and 1")
    _check("label", label, (label == 0) | (label == 1), "0 or 1")
    _check("scenario", scenario, (scenario >= 0) & (scenario < len(names)), f"0..{len(names) - 1}")
    _check("user", user, (user >= 0) & (user < 1 << 32), "a code in [0, 2^32)")
    if len(names) > 1 << 16:
        raise ValueError(f"there must be at most 65,536 scenarios; got {len(names)}.")
    if weight is not None:
        _check("weight", weight, (weight >= 0) & np.isfinite(weight), "at least 0 and finite")
        keep = weight > 0
        if not keep.all():
            score, label, scenario, user = score[keep], label[keep], scenario[keep], user[keep]
            weight = weight[keep]
    equal = weight is None or bool((weight == 1).all())
    weights = None if equal or weight is None else weight.astype(np.float64)
    rows = _Rows(score, label == 1, scenario.astype(np.uint16), user.astype(np.uint32), weights)
    return _metrics(rows, names)


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
    if not weight:
        return Metrics(rows, positives)
    mean_label = weight_positive / weight
    log_loss = loss / weight
    entropy = -sum(q * np.log(q) for q in (mean_label, 1 - mean_label) if q > 0)
    return Metrics(
        rows=rows,
        positives=positives,
        auc=auc,
        log_loss=float(log_loss),
        ne=float(log_loss / entropy) if entropy > 0 else None,
        calibration=float(score / weight_positive) if weight_positive > 0 else None,
    )


@dataclass(frozen=True)
class _Rows:
    score: Array
    label: NDArray[np.bool_]
    scenario: NDArray[np.uint16]
    user: NDArray[np.uint32]
    weight: Floats | None


def _check(what: str, values: Array, good: NDArray[np.bool_], must: str) -> None:
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(f"{what} must be {must}; got {values[row]} at row {row}.")


def _metrics(rows: _Rows, names: Sequence[str]) -> ScenarioMetrics:
    if not len(rows.score):
        return ScenarioMetrics(Metrics(0, 0), {name: Metrics(0, 0) for name in names})
    sums = _sums(rows, len(names))
    by_score = stable_order(np.abs(rows.score).view(f"u{rows.score.itemsize}"))
    scenario_of, auc_of = _scenario_aucs(rows, by_score)
    gauc_all, gauc_of = _gaucs(rows, by_score, len(names))
    [auc_all] = grouped_aucs(rows.score, rows.label, rows.weight, by_score).auc
    per_scenario = np.full(len(names), np.nan)
    per_scenario[scenario_of] = auc_of
    total = _with(sums.sum(axis=0), auc_all, gauc_all)
    return ScenarioMetrics(
        total,
        {n: _with(sums[s], per_scenario[s], gauc_of[s]) for s, n in enumerate(names)},
    )


def _with(sums: Floats, auc: float, gauc: Floats) -> Metrics:
    rows, positives, *rest = sums.tolist()
    weight, clicked, loss, score = rest
    base = from_sums(int(rows), int(positives), weight, clicked, loss, score, auc=_defined(auc))
    by_rows, by_user, users, left_out = gauc.tolist()
    own = {"gauc": _defined(by_rows), "gauc_by_user": _defined(by_user)}
    counts = {"users": int(users), "users_left_out": int(left_out)}
    return Metrics(**{**base.__dict__, **own, **counts})


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _sums(rows: _Rows, num_scenarios: int) -> Floats:
    """(S, 6): rows, positives, weight, weight of positives, loss, score; the last 4 weighted."""
    sums = np.zeros((num_scenarios, 6))
    for part in _chunks(len(rows.score)):
        label, score = rows.label[part], rows.score[part].astype(np.float64)
        weight = np.ones(len(score)) if rows.weight is None else rows.weight[part]
        clipped = np.clip(score, EPS, 1 - EPS)
        loss = -np.log(np.where(label, clipped, 1 - clipped))
        scenario = rows.scenario[part]
        columns = (np.ones(len(score)), label, weight, weight * label, weight * loss)
        for column, values in enumerate((*columns, weight * score)):
            sums[:, column] += np.bincount(scenario, weights=values, minlength=num_scenarios)
    return sums


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, rows, CHUNK))


def _scenario_aucs(rows: _Rows, by_score: Ints) -> tuple[Ints, Floats]:
    order = stable_order(rows.scenario, by_score)
    group = rows.scenario[order]
    aucs = grouped_aucs(rows.score, rows.label, rows.weight, order, group)
    return group[aucs.last].astype(np.int64), aucs.auc


def _gaucs(rows: _Rows, by_score: Ints, num_scenarios: int) -> tuple[Floats, Floats]:
    """GAUC by rows, by user, users, users left out: of all (4,), per scenario (S, 4)."""
    order = stable_order(rows.user, by_score)
    users = grouped_aucs(rows.score, rows.label, rows.weight, order, rows.user[order])
    overall = _mean_aucs(users, np.zeros(len(users.last), np.int64), 1)[0]
    order = stable_order(rows.scenario, order)
    scenario = rows.scenario[order]
    pair = (scenario.astype(np.uint64) << np.uint64(32)) | rows.user[order]
    pairs = grouped_aucs(rows.score, rows.label, rows.weight, order, pair)
    return overall, _mean_aucs(pairs, scenario[pairs.last].astype(np.int64), num_scenarios)


def _mean_aucs(users: GroupAucs, owner: Ints, num_owners: int) -> Floats:
    valid = ~np.isnan(users.auc)
    auc, impressions = users.auc[valid], (users.positive + users.negative)[valid]

    def total(values: Floats) -> Floats:
        return np.bincount(owner[valid], weights=values, minlength=num_owners).astype(np.float64)

    count = total(np.ones(len(auc)))
    left_out = np.bincount(owner[~valid], minlength=num_owners)
    with np.errstate(invalid="ignore"):
        by_rows, by_user = total(auc * impressions) / total(impressions), total(auc) / count
    return np.stack([by_rows, by_user, count, left_out], axis=1)
