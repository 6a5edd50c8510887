"""AUC of many groups of rows at once: a radix sort, then one pass over the sorted rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class GroupAucs:
    """One entry a group: the index of its last row, the weight of its classes, its AUC or NaN."""

    last: Ints
    positive: Floats
    negative: Floats
    auc: Floats


def stable_order(keys: Array, order: Ints | None = None) -> Ints:
    """Rows sorted by unsigned keys, those with equal keys in the given order: a radix sort.

    numpy sorts 16-bit keys by counting, which is twice as fast as a comparison sort of the whole.
    """
    largest = int(keys.max(initial=0))
    for shift in range(0, 8 * keys.itemsize, 16):
        if order is not None and shift and not largest >> shift:
            break
        digit = (keys >> np.asarray(shift, keys.dtype)).astype(np.uint16)
        if order is None:
            order = np.argsort(digit, kind="stable")
        else:
            order = order[np.argsort(digit[order], kind="stable")]
    assert order is not None
    return order


def grouped_aucs(
    score: Array,
    label: NDArray[np.bool_],
    weight: Floats | None,
    order: Ints,
    group: Array | None = None,
) -> GroupAucs:
    """AUC of each group of rows that stand together in `order`, sorted by score within.

    A block of equal scores adds pos * (negatives before it + half of its own); counts stay
    integers (doubled) where there are no weights, so that nothing is rounded.
    """
    score, label = score[order], label[order]
    changes = score[1:] != score[:-1]
    if group is not None:
        changes |= group[1:] != group[:-1]
    ends = np.append(np.flatnonzero(changes), len(order) - 1)
    if weight is None:
        positive = np.cumsum(label, dtype=np.int64)[ends]
        negative = ends + 1 - positive
    else:
        weight = weight[order]
        positive = np.cumsum(weight * label)[ends]
        negative = np.cumsum(weight * ~label)[ends]
    if group is None:
        last_blocks = np.array([len(ends) - 1])
    else:
        block_group = group[ends]
        changes = block_group[1:] != block_group[:-1]
        last_blocks = np.append(np.flatnonzero(changes), len(ends) - 1)
    pos_of, neg_of = np.diff(positive[last_blocks], prepend=0), negative[last_blocks]
    neg_before = np.concatenate([neg_of[:1] * 0, neg_of[:-1]])
    neg_of = neg_of - neg_before
    first_blocks = np.concatenate([[0], last_blocks[:-1] + 1])
    pos_block = np.diff(positive, prepend=0)
    twice_area = np.add.reduceat(
        pos_block * (np.concatenate([negative[:1] * 0, negative[:-1]]) + negative), first_blocks
    )
    twice_area = twice_area - 2 * pos_of * neg_before
    pairs = pos_of.astype(np.float64) * neg_of
    one_class = (pos_of <= 0) | (neg_of <= 0)
    auc = np.divide(0.5 * twice_area, pairs, out=np.full(len(pairs), np.nan), where=~one_class)
    return GroupAucs(ends[last_blocks], pos_of.astype(float), neg_of.astype(float), auc)
