"""Exact metrics of scored rows with intervals, for all rows and for any groups of them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msrec.model.metrics.bootstrap import Bootstrap, user_blocks, user_hashes
from msrec.model.metrics.definitions import (
    Array,
    Floats,
    Ints,
    Metrics,
    ScenarioMetrics,
    check_values,
    defined,
)
from msrec.model.metrics.ranking import score_order, stable_order
from msrec.model.metrics.regression import regression_sums
from msrec.model.metrics.user_sums import RankingSums, UserSums, binary_sums

ScoreKind = Literal["binary", "regression", "ranking"]
"""Probabilities of a binary label, values of a regression label, or any numbers by which the rows
of a binary label are ranked."""
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
        missing: (m,), int64, positions of the rows with a weight above 0, but without a label.
        score, label, user, weight, impression: (n,), in this order; weight None means all 1.
        block_of: (U,), block of each user code.
    """

    kind: ScoreKind
    order: Ints
    missing: Ints
    score: Array
    label: Array
    user: NDArray[np.uint32]
    weight: Floats | None
    impression: NDArray[np.uint32] | None
    block_of: Ints
    options: MetricOptions

    @cached_property
    def bootstrap(self) -> Bootstrap | None:
        """Resamples for any groups of these rows."""
        return Bootstrap.draw(len(self.block_of), self.options.resamples, self.options.seed)

    def sums(self, rows: Ints | None = None) -> UserSums:
        """Returns the sums of all rows or of some, given by rising score."""
        chosen = slice(None) if rows is None else rows
        score, label, user = self.score[chosen], self.label[chosen], self.user[chosen]
        weight = None if self.weight is None else self.weight[chosen]
        if self.kind == "regression":
            return regression_sums(score, label, weight, user, self.block_of)
        impression = None if self.impression is None else self.impression[chosen]
        k = self.options.k
        sums = binary_sums(score, label, weight, user, self.block_of, k, impression)
        return sums if self.kind == "binary" else RankingSums(sums.blocks, sums.table)

    def rows_of(self, grouping: Grouping) -> list[Ints]:
        """Returns the rows of each group, by rising score.

        Raises:
            ValueError: a row has an unknown group, or there are more than 65,536 groups.
        """
        groups = group_numbers(grouping.ids, len(grouping.names))
        return rows_by_group(groups[self.order], len(grouping.names))

    def metrics(self) -> Metrics:
        """Computes the metrics of all rows."""
        return group_metrics(self.sums(), self.bootstrap, len(self.missing))

    def metrics_by(self, grouping: Grouping) -> dict[str, Metrics]:
        """Computes the metrics of each group, by its name."""
        rows = self.rows_of(grouping)
        ids = grouping.ids[self.missing].astype(np.uint16)
        missing = np.bincount(ids, minlength=len(rows)).tolist()
        groups = zip(grouping.names, rows, missing, strict=True)
        return {name: group_metrics(self.sums(r), self.bootstrap, m) for name, r, m in groups}


def group_numbers(ids: Array, num_groups: int) -> NDArray[np.uint16]:
    """Returns the group of each row, (N,).

    Raises:
        ValueError: a row has an unknown group, or there are more than 65,536 groups.
    """
    if num_groups > MAX_GROUPS:
        raise ValueError(f"there must be at most {MAX_GROUPS:,} groups; got {num_groups:,}.")
    last = num_groups - 1
    check_values("scenario", ids, (ids >= 0) & (ids <= last), f"0..{last}")
    return ids.astype(np.uint16)


def rows_by_group(group: NDArray[np.uint16], num_groups: int) -> list[Ints]:
    """Returns the positions of the rows (n,) of each group, in their order."""
    edges = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=num_groups))])
    order = stable_order(group)
    return [order[start:stop] for start, stop in itertools.pairwise(edges)]


