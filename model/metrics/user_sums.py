"""Sums per user from which all exact metrics follow, for all users and for resamples of them."""

from typing import NamedTuple

import numpy as np

from msrec.model.metrics.definitions import Array, Bools, Floats, Ints, loss_metrics
from msrec.model.metrics.ranking import (
    RankContributions,
    UserRankings,
    rank_contributions,
    user_rankings,
)

EPS = float(np.finfo(np.float64).eps)
"""Probabilities are clipped to [EPS, 1 - EPS] inside the logarithm, as scikit-learn does."""
SUMS = (
    *("negatives", "positives", "rejected", "clicked"),
    *("beaten", "wins", "precision", "shift", "loss", "score"),
    *("users", "left_out", "impressions", "auc_of_rows", "auc_of_users"),
    *("ranked", "ndcg", "recall"),
)
"""Columns of a table of sums. First line: rows and weights of both labels. Second line: weighted
contributions of negatives and positives to AUC, to average precision, log loss and mean score.
Third line: users with both labels and without; weights and AUCs of the former. Fourth line: users
with a positive, and their NDCG and recall."""
BINS = 10
"""Bins of the calibration error, of equal weight, as in the report's reliability diagram."""


class UserSums(NamedTuple):
    """Sums of one group of rows, per block of users with rows in the group.

    Shape:
        blocks: (n,), rising.
        table: (n, len(SUMS) + BINS). The last columns are sums of weight * (score - label) in each
            bin of scores.
    """

    blocks: Ints
    table: Floats


def user_sums(
    score: Array, label: Bools, weight: Floats | None, user: Array, block_of: Ints, k: int
) -> UserSums:
    """Sums the contributions of the users of each block to the metrics of one group of rows.

    Shape:
        score: (N,), rising.
        label: (N,).
        weight: (N,), above 0; None means all 1.
        user: (N,), uint32 codes.
        block_of: (U,), block of each user code.
        k: ranks of NDCG and recall, at least 1.
    """
    has_rows = np.zeros(int(block_of.max(initial=-1)) + 1, np.bool_)
    has_rows[block_of[user]] = True
    index_of = (np.cumsum(has_rows) - 1)[block_of]
    blocks = np.flatnonzero(has_rows)
    table = _Table(len(blocks))
    for part in rank_contributions(score, label, weight, BINS):
        rows = part.rows
        weights = None if weight is None else weight[rows]
        table.add_rows(part, index_of[user[rows]], score[rows], label[rows], weights)
    for rankings in user_rankings(score, label, weight, user, k):
        table.add_users(rankings, index_of[rankings.user])
    return UserSums(blocks, table.sums)


class _Table:
    """Table of `UserSums`, to which rows and users are added."""

    def __init__(self, num_blocks: int) -> None:
        self.sums = np.zeros((num_blocks, len(SUMS) + BINS))

    def add_rows(
        self,
        part: RankContributions,
        block: Ints,
        score: Array,
        label: Bools,
        weight: Floats | None,
    ) -> None:
        """Adds rows; `block` (n,) is the line of each row in the table."""
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

    def add_users(self, rankings: UserRankings, block: Ints) -> None:
        """Adds users; `block` (n,) is the line of each user in the table."""
        has_auc, is_ranked = ~np.isnan(rankings.auc), ~np.isnan(rankings.ndcg)
        auc, weight = rankings.auc[has_auc], rankings.weight[has_auc]
        self._add(("left_out", "users"), 2 * block + has_auc)
        self._add(("impressions",), block[has_auc], weight)
        self._add(("auc_of_rows",), block[has_auc], auc * weight)
        self._add(("auc_of_users",), block[has_auc], auc)
        self._add(("ranked",), block[is_ranked])
        self._add(("ndcg",), block[is_ranked], rankings.ndcg[is_ranked])
        self._add(("recall",), block[is_ranked], rankings.recall[is_ranked])

    def _add(self, names: tuple[str, ...], key: Ints, values: Array | None = None) -> None:
        """Adds sums of values (counts, if None) by key = line * len(names) + index of the name."""
        sums = np.bincount(key, values, len(self.sums) * len(names)).reshape(-1, len(names))
        for i, name in enumerate(names):
            self.sums[:, SUMS.index(name)] += sums[:, i]


def metric_values(sums: Floats, total: Floats) -> dict[str, Floats]:
    """Returns metrics from sums over all users, a resample, or all users but one; NaN if undefined.

    All but AUC and average precision are exact. Those two are exact at `sums = total` and first
    order around it, because rows are ranked among the rows of `total`.

    Shape:
        sums: (..., len(SUMS) + BINS).
        total: (len(SUMS) + BINS,), the sums of all users.
        returns: (...) each.
    """
    s = {name: sums[..., i] for i, name in enumerate(SUMS)}
    clicked, rejected, wins = (total[SUMS.index(name)] for name in ("clicked", "rejected", "wins"))
    with np.errstate(invalid="ignore", divide="ignore"):
        by_positives = s["wins"] / s["clicked"] / rejected
        by_negatives = s["beaten"] / s["rejected"] / clicked
        return {
            **loss_metrics(s["clicked"] + s["rejected"], s["clicked"], s["loss"], s["score"]),
            "auc": 0.5 * (by_positives + by_negatives) - 0.5 * (wins / clicked / rejected),
            "average_precision": (s["precision"] + s["shift"]) / s["clicked"],
            "calibration_error": np.abs(calibration_gaps(sums)).sum(axis=-1),
            "gauc": s["auc_of_rows"] / s["impressions"],
            "gauc_by_user": s["auc_of_users"] / s["users"],
            "ndcg": s["ndcg"] / s["ranked"],
            "recall": s["recall"] / s["ranked"],
        }


def calibration_gaps(sums: Floats) -> Floats:
    """Returns mean score minus mean label of each bin, times its share of weight: (..., BINS)."""
    weight = sums[..., SUMS.index("clicked")] + sums[..., SUMS.index("rejected")]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., len(SUMS) :] / weight[..., np.newaxis])


def _weighted(values: Array, weight: Floats | None) -> Array:
    return values if weight is None else values * weight
