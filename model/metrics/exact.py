"""Exact metrics of scored rows, and how sure they are: of all rows and of any groups of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from msrec.model.metrics.bootstrap import Bootstrap, blocks_of
from msrec.model.metrics.definitions import Metrics, ScenarioMetrics, defined
from msrec.model.metrics.ranking import Array, Bools, Floats, Ints, score_order, stable_order
from msrec.model.metrics.user_sums import SUMS, Sums, group_sums, metric_values

COUNTS = {
    "positives": "positives",
    "users": "users",
    "users_left_out": "left_out",
    "users_ranked": "ranked",
}
"""Field of `Metrics` -> the sum that it is."""


class MetricOptions(NamedTuple):
    """How rows are judged.

    k: places of NDCG and recall.
    resamples: of the users, for intervals; 0 makes none.
    seed: of the resamples.
    """

    k: int = 10
    resamples: int = 1000
    seed: int = 0


class Groups(NamedTuple):
    """Names of groups, and which one each row (N,) is in."""

    names: Sequence[str]
    places: Array


PLAIN = MetricOptions(resamples=0)
"""No intervals."""


def exact_metrics(
    score: Array,
    label: Array,
    scenario: Array,
    user: Array,
    names: Sequence[str],
    weight: Array | None = None,
    judging: MetricOptions = PLAIN,
) -> ScenarioMetrics:
    """All metrics in float64, ties included, of all rows and of each scenario's.

    Shape:
        score, label, user, weight: as of `sort_rows`.
        scenario: (N,), int in [0, len(names)), at most 65,536 scenarios.

    Raises:
        ValueError: a value is out of its range; names the row.

    Source:
        Equal to scikit-learn's roc_auc_score, average_precision_score and log_loss, with
        sample_weight where given, and to its ndcg_score.

    Example:
        >>> zeros = np.zeros(4, np.int64)
        >>> scores = np.array([0.1, 0.4, 0.4, 0.8])
        >>> exact_metrics(scores, np.array([0, 0, 1, 1]), zeros, zeros, ["feed"]).all.auc
        0.875
    """
    rows = sort_rows(score, label, user, weight, judging)
    return ScenarioMetrics(rows.metrics(), rows.metrics_by(Groups(names, scenario)))


@dataclass(frozen=True)
class SortedRows:
    """The rows that count, by rising score, ready to be judged in any groups.

    Shape:
        order: (n,), int64, their places among the rows as given.
        score, label, user, weight: (n,), in this order; weight None: all 1.
        block_of: (U,), the block of each user code.
    """

    order: Ints
    score: Array
    label: Bools
    user: NDArray[np.uint32]
    weight: Floats | None
    block_of: Ints
    judging: MetricOptions

    @cached_property
    def bootstrap(self) -> Bootstrap | None:
        """The resamples for any groups of these rows."""
        num_blocks = int(self.block_of.max(initial=-1)) + 1
        if not self.judging.resamples or not num_blocks:
            return None
        return Bootstrap.draw(num_blocks, self.judging.resamples, self.judging.seed)

    def sums(self, rows: Ints | None = None) -> Sums:
        """As `group_sums`, of all rows or of some, given by rising score."""
        if rows is None:
            columns = (self.score, self.label, self.weight, self.user)
            return group_sums(*columns, self.block_of, self.judging.k)
        weight = None if self.weight is None else self.weight[rows]
        columns = (self.score[rows], self.label[rows], weight, self.user[rows])
        return group_sums(*columns, self.block_of, self.judging.k)

    def rows_of(self, groups: Groups) -> list[Ints]:
        """The rows of each group, by rising score; at most 65,536 groups.

        Raises:
            ValueError: a row has another group.
        """
        last = len(groups.names) - 1
        if last >= 1 << 16:
            raise ValueError(f"there must be at most 65,536 groups; got {last + 1:,}.")
        places = groups.places
        check("scenario", places, (places >= 0) & (places <= last), f"0..{last}")
        key = places.astype(np.uint16)[self.order]
        edges = np.concatenate([[0], np.cumsum(np.bincount(key, minlength=last + 1))])
        order = stable_order(key)
        return [order[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]

    def metrics(self) -> Metrics:
        """Of all rows."""
        return judged(self.sums(), self.bootstrap)

    def metrics_by(self, groups: Groups) -> dict[str, Metrics]:
        """Of each group, by its name."""
        each = zip(groups.names, self.rows_of(groups), strict=True)
        return {name: judged(self.sums(rows), self.bootstrap) for name, rows in each}


def sort_rows(
    score: Array,
    label: Array,
    user: Array,
    weight: Array | None = None,
    judging: MetricOptions = PLAIN,
) -> SortedRows:
    """Check rows and sort them by score.

    Shape:
        score: (N,), float32 or float64 probabilities in [0, 1].
        label: (N,), 0 or 1, any dtype.
        user: (N,), int in [0, 2^32), equal for the rows of a user.
        weight: (N,), at least 0; rows of weight 0 are left out. None: all 1.

    Raises:
        ValueError: a value is out of its range; names the row.
    """
    check("score", score, (score >= 0) & (score <= 1), "between 0 and 1")
    check("label", label, (label == 0) | (label == 1), "0 or 1")
    check("user", user, (user >= 0) & (user < 1 << 32), "a code in [0, 2^32)")
    order, weights = score_order(score), None
    if weight is not None:
        check("weight", weight, (weight >= 0) & np.isfinite(weight), "at least 0 and finite")
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
        block_of=blocks_of(int(code.max(initial=-1)) + 1, judging.seed),
        judging=judging,
    )


def judged(sums: Sums, bootstrap: Bootstrap | None) -> Metrics:
    """The metrics of a group of rows."""
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


def check(what: str, values: Array, good: Bools, must: str) -> None:
    """Refuse values of which some are not good; names the first row."""
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(f"{what} must be {must}; got {values[row]} at row {row}.")