def sort_rows(
    score: Array,
    label: Array,
    user: Array,
    weight: Array | None = None,
    options: MetricOptions = NO_INTERVALS,
    *,
    kind: ScoreKind = "binary",
    impression: Array | None = None,
    user_ids: NDArray[np.uint64] | None = None,
) -> SortedRows:
    """Checks rows and sorts them by score.

    Shape:
        score: (N,), float32 or float64; probabilities in [0, 1] for `kind` binary, else finite.
        label: (N,), NaN where it is missing: such rows are counted, but are in no metric. 0 or 1,
            any dtype; for `kind` regression any finite number.
        user: (N,), int in [0, 2^32), equal for the rows of a user.
        weight: (N,), at least 0; rows of weight 0 are left out. None means all 1.
        impression: (N,), int, equal for the rows of a user that were shown together; the same
            number with another user is another impression. None means unknown.
        user_ids: (U,), id of each code, which decides the user's block of the bootstrap; None means
            the code itself.

    Raises:
        ValueError: a value is out of its range; the message names the row.
    """
    is_missing = np.isnan(label)
    check_rows(kind, score, label, weight)
    check_values("user", user, (user >= 0) & (user < 1 << 32), "a code in [0, 2^32)")
    order, weights = score_order(score), None
    missing = np.flatnonzero(is_missing)
    if len(missing):
        order = order[~is_missing[order]]
    if weight is not None:
        if not (weight > 0).all():
            order, missing = order[weight[order] > 0], missing[weight[missing] > 0]
        if not (weight == 1).all():
            weights = weight[order].astype(np.float64)
    users, code = _distinct(user[order].astype(np.int64, copy=False))
    hashes = user_hashes(users if user_ids is None else user_ids[users], options.seed)
    labels = label[order]
    return SortedRows(
        kind=kind,
        order=order,
        missing=missing,
        score=score[order],
        label=labels if kind == "regression" else labels == 1,
        user=code.astype(np.uint32),
        weight=weights,
        impression=None if impression is None else impression_codes(impression[order], code),
        block_of=user_blocks(hashes),
        options=options,
    )


def check_rows(kind: ScoreKind, score: Array, label: Array, weight: Array | None) -> None:
    """Raises a ValueError that names the first row with a value out of its range."""
    is_missing = np.isnan(label)
    if kind == "binary":
        check_values("score", score, (score >= 0) & (score <= 1), "between 0 and 1")
    else:
        check_values("score", score, np.isfinite(score), "a finite number")
    if kind == "regression":
        check_values("label", label, is_missing | np.isfinite(label), "a finite number")
    else:
        check_values("label", label, is_missing | (label == 0) | (label == 1), "0 or 1")
    if weight is not None:
        is_valid = (weight >= 0) & np.isfinite(weight)
        check_values("weight", weight, is_valid, "at least 0 and finite")


def _distinct(user: Array) -> tuple[Array, Array]:
    """Returns the distinct users (U,), rising, and the place of each row's user among them."""
    if user.max(initial=0) >= max(2 * len(user), 1 << 16):  # numbers with gaps
        return np.unique(user, return_inverse=True)
    has_rows = np.zeros(int(user.max(initial=-1)) + 1, np.bool_)
    has_rows[user] = True
    users = np.flatnonzero(has_rows)
    return users, user if len(users) == len(has_rows) else (np.cumsum(has_rows) - 1)[user]


def impression_codes(impression: Array, user: Array) -> NDArray[np.uint32]:
    """Returns a code from 0 for each pair of user and impression (n,)."""
    numbers, code = np.unique(impression, return_inverse=True)
    pair = user.astype(np.int64) * len(numbers) + code
    return np.asarray(np.unique(pair, return_inverse=True)[1], np.uint32)


def group_metrics(sums: UserSums, bootstrap: Bootstrap | None, missing: int = 0) -> Metrics:
    """Computes the metrics of a group of rows, with intervals if there is a bootstrap.

    Args:
        sums: of the rows with a label.
        bootstrap: resamples of the users.
        missing: number of rows without the label.
    """
    counts = sums.counts()
    if not counts["rows"]:
        return Metrics(0, counts.get("positives"), missing=missing or None)
    total = sums.table.sum(axis=0)
    return Metrics(
        **counts,
        **defined(sums.values(total, total)),
        missing=missing or None,
        intervals={} if bootstrap is None else bootstrap.intervals(sums),
    )
