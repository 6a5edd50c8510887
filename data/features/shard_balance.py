"""Balance of lookups over the shards of a table: an order of rows for it, and a measure of it."""

import numpy as np
import numpy.typing as npt
import polars as pl

RANKS = (2, 8, 64)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio, made odd, so that its multiples modulo 2^64 all differ."""


def spread(count: int) -> npt.NDArray[np.int64]:
    """Returns a permutation of [0, count) that spreads every run of neighbours over all positions.

    Row-wise sharding gives each rank a block of consecutive rows. In sorted order, neighbours (ids
    of the same month, words of the same stem) are looked up about equally often, so that some
    blocks would get most of the lookups.

    Source:
        Multiples of the golden ratio: Knuth, The Art of Computer Programming 3, 6.4.

    Example:
        >>> spread(8).tolist()
        [0, 5, 2, 7, 4, 1, 6, 3]
    """
    multiples = pl.Series(np.arange(count, dtype=np.uint64) * _GOLDEN)
    return multiples.arg_sort().to_numpy().astype(np.int64)  # three times as fast as numpy's


def shard_imbalance(lookups: npt.NDArray[np.int64], ranks: int) -> float:
    """Returns the lookups of the busiest rank over the mean of all, if a table is split by rows.

    Shape:
        lookups: (rows,), int64, number of lookups of each row.
        returns: 1 at best.

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
    """Returns number of ranks -> imbalance of the stored order, and of the order by value.

    Args:
        lookups: of the rows as stored.
        by_value: the same lookups in the order of the values; None if rows have no values.
    """
    orders = [lookups] if by_value is None else [lookups, by_value]
    return {str(n): [round(shard_imbalance(order, n), 3) for order in orders] for n in RANKS}
