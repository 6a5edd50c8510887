"""Which rank of a table sharded by rows is looked up most, and an order that makes it no rank."""

import numpy as np
import numpy.typing as npt

RANKS = (2, 8, 64)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio, made odd: its multiples modulo 2^64 all differ."""


def spread(count: int) -> npt.NDArray[np.int64]:
    """An order of [0, count) that deals every run of neighbours evenly over all places.

    Row-wise sharding gives each rank a block of consecutive rows. In sorted order neighbours are
    alike (ids of the same month, words of the same stem), also in how often they are looked up.

    Source:
        Multiples of the golden ratio: Knuth, The Art of Computer Programming 3, 6.4.

    Example:
        >>> spread(8).tolist()
        [0, 5, 2, 7, 4, 1, 6, 3]
    """
    return np.argsort(np.arange(count, dtype=np.uint64) * _GOLDEN)


def shard_imbalance(lookups: npt.NDArray[np.int64], ranks: int) -> float:
    """Lookups of the busiest rank over the mean of all, 1 at best, if a table is split by rows.

    Shape:
        lookups: (rows,), int64, how often each row is looked up.

    Example:
        >>> shard_imbalance(np.array([6, 2, 1, 1]), ranks=2)
        1.6
    """
    block = -(-len(lookups) // ranks)
    busiest = np.add.reduceat(lookups, np.arange(0, len(lookups), block)).max()
    return float(busiest / max(lookups.sum() / ranks, 1))


def imbalance_by_ranks(
    lookups: npt.NDArray[np.int64], by_value: npt.NDArray[np.int64] | None
) -> dict[str, list[float]]:
    """For each number of ranks: the hottest rank as rows are stored, and before, by sorted value.

    Args:
        lookups: of the rows as stored.
        by_value: the same with rows in the order of their values; None where they have none.
    """
    orders = [lookups] if by_value is None else [lookups, by_value]
    return {str(n): [round(shard_imbalance(order, n), 3) for order in orders] for n in RANKS}
