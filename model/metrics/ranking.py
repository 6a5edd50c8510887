"""What ranks say: AUC, average precision and per-user rankings of rows that are sorted by score."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CHUNK = 1 << 18
"""Rows that are worked on at once where no more is needed."""


def score_order(score: Array) -> Ints:
    """Rows by rising score (N,), none below 0; tied ones as they stand."""
    if score.dtype != np.float32:
        return np.argsort(score, kind="stable")
    return stable_order(np.abs(score).view(np.uint32))  # bits of floats from 0 on rise with them


def stable_order(keys: Array) -> Ints:
    """Rows by rising keys (N,), uint16 or uint32; those with equal keys as they stand.

    numpy sorts 16-bit keys by counting, and 64-bit integers several times as fast as it finds the
    order of 32-bit ones.
    """
    if keys.dtype == np.uint16:
        return np.argsort(keys, kind="stable")
    assert len(keys) < 1 << 32
    both = keys.astype(np.uint64) << np.uint64(32)
    both |= np.arange(len(keys), dtype=np.uint64)
    both.sort()
    both &= np.uint64(0xFFFFFFFF)
    return both.view(np.int64)


class Placements(NamedTuple):
    """What each of some rows adds to AUC and average precision of its group, see `placements`.

    Shape:
        rows: which of the N rows these n are.
        wins: (n,). Of a positive: twice the weight of negatives that it beats, a tie half; of a
            negative: twice the weight of positives that beat it.
        precision: (n,), float64: of the rows that score as high or higher, the share of positives.
        shift: (n,), float64: how one more row like this one changes average precision, times the
            weight of positives, besides that row's own precision.
        bins: (n,), which of the bins of equal weight the row's score lies in.
    """

    rows: slice
    wins: Array
    precision: Floats
    shift: Floats
    bins: Ints


def placements(
    score: Array, label: Bools, weight: Floats | None, num_bins: int
) -> Iterator[Placements]:
    """Each row's part in the rankings of its group, some rows at a time; ties share their place.

    With P and N the weights of the classes, AUC is the sum of weight * wins / (2 P N) over
    positives, and the same over negatives. Integers stay integers where there are no weights, so
    that nothing is rounded.

    Args:
        score: (N,), rising.
        label: (N,).
        weight: (N,), above 0; None: all 1.
        num_bins: of equal weight, for `bins`.

    Source:
        AUC: the structural components of DeLong et al., Biometrics 1988. Average precision: its
        derivative by a row's weight, worked out here; a test compares it with differences.
    """
    whole = label.sum(dtype=np.int64) if weight is None else weight[label].sum()
    rest = len(label) - whole if weight is None else weight[~label].sum()
    positive_before = negative_before = 0 * whole
    own_before = others_before = 0.0
    # Ties are never cut.
    cuts = np.searchsorted(score, score[np.arange(CHUNK, len(score), CHUNK) - 1], side="right")
    edges = np.unique(np.concatenate([[0], cuts, [len(score)]]))
    for start, stop in zip(edges, edges[1:], strict=False):
        rows = slice(start, stop)
        part, clicked = score[rows], label[rows]
        ends = np.append(np.flatnonzero(part[1:] != part[:-1]), len(part) - 1)
        sizes = np.diff(ends, prepend=-1)
        if weight is None:
            of_block = of_blocks(clicked, ends)
            rejected = sizes - of_block
        else:
            of_block = of_blocks(weight[rows] * clicked, ends)
            rejected = of_blocks(weight[rows] * ~clicked, ends)
        positive = positive_before + np.cumsum(of_block)
        negative = negative_before + np.cumsum(rejected)
        beats = 2 * negative - rejected
        beaten = 2 * (whole - positive) + of_block
        at_least = (whole - positive) + (rest - negative) + of_block + rejected
        precision = (whole - positive + of_block) / at_least
        each = of_block / at_least
        own = own_before + np.cumsum(each)
        others = others_before + np.cumsum(each * precision)
        middle = (positive + negative - 0.5 * (of_block + rejected)) / (whole + rest)
        bins = np.minimum((middle * num_bins).astype(np.int64), num_bins - 1)
        positive_before, negative_before = positive[-1], negative[-1]
        own_before, others_before = own[-1], others[-1]
        block = np.repeat(np.arange(len(ends)), sizes)
        yield Placements(
            rows=rows,
            wins=np.where(clicked, beats[block], beaten[block]),
            precision=precision[block],
            shift=np.where(clicked, own[block], 0.0) - others[block],
            bins=bins[block],
        )


class Ranked(NamedTuple):
    """One entry a user, from the user's own rows; NaN where a metric is undefined.

    weight is that of all rows; auc needs both classes; ndcg and recall need a positive.
    """

    user: Array
    weight: Floats
    auc: Floats
    ndcg: Floats
    recall: Floats


def rank_users(
    score: Array, label: Bools, weight: Floats | None, user: Array, k: int
) -> Iterator[Ranked]:
    """AUC, NDCG@k and recall@k of each user, some users at a time.

    Ties share their places: the expected value over all orders of tied rows. Weights count in AUC;
    in NDCG and recall each row is one item.

    Args:
        score: (N,), rising.
        label: (N,), relevance.
        weight: (N,), above 0; None: all 1.
        user: (N,), unsigned codes.
        k: places that count.

    Source:
        NDCG: Järvelin and Kekäläinen, TOIS 2002, as scikit-learn's ndcg_score; ties: McSherry and
        Najork, ECIR 2008.
    """
    order = stable_order(user)
    user = user[order]
    firsts = np.append(0, np.flatnonzero(user[1:] != user[:-1]) + 1)
    cuts = np.searchsorted(firsts, np.arange(CHUNK, len(user), CHUNK))
    edges = np.unique(np.concatenate([[0], firsts[cuts[cuts < len(firsts)]], [len(user)]]))
    for start, stop in zip(edges, edges[1:], strict=False):
        part = order[start:stop]
        weights = None if weight is None else weight[part]
        yield _ranked(score[part], label[part], weights, user[start:stop], k)


def _ranked(score: Array, label: Bools, weight: Floats | None, user: Array, k: int) -> Ranked:
    """As `rank_users`, of rows sorted by user and, within, by rising score."""
    new_user = user[1:] != user[:-1]
    ends = np.append(np.flatnonzero(new_user | (score[1:] != score[:-1])), len(user) - 1)
    lasts = np.append(np.flatnonzero(new_user), len(user) - 1)
    blocks = np.searchsorted(ends, lasts)  # the last block of each user
    firsts = np.append(0, blocks[:-1] + 1)
    owner = np.repeat(np.arange(len(lasts)), np.diff(blocks, prepend=-1))
    clicks = of_blocks(label, ends)
    sizes = np.diff(ends, prepend=-1)
    positive = clicks if weight is None else of_blocks(weight * label, ends)
    negative = sizes - clicks if weight is None else of_blocks(weight * ~label, ends)
    below = np.cumsum(negative) - negative
    below = below - below[firsts][owner]
    area = np.add.reduceat(positive * (2 * below + negative), firsts)
    of_class = [np.add.reduceat(values, firsts) for values in (positive, negative)]
    pairs = of_class[0].astype(np.float64) * of_class[1]
    above = lasts[owner] - ends
    counted = np.minimum(above, k), np.minimum(above + sizes, k)
    discounts = np.append(0.0, np.cumsum(1 / np.log2(np.arange(2, k + 2))))
    each = clicks / sizes
    gain = np.add.reduceat(each * (discounts[counted[1]] - discounts[counted[0]]), firsts)
    found = np.add.reduceat(each * (counted[1] - counted[0]), firsts)
    relevant = np.add.reduceat(clicks, firsts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Ranked(
            user=user[lasts],
            weight=np.asarray(of_class[0] + of_class[1], np.float64),
            auc=np.where(pairs > 0, 0.5 * area / pairs, np.nan),
            ndcg=gain / discounts[np.minimum(relevant, k)],
            recall=found / relevant,
        )


def of_blocks(values: Array, ends: Ints) -> Array:
    """Sums of values over the blocks that end at `ends`."""
    kind = np.int64 if values.dtype == np.bool_ else np.float64
    return np.diff(np.cumsum(values, dtype=kind)[ends], prepend=0)
