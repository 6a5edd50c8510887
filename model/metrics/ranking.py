"""Rankings of rows by score: contributions to AUC and average precision, and metrics per user.

Impressions are ranked as users are.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from msrec.model.metrics.definitions import Array, Bools, Floats, Ints

CHUNK = 1 << 18
"""Rows that are processed at once, to bound memory."""


def score_order(score: Array) -> Ints:
    """Returns the order of rows (N,) by rising score; ties keep their order."""
    if score.dtype != np.float32 or score.min(initial=0) < 0:
        return np.argsort(score, kind="stable")
    # The bits of non-negative floats have the order of the floats.
    return stable_order(np.abs(score).view(np.uint32))


def stable_order(keys: Array) -> Ints:
    """Returns the order of rows (N,) by rising keys, uint16 or uint32; ties keep their order.

    numpy sorts 16-bit keys by counting, and sorts 64-bit integers several times as fast as it finds
    the order of 32-bit ones.
    """
    if keys.dtype == np.uint16:
        return np.argsort(keys, kind="stable")
    assert len(keys) < 1 << 32
    key_and_row = keys.astype(np.uint64) << np.uint64(32)
    key_and_row |= np.arange(len(keys), dtype=np.uint64)
    key_and_row.sort()
    key_and_row &= np.uint64(0xFFFFFFFF)
    return key_and_row.view(np.int64)


class RankContributions(NamedTuple):
    """Contributions of n consecutive rows to AUC and average precision of their group.

    Shape:
        rows: which of the N rows these n are.
        wins: (n,). For a positive: twice the weight of the negatives with a lower score, a tie
            counts half. For a negative: twice the weight of the positives with a higher score.
        precision: (n,), float64: share of positives among the rows with the same or a higher score.
        shift: (n,), float64: change of average precision by one more row like this one, times the
            weight of positives, without that row's own precision.
        bins: (n,), bin of the row's score, out of bins of equal weight.
    """

    rows: slice
    wins: Array
    precision: Floats
    shift: Floats
    bins: Ints


@dataclass
class RankState:
    """Sums over the rows of a group up to a score, which rows with higher scores need.

    Attributes:
        all_positive, all_negative: weights of the classes among all rows of the group.
        positive, negative: weights of the classes among the rows so far.
        own, others: sums over the ties so far, for `RankContributions.shift`.
    """

    all_positive: Any
    all_negative: Any
    positive: Any = 0
    negative: Any = 0
    own: float = 0.0
    others: float = 0.0

    @classmethod
    def start(cls, label: Bools, weight: Floats | None) -> "RankState":
        """Returns the state before the first row of a group, given all of its rows."""
        positive = label.sum(dtype=np.int64) if weight is None else weight[label].sum()
        rest = len(label) - positive if weight is None else weight[~label].sum()
        return cls(positive, rest)


def rank_contributions(
    score: Array,
    label: Bools,
    weight: Floats | None,
    num_bins: int,
    state: RankState | None = None,
) -> Iterator[RankContributions]:
    """Yields the contributions of rows of a group, some rows at a time; ties share their ranks.

    With P and N the weights of the classes, AUC is the sum of weight * wins / (2 P N) over
    positives, and the same over negatives. Without weights, integers stay integers, so that nothing
    is rounded.

    Args:
        score: (N,), rising.
        label: (N,).
        weight: (N,), above 0; None means all 1.
        num_bins: number of bins of equal weight, for `bins`.
        state: left by the rows of the group with lower scores, and updated; None if these are all
            rows.

    Source:
        AUC: the structural components of DeLong et al., Biometrics 1988. Average precision: its
        derivative by the weight of a row, derived here; a test compares it with differences.
    """
    state = state or RankState.start(label, weight)
    all_positive, all_negative = state.all_positive, state.all_negative
    # A chunk never ends inside a tie.
    cuts = np.searchsorted(score, score[np.arange(CHUNK, len(score), CHUNK) - 1], side="right")
    edges = np.unique(np.concatenate([[0], cuts, [len(score)]]))
    for start, stop in itertools.pairwise(edges):
        rows = slice(start, stop)
        scores, labels = score[rows], label[rows]
        ends = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)
        # Weights of the classes in each tie, and up to and including it.
        weights = None if weight is None else weight[rows]
        tie_positive, tie_negative = _class_weights(labels, weights, ends)
        positive = state.positive + np.cumsum(tie_positive)
        negative = state.negative + np.cumsum(tie_negative)
        wins_of_positive = 2 * negative - tie_negative
        wins_of_negative = 2 * (all_positive - positive) + tie_positive
        higher = (all_positive - positive) + (all_negative - negative)
        at_least = higher + tie_positive + tie_negative
        precision = (all_positive - positive + tie_positive) / at_least
        share = tie_positive / at_least
        own = state.own + np.cumsum(share)
        others = state.others + np.cumsum(share * precision)
        middle = positive + negative - 0.5 * (tie_positive + tie_negative)
        bins = middle / (all_positive + all_negative) * num_bins
        bins = np.minimum(bins.astype(np.int64), num_bins - 1)
        state.positive, state.negative = positive[-1], negative[-1]
        state.own, state.others = own[-1], others[-1]
        tie = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1))
        yield RankContributions(
            rows=rows,
            wins=np.where(labels, wins_of_positive[tie], wins_of_negative[tie]),
            precision=precision[tie],
            shift=np.where(labels, own[tie], 0.0) - others[tie],
            bins=bins[tie],
        )


class GroupRankings(NamedTuple):
    """Metrics of some users (or impressions), one entry each, from its own rows; NaN if undefined.

    group is the code of the user; weight is the weight of all rows; auc needs both classes; ndcg
    and recall need a positive.
    """

    group: Array
    weight: Floats
    auc: Floats
    ndcg: Floats
    recall: Floats


def group_rankings(
    score: Array, label: Bools, weight: Floats | None, user: Array, k: int
) -> Iterator[GroupRankings]:
    """Yields AUC, NDCG@k and recall@k of every user (or impression), some users at a time.

    Ties share their ranks: values are expectations over all orders of tied rows. Weights count in
    AUC; in NDCG and recall each row is one item.

    Args:
        score: (N,), rising.
        label: (N,), relevance.
        weight: (N,), above 0; None means all 1.
        user: (N,), unsigned codes.
        k: ranks that count in NDCG and recall.

    Source:
        NDCG: Järvelin and Kekäläinen, TOIS 2002, as scikit-learn's ndcg_score; ties: McSherry and
        Najork, ECIR 2008.
    """
    order = stable_order(user)
    user = user[order]
    firsts = np.append(0, np.flatnonzero(user[1:] != user[:-1]) + 1)
    cuts = np.searchsorted(firsts, np.arange(CHUNK, len(user), CHUNK))
    edges = np.unique(np.concatenate([[0], firsts[cuts[cuts < len(firsts)]], [len(user)]]))
    for start, stop in itertools.pairwise(edges):
        rows = order[start:stop]
        weights = None if weight is None else weight[rows]
        yield _rankings_of_chunk(score[rows], label[rows], weights, user[start:stop], k)


def _rankings_of_chunk(
    score: Array, label: Bools, weight: Floats | None, user: Array, k: int
) -> GroupRankings:
    """Ranks rows that are sorted by user and, for each user, by rising score."""
    new_user = user[1:] != user[:-1]
    # Ties of one user: last row, number of rows, and the user's number; first tie of each user.
    ends = np.append(np.flatnonzero(new_user | (score[1:] != score[:-1])), len(user) - 1)
    sizes = np.diff(ends, prepend=-1)
    last_rows = np.append(np.flatnonzero(new_user), len(user) - 1)
    last_ties = np.searchsorted(ends, last_rows)
    first_ties = np.append(0, last_ties[:-1] + 1)
    owner = np.repeat(np.arange(len(last_rows)), np.diff(last_ties, prepend=-1))
    clicks = _segment_sums(label, ends)
    positive, negative = _class_weights(label, weight, ends)
    below = np.cumsum(negative) - negative
    below = below - below[first_ties][owner]
    area = np.add.reduceat(positive * (2 * below + negative), first_ties)
    user_positive = np.add.reduceat(positive, first_ties)
    user_negative = np.add.reduceat(negative, first_ties)
    pairs = user_positive.astype(np.float64) * user_negative
    # Ranks of a tie that are among the first k.
    above = last_rows[owner] - ends
    start, stop = np.minimum(above, k), np.minimum(above + sizes, k)
    discounts = np.append(0.0, np.cumsum(1 / np.log2(np.arange(2, k + 2))))
    share = clicks / sizes
    gain = np.add.reduceat(share * (discounts[stop] - discounts[start]), first_ties)
    hits = np.add.reduceat(share * (stop - start), first_ties)
    relevant = np.add.reduceat(clicks, first_ties)
    with np.errstate(invalid="ignore", divide="ignore"):
        return GroupRankings(
            group=user[last_rows],
            weight=np.asarray(user_positive + user_negative, np.float64),
            auc=np.where(pairs > 0, 0.5 * area / pairs, np.nan),
            ndcg=gain / discounts[np.minimum(relevant, k)],
            recall=hits / relevant,
        )


def _class_weights(label: Bools, weight: Floats | None, ends: Ints) -> tuple[Array, Array]:
    """Returns the weights of positives and negatives in each tie; ties end at the rows `ends`."""
    if weight is None:
        positive = _segment_sums(label, ends)
        return positive, np.diff(ends, prepend=-1) - positive
    return _segment_sums(weight * label, ends), _segment_sums(weight * ~label, ends)


def _segment_sums(values: Array, ends: Ints) -> Array:
    """Returns the sums of values (N,) over consecutive segments that end at the rows `ends`."""
    kind = np.int64 if values.dtype == np.bool_ else np.float64
    return np.diff(np.cumsum(values, dtype=kind)[ends], prepend=0)
