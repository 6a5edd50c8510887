"""Paired differences of AUC between arms that share seeds, with intervals and p-values."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import polars as pl
from scipy import stats

from msrec.tools.experiment.results import ALL, Group, select

LEVEL = 0.95
"""Level of the intervals."""


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a paired difference over seeds, half its interval, and p of the two-sided t-test.

    Fields are None where they are undefined: with one seed, or when all differences are equal.
    """

    mean: float
    half_width: float | None
    p: float | None

    def __str__(self) -> str:
        """Text of a table cell.

        Example:
            >>> str(paired_difference([0.81, 0.82, 0.83], [0.80, 0.80, 0.80]))
            '+0.0200 ± 0.0248 (p = .074)'
        """
        text = f"{self.mean:+.4f}"
        if self.half_width is not None:
            text += f" ± {self.half_width:.4f}"
        if self.p is None:
            return text
        p = "p < .001" if self.p < 0.001 else f"p = {self.p:.3f}".replace("0.", ".", 1)
        return f"{text} ({p})"


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> PairedDifference:
    """Compares a metric of runs that share seed, data and order of rows; one value per seed.

    Source:
        scipy.stats.ttest_rel.
    """
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    average = mean(differences)
    if len(differences) < 2:
        return PairedDifference(average, None, None)
    if len(set(differences)) == 1:
        return PairedDifference(average, 0.0, None)
    test = stats.ttest_rel(values, reference)
    interval = test.confidence_interval(LEVEL)
    return PairedDifference(average, float(interval.high - interval.low) / 2, float(test.pvalue))


def auc_difference(
    frame: pl.DataFrame, model: str, arm: str, other: str, group: Group = ALL
) -> PairedDifference | None:
    """Returns the AUC of an arm minus that of another, over the seeds that have both, if any."""
    first, second = (select(frame, model, name, group) for name in (arm, other))
    pairs = first.join(second, on="seed", suffix="_other").sort("seed")
    pairs = pairs.drop_nulls(["auc", "auc_other"])
    if pairs.is_empty():
        return None
    return paired_difference(pairs["auc"].to_list(), pairs["auc_other"].to_list())
