"""Sums per user of a regression label, from which its metrics follow."""

import numpy as np

from msrec.model.metrics.definitions import Array, Floats, Ints
from msrec.model.metrics.user_sums import BINS, UserSums, lines_of_users

SUMS = (
    *("rows", "users", "weight", "label", "score", "absolute", "squared"),
    *("product", "score_ranks", "label_ranks"),
)
"""Columns of a table of sums of a regression label. First line: rows, users, and weighted sums.
Second line: weighted contributions to the mean product of the ranks of score and label, and to
their mean squares, as `rank_moments` returns them."""
ZERO = 1e-12
"""Variances of ranks up to here are rounding errors: all scores or all labels are equal."""


class RegressionSums(UserSums):
    """Sums of a regression label; the columns are `SUMS` and, of each bin, weight * error."""

    def values(self, sums: Floats, total: Floats) -> dict[str, Floats]:
        """Returns all metrics; Spearman's correlation is a metric of ranks."""
        s = {name: sums[..., i] for i, name in enumerate(SUMS)}
        t = dict(zip(SUMS, total, strict=False))
        with np.errstate(invalid="ignore", divide="ignore"):

            def covariance(name: str) -> Floats:
                # Third-degree in the weights, so that the contributions sum to three times the
                # mean product. Ranks have the mean 1/2.
                moment = s[name] / s["weight"] - 2 / 3 * t[name] / t["weight"]
                return np.asarray(moment - 0.25)

            variance = covariance("score_ranks") * covariance("label_ranks")
            variance = np.where(covariance("label_ranks") > ZERO, variance, np.nan)
            variance = np.where(covariance("score_ranks") > ZERO, variance, np.nan)
            return {
                "calibration": np.where(s["label"] > 0, s["score"] / s["label"], np.nan),
                "mae": s["absolute"] / s["weight"],
                "rmse": np.sqrt(s["squared"] / s["weight"]),
                "spearman": covariance("product") / np.sqrt(variance),
                "quantile_calibration_error": np.abs(self.calibration_gaps(sums)).sum(axis=-1),
            }

    def calibration_gaps(self, sums: Floats) -> Floats:
        """See `UserSums`."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(sums[..., len(SUMS) :] / sums[..., SUMS.index("weight"), np.newaxis])

    def counts(self) -> dict[str, int]:
        """See `UserSums`."""
        total = self.table.sum(axis=0)
        return {name: int(total[SUMS.index(name)]) for name in ("rows", "users")}


def regression_sums(
    score: Array, label: Array, weight: Floats | None, user: Array, block_of: Ints
) -> RegressionSums:
    """Sums the contributions of the users of each block to the metrics of one group of rows.

    Shape:
        score, label: (N,), finite.
        weight: (N,), above 0; None means all 1.
        user: (N,), uint32 codes.
        block_of: (U,), block of each user code.
    """
    blocks, line_of = lines_of_users(user, block_of)
    line, n = line_of[user], len(blocks)
    y, p = label.astype(np.float64), score.astype(np.float64)
    w = np.ones(len(p)) if weight is None else weight
    rank, *moments = rank_moments(p, y, w)
    table = np.zeros((n, len(SUMS) + BINS))
    table[:, 0] = np.bincount(line, minlength=n)
    table[:, 1] = np.bincount(line_of[np.unique(user)], minlength=n)
    columns = (np.ones(len(p)), y, p, np.abs(p - y), (p - y) ** 2, *moments)
    for number, values in enumerate(columns, start=2):
        table[:, number] = np.bincount(line, w * values, n)
    bins = np.minimum((rank * BINS).astype(np.int64), BINS - 1)
    by_bin = np.bincount(line * BINS + bins, w * (p - y), n * BINS)
    table[:, len(SUMS) :] = by_bin.reshape(-1, BINS)
    return RegressionSums(blocks, table)


def rank_moments(p: Floats, y: Floats, w: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Returns the ranks of p, and the rows' contributions to three moments of ranks.

    The rank of a row is the share of weight with a lower value, ties counting half. With weights
    of 1 it is the usual rank minus 1/2, divided by the number of rows; a row of weight 2 counts as
    two rows. A contribution is the derivative of the mean of rank(p) * rank(y), rank(p)^2 or
    rank(y)^2 by the weight of the row (times all weight, up to a constant): it contains the effect
    on the ranks of the other rows. The weighted mean of the contributions is three times the mean.

    Shape:
        p, y, w: (N,).
        returns: (N,) each; ranks in (0, 1).

    Source:
        The influence function of Spearman's correlation: Croux and Dehon, Statistical Methods and
        Applications 2010; ties and weights derived here.
    """
    total = w.sum()
    by_p, by_y = _Order(p), _Order(y)
    f, g = by_p.below(w) / total, by_y.below(w) / total
    # Mean over all rows of weight * rank, without the half of it below the row.
    g_above_p, f_above_p = (0.5 - by_p.below(w * rank) / total for rank in (g, f))
    f_above_y, g_above_y = (0.5 - by_y.below(w * rank) / total for rank in (f, g))
    return f, f * g + g_above_p + f_above_y, f**2 + 2 * f_above_p, g**2 + 2 * g_above_y


class _Order:
    """Order of rows by a value, with its ties."""

    def __init__(self, values: Floats) -> None:
        self.rows = np.argsort(values, kind="stable")
        ordered = values[self.rows]
        is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(values)]
        self.firsts = np.flatnonzero(is_first)
        self.tie = np.empty(len(values), np.int64)
        self.tie[self.rows] = np.cumsum(is_first) - 1

    def below(self, amounts: Floats) -> Floats:
        """Returns the sum of amounts of the rows with a lower value and half the ties', (N,)."""
        if not len(amounts):
            return amounts
        of_tie = np.add.reduceat(amounts[self.rows], self.firsts)
        return np.asarray((np.cumsum(of_tie) - 0.5 * of_tie)[self.tie])
