"""Sums per user from which all metrics of a group of rows follow, and those of a binary label."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from msrec.model.metrics.definitions import Array, Bools, Floats, Ints, loss_metrics
from msrec.model.metrics.ranking import (
    GroupRankings,
    RankContributions,
    RankState,
    group_rankings,
    rank_contributions,
)

EPS = float(np.finfo(np.float64).eps)
"""Probabilities are clipped to [EPS, 1 - EPS] inside the logarithm, as scikit-learn does."""
SUMS = (
    *("negatives", "positives", "rejected", "clicked"),
    *("beaten", "wins", "precision", "shift", "loss", "score"),
    *("users_left_out", "users", "user_rows", "auc_of_rows", "auc_of_users"),
    *("users_ranked", "ndcg", "recall"),
    *("impressions_left_out", "impressions", "impression_rows", "auc_of_impression_rows"),
    *("impressions_ranked", "ndcg_of_impressions"),
)
"""Columns of a table of sums of a binary label. First line: rows and weights of both labels. Second
line: weighted contributions of negatives and positives to AUC, to average precision, log loss and
mean score. Third line: users with one label only and with both; weights and AUCs of the latter.
Fourth line: users with a positive, and their NDCG and recall. The rest: the same of impressions."""
BINS = 10
"""Bins of the calibration error, of equal weight, as in the report's reliability diagram."""
COUNTS = ("positives", "users", "users_left_out", "users_ranked")
IMPRESSION_COUNTS = ("impressions", "impressions_left_out")
LOSSES = ("log_loss", "ne", "rig", "calibration", "calibration_error")
"""Metrics of a binary label that need a probability; all others depend on the ranking only."""


