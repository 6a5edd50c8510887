"""Exact metrics of scored rows with intervals, for all rows and for any groups of them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from msrec.model.metrics.bootstrap import Bootstrap, user_blocks
from msrec.model.metrics.definitions import (
    Array,
    Bools,
    Floats,
    Ints,
    Metrics,
    ScenarioMetrics,
    check_values,
    defined,
)
from msrec.model.metrics.ranking import score_order, stable_order
from msrec.model.metrics.user_sums import SUMS, UserSums, metric_values, user_sums

COUNTS = {
    "positives": "positives",
    "users": "users",
    "users_left_out": "left_out",
    "users_ranked": "ranked",
}
"""Field of `Metrics` -> column of the sums, for counts."""
MAX_GROUPS = 1 << 16


class MetricOptions(NamedTuple):
    """Options of exact metrics.

    k: ranks of NDCG and recall.
    resamples: bootstrap resamples of the users, for intervals; 0 computes none.
    seed: of the resamples.
    """

    k: int = 10
    resamples: int = 1000
    seed: int = 0


NO_INTERVALS = MetricOptions(resamples=0)


class Grouping(NamedTuple):
    """Names of groups, and the group (N,) of each row as an index into them."""

    names: Sequence[str]
    ids: Array


def exact_metrics(
    score: Array,
    label: Array,
    scenario: Array,
    user: Array,
    names: Sequence[str],
    weight: Array | None = None,
    options: MetricOptions = NO_INTERVALS,
) -> ScenarioMetrics:
    """Computes all metrics in float64, with exact ties, of all rows and of each scenario.

    Shape:
        score, label, user, weight: as in `sort_rows`.
        scenario: (N,), int in [0, len(names)), at most 65,536 scenarios.

    Raises:
        ValueError: a value is out of its range; the message names the row.

    Source:
        Equal to scikit-learn's roc_auc_score, average_precision_score and log_loss, with
        sample_weight where given, and to its ndcg_score.

    Example:
        >>> zeros = np.zeros(4, np.int64)
        >>> scores = np.array([0.1, 0.4, 0.4, 0.8])
        >>> exact_metrics(scores, np.array([0, 0, 1, 1]), zeros, zeros, ["feed"]).all.auc
        0.875
    """
    rows = sort_rows(score, label, user, weight, options)
    return ScenarioMetrics(rows.metrics(), rows.metrics_by(Grouping(names, scenario)))


@dataclass(frozen=True)
class SortedRows:
    """Rows with a weight above 0, by rising score, ready for the metrics of any groups.

    Shape:
        order: (n,), int64, positions among the rows as given.
        score, label, user, weight: (n,), in this order; weight None means all 1.
        block_of: (U,), block of each user code.
    """

    order: Ints
    score: Array
    label: Bools
    user: NDArray[np.uint32]
    weight: Floats | None
    block_of: Ints
    options: MetricOptions

    @cached_property
    def bootstrap(self) -> Bootstrap | None:
        """Resamples for any groups of these rows."""
        num_blocks = int(self.block_of.max(initial=-1)) + 1
        if not self.options.resamples or not num_blocks:
            return None
        return Bootstrap.draw(num_blocks, self.options.resamples, self.options.seed)

    def sums(self, rows: Ints | None = None) -> UserSums:
        """Returns `user_sums` of all rows or of some, given by rising score."""
        score, label, weight, user = self.score, self.label, self.weight, self.user
        if rows is not None:
            score, label, user = score[rows], label[rows], user[rows]
            weight = None if weight is None else weight[rows]
        return user_sums(score, label, weight, user, self.block_of, self.options.k)

    def rows_of(self, grouping: Grouping) -> list[Ints]:
        """Returns the rows of each group, by rising score.

        Raises:
            ValueError: a row has an unknown group, or there are more than 65,536 groups.
        """
        last = len(grouping.names) - 1
        if last >= MAX_GROUPS:
            raise ValueError(f"there must be at most {MAX_GROUPS:,} groups; got {last + 1:,}.")
        ids = grouping.ids
        check_values("scenario", ids, (ids >= 0) & (ids <= last), f"0..{last}")
        key = ids.astype(np.uint16)[self.order]
        edges = np.concatenate([[0], np.cumsum(np.bincount(key, minlength=last + 1))])
        order = stable_order(key)
        return [order[start:stop] for start, stop in itertools.pairwise(edges)]

    def metrics(self) -> Metrics:
        """Computes the metrics of all rows."""
        return group_metrics(self.sums(), self.bootstrap)

    def metrics_by(self, grouping: Grouping) -> dict[str, Metrics]:
        """Computes the metrics of each group, by its name."""
        groups = zip(grouping.names, self.rows_of(grouping), strict=True)
        return {name: group_metrics(self.sums(rows), self.bootstrap) for name, rows in groups}


def sort_rows(
    score: Array,
    label: Array,
    user: Array,
    weight: Array | None = None,
    options: MetricOptions = NO_INTERVALS,
) -> SortedRows:
    """Checks rows and sorts them by score.

    Shape:
        score: (N,), float32 or float64 probabilities in [0, 1].
        label: (N,), 0 or 1, any dtype.
        user: (N,), int in [0, 2^32), equal for the rows of a user.
        weight: (N,), at least 0; rows of weight 0 are left out. None means all 1.

    Raises:
        ValueError: a value is out of its range; the message names the row.
    """
    check_values("score", score, (score >= 0) & (score <= 1), "between 0 and 1")
    check_values("label", label, (label == 0) | (label == 1), "0 or 1")
    check_values("user", user, (user >= 0) & (user < 1 << 32), "a code in [0, 2^32)")
    order, weights = score_order(score), None
    if weight is not None:
        is_valid = (weight >= 0) & np.isfinite(weight)
        check_values("weight", weight, is_valid, "at least 0 and finite")
        if not (weight > 0).all():
            order = order[weight[order] > 0]
        if not (weight == 1).all():
            weights = weight[order].astype(np.float64)
    code = user[order]
    if code.max(initial=0) >= max(2 * len(user), 1 << 16):  # codes with gaps
        code = np.unique(code, return_inverse=True)[1]
    return SortedRows(
        order=order,
        score=score[order],
        label=label[order] == 1,
        user=code.astype(np.uint32),
        weight=weights,
        block_of=user_blocks(int(code.max(initial=-1)) + 1, options.seed),
        options=options,
    )


def group_metrics(sums: UserSums, bootstrap: Bootstrap | None) -> Metrics:
    """Computes the metrics of a group of rows, with intervals if there is a bootstrap."""
    total = sums.table.sum(axis=0)
    counts = {name: int(total[SUMS.index(name)]) for name in COUNTS.values()}
    rows = int(total[SUMS.index("negatives")]) + counts["positives"]
    if not rows:
        return Metrics(0, 0)
    return Metrics(
        rows=rows,
        **defined(metric_values(total, total)),
        **{field: counts[name] for field, name in COUNTS.items()},
        intervals={} if bootstrap is None else bootstrap.intervals(sums),
    )
