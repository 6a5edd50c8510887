"""Popularity of the ids of a table, and the rows that a cache of a step misses because of it.

Ids are in bins, from popular to rare; those of a bin are equally popular. With `n` lookups in a
step, the lookups of an id are taken to be a Poisson process with mean n p, p being its share.

FBGEMM's cache has sets of 32 slots, to which rows are assigned by a hash. It is modelled as one
set; the sets miss up to 2 % more rows in the tests.

Source:
    LRU by the approximation of Che, Tung and Wang, IEEE JSAC 20(7), 2002, with steps as the unit
    of time, because FBGEMM counts uses of rows by step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
SINGLE_IDS = 64
"""Most popular ids of a Zipf distribution that have a bin of their own."""
BIN_GROWTH = 1.2
"""Last id of a bin over that of the bin before."""
BISECTIONS = 60


@dataclass(frozen=True)
class Popularity:
    """Ids in bins, the popular ones first.

    Attributes:
        ids: (bins,), number of ids in each bin; may be fractions, for a part of a table.
        share: (bins,), share of lookups of each bin; the sum is 1.
    """

    ids: Floats
    share: Floats

    def divided(self, parts: int) -> "Popularity":
        """Returns the popularity of one of equal parts of the rows, with ids of every kind."""
        return Popularity(self.ids / parts, self.share)

    def distinct(self, lookups: float) -> float:
        """Returns the number of distinct ids of a step."""
        return float(self._in_step(lookups).sum())

    def lru_misses(self, lookups: float, slots: float) -> float:
        """Returns the distinct ids of a step that a least-recently-used cache does not hold.

        It keeps the ids of the last T steps, T being such that they fill it.
        """
        mean = self._mean(lookups)

        def in_cache(steps: float) -> Floats:
            return self.ids * -np.expm1(-mean * steps)

        if slots >= self.ids[mean > 0].sum():
            return 0.0
        low, high = -60.0, 60.0  # logarithm of T
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if in_cache(np.exp(middle)).sum() < slots else (low, middle)
        return float((self._in_step(lookups) * np.exp(-mean * np.exp(low))).sum())

    def lfu_misses(self, lookups: float, slots: float) -> tuple[float, float]:
        """Returns what a cache of the most frequently used ids misses in a step.

        Such a cache ends up with the most popular ids.

        Returns:
            Distinct ids, and lookups.
        """
        before = np.cumsum(self.ids) - self.ids
        missed = 1 - np.clip((slots - before) / self.ids, 0, 1)
        return float((self._in_step(lookups) * missed).sum()), lookups * float(self.share @ missed)

    def _mean(self, lookups: float) -> Floats:
        """Returns (bins,), the mean lookups of each id of a bin in a step."""
        return lookups * self.share / self.ids

    def _in_step(self, lookups: float) -> Floats:
        """Returns (bins,), the distinct ids of a step."""
        return self.ids * -np.expm1(-self._mean(lookups))


def equal_popularity(rows: float) -> Popularity:
    """Returns the popularity of ids that are all looked up equally often."""
    return Popularity(np.array([float(rows)]), np.array([1.0]))


@lru_cache(maxsize=1024)
def zipf_popularity(rows: int, exponent: float) -> Popularity:
    """Returns the popularity of ids of which the k-th has a share in proportion to k ** -exponent.

    Shares of bins are integrals from half an id before the first to half an id after the last.
    """
    last = [float(k) for k in range(1, min(rows, SINGLE_IDS) + 1)]
    while last[-1] < rows:
        last.append(min(np.ceil(last[-1] * BIN_GROWTH), float(rows)))
    ends = np.array([0.0, *last])
    single = ends[1:] <= SINGLE_IDS
    low, high = ends[:-1] + 0.5, ends[1:] + 0.5
    if exponent == 1:
        integral = np.log(high / low)
    else:
        integral = (high ** (1 - exponent) - low ** (1 - exponent)) / (1 - exponent)
    share = np.where(single, ends[1:] ** -exponent, integral)
    return Popularity(np.diff(ends), share / share.sum())


@lru_cache(maxsize=1024)
def counted_popularity(rows: int, counts: tuple[tuple[int, float], ...]) -> Popularity:
    """Returns the popularity of ids that were counted.

    Args:
        rows: of the table. Those that were not counted are never looked up.
        counts: numbers of most popular ids, rising, each with the share of lookups that they have
            together.
    """
    ends, shares = np.array([(0, 0.0), *counts], dtype=np.float64).T
    ids, share = np.diff(ends), np.diff(shares)
    if ends[-1] < rows:
        ids, share = np.append(ids, rows - ends[-1]), np.append(share, 0.0)
    return Popularity(ids, share / share.sum())


def count_points(counts: Sequence[int] | npt.NDArray[np.int64]) -> list[tuple[int, float]]:
    """Returns points for `counted_popularity` from the number of lookups of each id.

    Example:
        >>> count_points([1, 6, 0, 3])
        [(1, 0.6), (2, 0.9), (3, 1.0)]
    """
    falling = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
    falling = falling[falling > 0]
    if not len(falling):
        return []
    total = np.cumsum(falling)
    ends = [1]
    while ends[-1] < len(falling):
        ends.append(min(max(ends[-1] + 1, int(ends[-1] * BIN_GROWTH)), len(falling)))
    return [(end, float(total[end - 1] / total[-1])) for end in ends]
