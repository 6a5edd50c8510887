"""Labels of a row: their kinds, and the scale on which a model learns a number such as watch time.

A label is missing in a row where it is NaN: such as a purchase without the click that comes before
it. A model learns a regression label on a scale of mean 0 and standard deviation 1: its value is
clipped, transformed (by `log(1 + value)`, or to its rank among the training rows) and standardised.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from msrec.data.io.validation import StrictModel

LabelKind = Literal["binary", "regression"]
Transform = Literal["none", "log", "quantile"]
NUM_KNOTS = 101
Finite = Annotated[float, Field(allow_inf_nan=False)]


class LabelScale(StrictModel):
    """Statistics of a regression label over the training rows."""

    low: Finite
    """Smallest value, after clipping; predictions are not below it."""
    high: Finite
    """Largest value, after clipping; predictions are not above it."""
    mean: Finite
    """Mean of the transformed values."""
    std: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Standard deviation of the transformed values."""
    knots: list[Finite] = []
    """Distinct quantiles of the values, ascending, for the transform `quantile`."""
    ranks: list[Finite] = []
    """Rank of each knot, from 0 to 1."""


class LabelOptions(StrictModel):
    """Kind of a label, and the rows that have it."""

    kind: LabelKind = "binary"
    """`binary` is 0 or 1; `regression` is a number, such as a watch time."""
    exists_where: str | None = None
    """Earlier binary label: this one exists only in rows where that one is 1, such as a purchase
    after a click. Its score is the probability under this condition."""
    optional: bool = False
    """Whether the label may be missing in some rows."""
    weight: str | None = None
    """Column with the label's weight in each row, which multiplies that of the row."""
    transform: Transform = "log"
    """Transform of a regression label before it is standardised: `log` of 1 + value, `quantile` is
    the rank among the training rows, `none` is the value."""
    clip: tuple[Finite, Finite] | None = None
    """Smallest and largest value of a regression label in training; metrics use the values as they
    are. Null does not clip."""
    scale: LabelScale | None = None
    """Statistics of a regression label, which the conversion computes."""

    @model_validator(mode="before")
    @classmethod
    def _from_kind(cls, value: Any) -> Any:
        """Takes a kind alone for the options of that kind."""
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "binary" and self.clip is not None:
            raise ValueError("clip is for labels of kind regression; this one is binary")
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip must be [low, high] with low < high; got {list(self.clip)}")
        if self.clip is not None and self.transform == "log" and self.clip[0] < 0:
            raise ValueError(f"clip must be at least 0 with transform log; got {list(self.clip)}")
        return self

    @property
    def may_be_missing(self) -> bool:
        """Whether the label is missing in some rows."""
        return self.optional or self.exists_where is not None


def options_of(options: Mapping[str, LabelOptions], label: str) -> LabelOptions:
    """Returns the options of a label; those of a binary label that every row has by default."""
    return options.get(label, LabelOptions())


def check_labels(labels: Sequence[str], options: dict[str, LabelOptions]) -> None:
    """Refuses options that do not fit a list of labels.

    Raises:
        ValueError: the first label is not a binary one that every row has, options are of an
            unknown label, or `exists_where` does not name an earlier binary label.
    """
    if unknown := sorted(set(options) - set(labels)):
        raise ValueError(
            f"label options must be of labels ({', '.join(labels)}); got {unknown[0]!r}"
        )
    first = options_of(options, labels[0])
    if first.kind != "binary" or first.may_be_missing:
        raise ValueError(
            f"the first label must be binary and exist in every row; {labels[0]!r} does not. List "
            "such a label first"
        )
    for position, name in enumerate(labels):
        parent = options_of(options, name).exists_where
        if parent is None:
            continue
        earlier = [n for n in labels[:position] if options_of(options, n).kind == "binary"]
        if parent not in earlier:
            raise ValueError(
                f"label {name!r} must exist where an earlier binary label is 1 "
                f"({', '.join(earlier) or 'there is none'}); got {parent!r}"
            )


def weight_columns(
    row_weight: str | None, labels: Sequence[str], options: dict[str, LabelOptions]
) -> list[str]:
    """Returns the columns with weights, of rows and of labels, each once."""
    of_labels = [options_of(options, name).weight for name in labels]
    return list(dict.fromkeys(name for name in (row_weight, *of_labels) if name))


def make_scale(
    values: npt.NDArray[np.float32],
    options: LabelOptions,
    rows: npt.NDArray[np.int64] | None = None,
) -> LabelScale:
    """Computes the scale of a regression label from its values in the training rows.

    The order of the values changes nothing, not even the last digit.

    Shape:
        values: (N,), float32, without missing values.
        rows: (N,), rows that have each value, which are distinct then; one if None.

    Raises:
        ValueError: there are no values, or they are all the same after clipping and transforming.

    Example:
        >>> options = LabelOptions(kind="regression", transform="none")
        >>> make_scale(np.array([3, 1], np.float32), options, np.array([1, 3])).mean
        1.5
    """
    if not len(values):
        raise ValueError("must have a value in at least one training row; it has none")
    if rows is None:
        values, rows = np.unique(values, return_counts=True)
    order = np.argsort(values)
    values, rows = values[order], rows[order]
    if options.clip is not None:
        values = values.clip(*options.clip)
    knots = ranks = np.zeros(0)
    targets = values.astype(np.float64)
    if options.transform == "log":
        targets = np.log1p(targets)
    elif options.transform == "quantile":
        levels = np.linspace(0, 1, NUM_KNOTS)
        quantiles = _quantiles(targets, rows, levels).astype(np.float32)
        knots, position = np.unique(quantiles.astype(np.float64), return_inverse=True)
        # Values that are tied have the mean of their ranks.
        ranks = np.bincount(position, levels) / np.bincount(position)
        targets = np.interp(targets, knots, ranks)
    if targets[0] == targets[-1]:
        raise ValueError(f"must differ between training rows; all are {values[0]:g}")
    mean = (targets * rows).sum() / rows.sum()
    return LabelScale(
        low=float(values[0]),
        high=float(values[-1]),
        mean=float(mean),
        std=float(np.sqrt(((targets - mean) ** 2 * rows).sum() / rows.sum())),
        knots=knots.tolist(),
        ranks=ranks.tolist(),
    )


def _quantiles(
    values: npt.NDArray[np.float64], rows: npt.NDArray[np.int64], levels: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns the quantiles of ascending values, between rows by a line, as `np.quantile` does."""
    ends, at = np.cumsum(rows), levels * (rows.sum() - 1)
    near = np.stack([np.floor(at), np.ceil(at)]).astype(np.int64)
    below, above = values[np.searchsorted(ends, near, side="right")]
    return np.asarray(below + (above - below) * (at % 1))
