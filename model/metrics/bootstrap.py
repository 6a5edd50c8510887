"""Uncertainty of the metrics over users: bootstrap intervals and the jackknife's standard error."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from msrec.data.features.splitmix import splitmix64
from msrec.model.metrics.definitions import Floats, Interval, Ints
from msrec.model.metrics.user_sums import UserSums

MAX_BLOCKS = 10_000
"""More users than these are put at random into so many blocks, which are resampled instead."""
MIN_USERS = 10
"""Users (blocks) below which the intervals of a group are undefined."""
CONFIDENCE = 0.95
NORMS = ("calibration_error", "quantile_calibration_error")
"""Metrics that are sums over bins of |mean score - mean label|."""
RESAMPLES_AT_ONCE = 64
"""Resamples that are computed at once, to bound memory."""


def user_blocks(hashes: NDArray[np.uint64]) -> Ints:
    """Returns the block of each user, (U,): one per user, or `MAX_BLOCKS` random ones.

    The users of a block are drawn together. Blocks are as independent as users are, so that
    intervals stay valid, at a cost that does not grow with the number of users. The block depends
    on the user's hash alone, so that rows in any order and in any parts give the same intervals.

    Shape:
        hashes: (U,), of distinct users, see `user_hashes`.

    Source:
        Random groups: Wolter, Introduction to Variance Estimation, 2007, chapter 2.
    """
    if len(hashes) > MAX_BLOCKS:
        return random_blocks(hashes)
    block = np.empty(len(hashes), np.int64)
    block[np.argsort(hashes)] = np.arange(len(hashes))
    return block


def random_blocks(hashes: NDArray[np.uint64]) -> Ints:
    """Returns one of `MAX_BLOCKS` blocks for each user, (U,)."""
    return (hashes % np.uint64(MAX_BLOCKS)).astype(np.int64)


def user_hashes(ids: NDArray[np.integer], seed: int) -> NDArray[np.uint64]:
    """Returns random bits of each user's id, (U,), by which users are put into blocks."""
    return splitmix64(ids, seed)


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of users, the same for every group of rows.

    Shape:
        counts: (R, blocks), uint8, how often each resample draws each block; a resample draws as
            many blocks as there are, with replacement.
    """

    counts: NDArray[np.uint8]

    @classmethod
    def draw(cls, num_users: int, resamples: int, seed: int) -> "Bootstrap | None":
        """Draws resamples, the same for the same seed and number of blocks.

        None without users or without resamples.
        """
        num_blocks = min(num_users, MAX_BLOCKS)
        if not num_blocks or not resamples:
            return None
        rng = np.random.default_rng([seed, 1])
        counts = np.empty((resamples, num_blocks), np.uint8)
        for row in counts:
            row[:] = np.bincount(rng.integers(num_blocks, size=num_blocks), minlength=num_blocks)
        return cls(counts)

    def intervals(self, sums: UserSums) -> dict[str, Interval]:
        """Returns the 95 % interval of each metric of a group of rows, without undefined ones.

        An interval is undefined with fewer than `MIN_USERS` blocks, and if the metric is undefined
        for the group or for one of the resamples.

        Source:
            `percentile_interval`; for the calibration errors `norm_interval`.
        """
        blocks, table = sums.blocks, sums.table
        if len(blocks) < MIN_USERS:
            return {}
        total = table.sum(axis=0)
        gaps = sums.calibration_gaps(total)
        parts, distances = [], []
        for start in range(0, len(self.counts), RESAMPLES_AT_ONCE):
            counts = self.counts[start : start + RESAMPLES_AT_ONCE]
            if len(blocks) < counts.shape[1]:
                counts = counts[:, blocks]
            resampled = counts.astype(np.float64) @ table
            parts.append(sums.values(resampled, total))
            distances.append(np.abs(sums.calibration_gaps(resampled) - gaps).sum(axis=-1))
        intervals = {}
        for name, value in sums.values(total, total).items():
            values = np.concatenate([part[name] for part in parts])
            if not (np.isfinite(value) and np.isfinite(values).all()):
                continue
            if name in NORMS:
                intervals[name] = norm_interval(float(value), np.concatenate(distances))
            else:
                intervals[name] = percentile_interval(values, len(blocks))
        return intervals


def percentile_interval(values: Floats, num_blocks: int) -> Interval:
    """Returns the percentile interval of a bootstrap, expanded for few blocks.

    Plain bootstrap quantiles are too narrow: n blocks vary by n / (n - 1) less around their own
    mean than around the true mean, and the t distribution has wider tails. Both are corrected.

    Shape:
        values: (R,), the metric of each resample.

    Source:
        "Expanded" percentiles: Hesterberg, The American Statistician 2015. In simulations of clicks
        by user (docs/guides/evaluation.md) they cover better than Efron's BCa.

    Example:
        >>> low, high = percentile_interval(np.random.default_rng(0).normal(size=100_000), 10_000)
        >>> round(low, 1), round(high, 1)
        (-2.0, 2.0)
    """
    n = num_blocks
    z = np.sqrt(n / (n - 1)) * stdtrit(n - 1, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    low, high = np.quantile(values, ndtr(z))
    return float(low), float(high)


def norm_interval(value: float, distances: Floats) -> Interval:
    """Returns an interval of a norm of means, such as the calibration error, cut off at 0.

    The norm of noisy means is larger than that of the true means, most where that is 0, so that
    bootstrap quantiles would exclude a perfect model. But the two norms differ by at most the norm
    of the noise, and the bootstrap gives the quantile of that. The interval covers at least as
    often as it claims, and often more.

    Shape:
        distances: (R,), norm of the difference between the means of each resample and the means.

    Example:
        >>> norm_interval(0.25, np.full(100, 0.125)), norm_interval(0.0, np.full(100, 0.125))
        ((0.125, 0.375), (0.0, 0.125))
    """
    noise = float(np.quantile(distances, CONFIDENCE))
    return max(0.0, value - noise), value + noise


def jackknife_error(without: Floats) -> float:
    """Returns the standard error of a metric from its values without each block, (n,).

    Source:
        The delete-one jackknife over users. For AUC it is the variance of clustered DeLong
        (Obuchowski, Biometrics 1997) to order 1 / n.
    """
    n = len(without)
    return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
