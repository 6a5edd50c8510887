"""What each user adds to each metric: sums from which metrics and their uncertainty follow."""

from typing import NamedTuple

import numpy as np

from msrec.model.metrics.definitions import loss_values
from msrec.model.metrics.ranking import (
    Array,
    Bools,
    Floats,
    Ints,
    Placements,
    Ranked,
    placements,
    rank_users,
)

EPS = float(np.finfo(np.float64).eps)
"""Probabilities are clipped to [EPS, 1 - EPS] inside the logarithm, as scikit-learn does."""
SUMS = (
    *("negatives", "positives", "rejected", "clicked"),
    *("beaten", "wins", "precision", "shift", "loss", "score"),
    *("users", "left_out", "impressions", "auc_of_rows", "auc_of_users"),
    *("ranked", "ndcg", "recall"),
)
"""Rows and weights of both labels; weighted parts in AUC, average precision, log loss and mean
score; users with both labels and without, of the former their weights and AUCs; users with a
positive and their rankings."""
BINS = 10
"""Groups of equal weight, by score, of the calibration error: those of the report's picture."""


class Sums(NamedTuple):
    """The sums of one group of rows, for each block of users that has rows in it.

    Shape:
        blocks: (n,), rising.
        table: (n, len(SUMS) + BINS); the last columns are of weight * (score - label) in each bin
            of scores.
    """

    blocks: Ints
    table: Floats


def group_sums(
    score: Array, label: Bools, weight: Floats | None, user: Array, block_of: Ints, k: int
) -> Sums:
    """Sum what the users of each block add to the metrics of one group of rows.

    Shape:
        score: (N,), rising.
        label: (N,).
        weight: (N,), above 0; None: all 1.
        user: (N,), uint32 codes.
        block_of: (U,), the block of each code.
        k: places of NDCG and recall, at least 1.
    """
    seen = np.zeros(int(block_of.max(initial=-1)) + 1, np.bool_)
    seen[block_of[user]] = True
    place = (np.cumsum(seen) - 1)[block_of]
    blocks = np.flatnonzero(seen)
    adding = _Adding(len(blocks))
    for part in placements(score, label, weight, BINS):
        rows = part.rows
        weights = None if weight is None else weight[rows]
        adding.add_rows(part, place[user[rows]], score[rows], label[rows], weights)
    for ranked in rank_users(score, label, weight, user, k):
        adding.add_users(ranked, place[ranked.user])
    return Sums(blocks, adding.table)


class _Adding:
    """The table of `group_sums` while rows and users are added, some at a time."""

    def __init__(self, num_blocks: int) -> None:
        self.table = np.zeros((num_blocks, len(SUMS) + BINS))

    def add_rows(
        self, part: Placements, block: Ints, score: Array, label: Bools, weight: Floats | None
    ) -> None:
        """Add rows of the blocks (n,)."""
        said = score.astype(np.float64)
        clipped = np.clip(said, EPS, 1 - EPS)
        loss = -np.log(np.where(label, clipped, 1 - clipped))
        by_label = 2 * block + label
        self._add(("negatives", "positives"), by_label)
        self._add(("rejected", "clicked"), by_label, weight)
        self._add(("beaten", "wins"), by_label, _weighted(part.wins, weight))
        self._add(("precision",), block[label], _weighted(part.precision, weight)[label])
        self._add(("shift",), block, _weighted(part.shift, weight))
        self._add(("loss",), block, _weighted(loss, weight))
        self._add(("score",), block, _weighted(said, weight))
        gap = _weighted(said - label, weight)
        by_bin = np.bincount(block * BINS + part.bins, gap, len(self.table) * BINS)
        self.table[:, len(SUMS) :] += by_bin.reshape(-1, BINS)

    def add_users(self, ranked: Ranked, block: Ints) -> None:
        """Add users of the blocks (n,)."""
        valid, relevant = ~np.isnan(ranked.auc), ~np.isnan(ranked.ndcg)
        auc, weight = ranked.auc[valid], ranked.weight[valid]
        self._add(("left_out", "users"), 2 * block + valid)
        self._add(("impressions",), block[valid], weight)
        self._add(("auc_of_rows",), block[valid], auc * weight)
        self._add(("auc_of_users",), block[valid], auc)
        self._add(("ranked",), block[relevant])
        self._add(("ndcg",), block[relevant], ranked.ndcg[relevant])
        self._add(("recall",), block[relevant], ranked.recall[relevant])

    def _add(self, names: tuple[str, ...], key: Ints, values: Array | None = None) -> None:
        """Sum values (counts, without them) by `block * len(names) + which name`."""
        found = np.bincount(key, values, len(self.table) * len(names)).reshape(-1, len(names))
        for at, name in enumerate(names):
            self.table[:, SUMS.index(name)] += found[:, at]


def metric_values(sums: Floats, total: Floats) -> dict[str, Floats]:
    """Metrics from sums: of all users, of a resample, or of all users but one; NaN if undefined.

    All but AUC and average precision are exact. Those two are exact at `sums = total`, and to first
    order around it, for rows are placed among the rows of `total`.

    Shape:
        sums: (..., len(SUMS) + BINS).
        total: (len(SUMS) + BINS,), the sums of all users.
        returns: (...) each.
    """
    s = {name: sums[..., at] for at, name in enumerate(SUMS)}
    clicked, rejected, wins = (total[SUMS.index(name)] for name in ("clicked", "rejected", "wins"))
    with np.errstate(invalid="ignore", divide="ignore"):
        won = s["wins"] / s["clicked"] / rejected
        lost = s["beaten"] / s["rejected"] / clicked
        return {
            **loss_values(s["clicked"] + s["rejected"], s["clicked"], s["loss"], s["score"]),
            "auc": 0.5 * (won + lost) - 0.5 * (wins / clicked / rejected),
            "average_precision": (s["precision"] + s["shift"]) / s["clicked"],
            "calibration_error": np.abs(calibration_gaps(sums)).sum(axis=-1),
            "gauc": s["auc_of_rows"] / s["impressions"],
            "gauc_by_user": s["auc_of_users"] / s["users"],
            "ndcg": s["ndcg"] / s["ranked"],
            "recall": s["recall"] / s["ranked"],
        }


def calibration_gaps(sums: Floats) -> Floats:
    """Mean score less mean label in each bin, times the bin's share of the weight: (..., BINS)."""
    weight = sums[..., SUMS.index("clicked")] + sums[..., SUMS.index("rejected")]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., len(SUMS) :] / weight[..., np.newaxis])


def _weighted(values: Array, weight: Floats | None) -> Array:
    return values if weight is None else values * weight