@dataclass(frozen=True)
class UserSums(ABC):
    """Sums of one group of rows, per block of users with rows in the group.

    Shape:
        blocks: (n,), rising.
        table: (n, columns).
    """

    blocks: Ints
    table: Floats

    @abstractmethod
    def values(self, sums: Floats, total: Floats) -> dict[str, Floats]:
        """Returns metrics from sums over all users, a resample, or all but one; NaN if undefined.

        Metrics of ranks are exact at `sums = total` and first order around it, because rows are
        ranked among the rows of `total`. All others are exact.

        Shape:
            sums: (..., columns).
            total: (columns,), the sums of all users.
            returns: (...) each.
        """

    @abstractmethod
    def calibration_gaps(self, sums: Floats) -> Floats:
        """Returns mean score minus mean label of each bin, times its share of weight.

        Shape:
            sums: (..., columns).
            returns: (..., BINS).
        """

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Returns the counts of the group by field of `Metrics`."""


class BinarySums(UserSums):
    """Sums of a binary label; the columns are `SUMS` and, of each bin, weight * (score - label)."""

    def values(self, sums: Floats, total: Floats) -> dict[str, Floats]:
        """Returns all metrics; AUC and average precision are metrics of ranks.

        Metrics of impressions are left out if no row has one.
        """
        s = {name: sums[..., i] for i, name in enumerate(SUMS)}
        clicked, rejected, wins = (
            total[SUMS.index(name)] for name in ("clicked", "rejected", "wins")
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            by_positives = s["wins"] / s["clicked"] / rejected
            by_negatives = s["beaten"] / s["rejected"] / clicked
            of_impressions = {
                "gauc_by_impression": s["auc_of_impression_rows"] / s["impression_rows"],
                "ndcg_by_impression": s["ndcg_of_impressions"] / s["impressions_ranked"],
            }
            return {
                **loss_metrics(s["clicked"] + s["rejected"], s["clicked"], s["loss"], s["score"]),
                "auc": 0.5 * (by_positives + by_negatives) - 0.5 * (wins / clicked / rejected),
                "average_precision": (s["precision"] + s["shift"]) / s["clicked"],
                "calibration_error": np.abs(self.calibration_gaps(sums)).sum(axis=-1),
                "gauc": s["auc_of_rows"] / s["user_rows"],
                "gauc_by_user": s["auc_of_users"] / s["users"],
                "ndcg": s["ndcg"] / s["users_ranked"],
                "recall": s["recall"] / s["users_ranked"],
                **(of_impressions if has_impressions(total) else {}),
            }

    def calibration_gaps(self, sums: Floats) -> Floats:
        """See `UserSums`."""
        weight = sums[..., SUMS.index("clicked")] + sums[..., SUMS.index("rejected")]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(sums[..., len(SUMS) :] / weight[..., np.newaxis])

    def counts(self) -> dict[str, int]:
        """See `UserSums`; impressions are counted if there are any."""
        total = self.table.sum(axis=0)
        names = (*COUNTS, *(IMPRESSION_COUNTS if has_impressions(total) else ()))
        rows = int(total[SUMS.index("negatives")] + total[SUMS.index("positives")])
        return {"rows": rows} | {name: int(total[SUMS.index(name)]) for name in names}


class RankingSums(BinarySums):
    """Sums of a binary label whose rows are ranked by a score that is no probability."""

    def values(self, sums: Floats, total: Floats) -> dict[str, Floats]:
        """Returns the metrics that depend on the ranking only."""
        values = super().values(sums, total)
        return {name: value for name, value in values.items() if name not in LOSSES}


def has_impressions(total: Floats) -> bool:
    """Returns whether the rows of some sums have impressions."""
    return bool(sum(total[SUMS.index(name)] for name in IMPRESSION_COUNTS) > 0)


def lines_of_users(user: Array, block_of: Ints) -> tuple[Ints, Ints]:
    """Returns the blocks with rows, (n,), and the line of each user code among them, (U,)."""
    has_rows = np.zeros(int(block_of.max(initial=-1)) + 1, np.bool_)
    has_rows[block_of[user]] = True
    return np.flatnonzero(has_rows), (np.cumsum(has_rows) - 1)[block_of]


def binary_sums(
    score: Array,
    label: Bools,
    weight: Floats | None,
    user: Array,
    block_of: Ints,
    k: int,
    impression: Array | None = None,
) -> BinarySums:
    """Sums the contributions of the users of each block to the metrics of one group of rows.

    Shape:
        score: (N,), rising.
        label: (N,).
        weight: (N,), above 0; None means all 1.
        user: (N,), uint32 codes.
        block_of: (U,), block of each user code.
        k: ranks of NDCG and recall, at least 1.
        impression: (N,), uint32 codes; all rows of one have the same user.
    """
    blocks, line_of = lines_of_users(user, block_of)
    table = BinaryTable(len(blocks))
    table.add_ranks(score, label, weight, line_of[user], RankState.start(label, weight))
    table.add_users(score, label, weight, user, line_of, k, impression)
    return BinarySums(blocks, table.sums)


class BinaryTable:
    """Table of `BinarySums` of a group, to which rows are added in any number of portions.

    Every row is added twice: to the ranks with all rows of near scores, portion by portion with
    rising scores, and to the users with all rows of its user.
    """

    def __init__(self, num_blocks: int) -> None:
        self.sums = np.zeros((num_blocks, len(SUMS) + BINS))

    def add_ranks(
        self, score: Array, label: Bools, weight: Floats | None, line: Ints, state: RankState
    ) -> None:
        """Adds rows with scores above those of earlier portions.

        Shape:
            score, label, weight: as in `binary_sums`.
            line: (N,), the line of each row's block in the table.
        """
        for part in rank_contributions(score, label, weight, BINS, state):
            rows = part.rows
            weights = None if weight is None else weight[rows]
            self._add_rows(part, line[rows], score[rows], label[rows], weights)

    def add_users(
        self,
        score: Array,
        label: Bools,
        weight: Floats | None,
        user: Array,
        line_of: Ints,
        k: int,
        impression: Array | None,
    ) -> None:
        """Adds all rows of some users, by rising score.

        Shape:
            score, label, weight, user, impression: as in `binary_sums`.
            line_of: (U,), the line of each user code in the table.
        """
        for of_users in group_rankings(score, label, weight, user, k):
            self._add_users(of_users, line_of[of_users.group])
        if impression is not None and len(impression):
            line_of_impression = np.zeros(int(impression.max()) + 1, np.int64)
            line_of_impression[impression] = line_of[user]
            for of_impressions in group_rankings(score, label, weight, impression, k):
                self._add_impressions(of_impressions, line_of_impression[of_impressions.group])

    def _add_rows(
        self,
        part: RankContributions,
        block: Ints,
        score: Array,
        label: Bools,
        weight: Floats | None,
    ) -> None:
        """Adds contributions; `block` (n,) is the line of each row in the table."""
        p = score.astype(np.float64)
        clipped = np.clip(p, EPS, 1 - EPS)
        loss = -np.log(np.where(label, clipped, 1 - clipped))
        by_label = 2 * block + label
        self._add(("negatives", "positives"), by_label)
        self._add(("rejected", "clicked"), by_label, weight)
        self._add(("beaten", "wins"), by_label, _weighted(part.wins, weight))
        self._add(("precision",), block[label], _weighted(part.precision, weight)[label])
        self._add(("shift",), block, _weighted(part.shift, weight))
        self._add(("loss",), block, _weighted(loss, weight))
        self._add(("score",), block, _weighted(p, weight))
        gap = _weighted(p - label, weight)
        by_bin = np.bincount(block * BINS + part.bins, gap, len(self.sums) * BINS)
        self.sums[:, len(SUMS) :] += by_bin.reshape(-1, BINS)

    def _add_users(self, users: GroupRankings, block: Ints) -> None:
        """Adds users; `block` (n,) is the line of each user in the table."""
        has_auc, is_ranked = ~np.isnan(users.auc), ~np.isnan(users.ndcg)
        auc, weight = users.auc[has_auc], users.weight[has_auc]
        self._add(("users_left_out", "users"), 2 * block + has_auc)
        self._add(("user_rows",), block[has_auc], weight)
        self._add(("auc_of_rows",), block[has_auc], auc * weight)
        self._add(("auc_of_users",), block[has_auc], auc)
        self._add(("users_ranked",), block[is_ranked])
        self._add(("ndcg",), block[is_ranked], users.ndcg[is_ranked])
        self._add(("recall",), block[is_ranked], users.recall[is_ranked])

    def _add_impressions(self, impressions: GroupRankings, block: Ints) -> None:
        """Adds impressions; `block` (n,) is the line of each one's user in the table."""
        has_auc, is_ranked = ~np.isnan(impressions.auc), ~np.isnan(impressions.ndcg)
        auc, weight = impressions.auc[has_auc], impressions.weight[has_auc]
        self._add(("impressions_left_out", "impressions"), 2 * block + has_auc)
        self._add(("impression_rows",), block[has_auc], weight)
        self._add(("auc_of_impression_rows",), block[has_auc], auc * weight)
        self._add(("impressions_ranked",), block[is_ranked])
        self._add(("ndcg_of_impressions",), block[is_ranked], impressions.ndcg[is_ranked])

    def _add(self, names: tuple[str, ...], key: Ints, values: Array | None = None) -> None:
        """Adds sums of values (counts, if None) by key = line * len(names) + index of the name."""
        sums = np.bincount(key, values, len(self.sums) * len(names)).reshape(-1, len(names))
        for i, name in enumerate(names):
            self.sums[:, SUMS.index(name)] += sums[:, i]


def _weighted(values: Array, weight: Floats | None) -> Array:
    return values if weight is None else values * weight
