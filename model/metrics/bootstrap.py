"""How sure a metric is: bootstrap intervals over users, and the jackknife's standard error."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from msrec.model.metrics.definitions import Interval
from msrec.model.metrics.ranking import Floats, Ints
from msrec.model.metrics.user_sums import Sums, calibration_gaps, metric_values

MAX_BLOCKS = 10_000
"""More users than these are dealt at random into so many blocks, which are drawn instead."""
LEAST_USERS = 10
"""Fewer users (blocks) in a group leave its intervals undefined."""
LEVEL = 0.95
CHUNK = 64
"""Resamples that are worked on at once."""


def blocks_of(num_users: int, seed: int) -> Ints:
    """The block of each user code, (U,): a block a user, or `MAX_BLOCKS` random ones.

    The users of a block are drawn together. Blocks are as independent as users are, so that
    intervals stay valid, at a cost that does not grow with the users.

    Source:
        Random groups: Wolter, Introduction to Variance Estimation, 2007, chapter 2.
    """
    if num_users <= MAX_BLOCKS:
        return np.arange(num_users)
    return np.random.default_rng(seed).permutation(num_users) % MAX_BLOCKS


@dataclass(frozen=True)
class Bootstrap:
    """Resamples: how often each block of users is drawn, the same for every group of rows.

    Shape:
        counts: (R, blocks), uint8; each row draws as many blocks as there are, with replacement.
    """

    counts: NDArray[np.uint8]

    @classmethod
    def draw(cls, num_blocks: int, resamples: int, seed: int) -> "Bootstrap":
        """Draw `resamples` times; the same for the same seed and number of blocks."""
        rng = np.random.default_rng([seed, 1])
        counts = np.empty((resamples, num_blocks), np.uint8)
        for row in counts:
            row[:] = np.bincount(rng.integers(num_blocks, size=num_blocks), minlength=num_blocks)
        return cls(counts)

    def intervals(self, sums: Sums) -> dict[str, Interval]:
        """The 95 % interval of each metric of a group of rows; undefined ones are left out.

        An interval is undefined for fewer than `LEAST_USERS` blocks, and where the metric is, for
        the group or for one of the resamples.

        Source:
            `percentiles`; of the calibration error `around_norm`.
        """
        blocks, table = sums
        if len(blocks) < LEAST_USERS:
            return {}
        total = table.sum(axis=0)
        gaps = calibration_gaps(total)
        parts, noise = [], []
        for start in range(0, len(self.counts), CHUNK):
            counts = self.counts[start : start + CHUNK]
            if len(blocks) < counts.shape[1]:
                counts = counts[:, blocks]
            drawn = counts.astype(np.float64) @ table
            parts.append(metric_values(drawn, total))
            noise.append(np.abs(calibration_gaps(drawn) - gaps).sum(axis=-1))
        found = {}
        for name, value in metric_values(total, total).items():
            values = np.concatenate([part[name] for part in parts])
            if not (np.isfinite(value) and np.isfinite(values).all()):
                continue
            if name == "calibration_error":
                found[name] = around_norm(float(value), np.concatenate(noise))
            else:
                found[name] = percentiles(values, len(blocks))
        return found


def percentiles(values: Floats, num_blocks: int) -> Interval:
    """The percentile interval of a bootstrap, widened for few blocks.

    Quantiles of a bootstrap know neither that n blocks spread by n / (n - 1) less about their own
    mean than about the true one, nor the t distribution; they are taken further out for both.

    Shape:
        values: (R,), the metric of each resample.

    Source:
        "Expanded" percentiles: Hesterberg, The American Statistician 2015. In simulations of
        clicks by user (docs/evaluation.md) they cover better than Efron's BCa.

    Example:
        >>> low, high = percentiles(np.random.default_rng(0).normal(size=100_000), 10_000)
        >>> round(low, 1), round(high, 1)
        (-2.0, 2.0)
    """
    n = num_blocks
    z = np.sqrt(n / (n - 1)) * stdtrit(n - 1, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    low, high = np.quantile(values, ndtr(z))
    return float(low), float(high)


def around_norm(value: float, apart: Floats) -> Interval:
    """An interval of a norm of means, such as the calibration error, from 0 on.

    The norm of noisy means is above that of the true ones, most where that is 0, so that quantiles
    of the bootstrap would leave a perfect model out. But the two norms differ by no more than the
    norm of the noise, of which the bootstrap tells the quantile: the interval covers at least as
    often as it says, and often more.

    Shape:
        apart: (R,), the norm of the difference between the means of each resample and the means.

    Example:
        >>> around_norm(0.25, np.full(100, 0.125)), around_norm(0.0, np.full(100, 0.125))
        ((0.125, 0.375), (0.0, 0.125))
    """
    noise = float(np.quantile(apart, LEVEL))
    return max(0.0, value - noise), value + noise


def jackknife_error(without: Floats) -> float:
    """Standard error of a metric from its values without each block, (n,).

    Source:
        The delete-one jackknife over users. For AUC it is the variance of clustered DeLong
        (Obuchowski, Biometrics 1997) to order 1 / n.
    """
    n = len(without)
    return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
