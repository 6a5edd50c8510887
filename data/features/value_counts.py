"""Counts of the values of raw rows that a vocabulary or a table of keys does not know."""

import threading
from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]


class ValueCounts(NamedTuple):
    """Values of a column that are not null, those of them that are not known, and nulls."""

    values: int
    unknown: int
    missing: int = 0

    @classmethod
    def of(cls, is_known: Bools, is_null: Bools, missing: int) -> Self:
        """Counts values.

        Args:
            is_known: (N,), for each value, or each value of all lists.
            is_null: (N,), the same.
            missing: rows that are null.
        """
        unknown = int(np.count_nonzero(~(is_known | is_null)))
        return cls(len(is_null) - int(np.count_nonzero(is_null)), unknown, missing)

    def plus(self, other: "ValueCounts") -> "ValueCounts":
        """Returns the sums of both counts."""
        return ValueCounts(*(a + b for a, b in zip(self, other, strict=True)))


Counts = Mapping[str, ValueCounts]
"""Column -> its counts."""


class CountedColumns:
    """Running totals of counts by column; threads may add to them at the same time."""

    def __init__(self) -> None:
        self._totals: dict[str, ValueCounts] = {}
        self._lock = threading.Lock()

    def add(self, counts: Counts) -> None:
        """Adds the counts of some rows."""
        with self._lock:
            for name, count in counts.items():
                self._totals[name] = self._totals.get(name, ValueCounts(0, 0)).plus(count)

    def take(self) -> dict[str, ValueCounts]:
        """Returns the counts of all rows since the last call."""
        with self._lock:
            taken, self._totals = self._totals, {}
            return taken


def count_sentences(counts: Counts) -> list[str]:
    """Returns a line for each column with unknown or missing values.

    Example:
        >>> count_sentences({"age": ValueCounts(200, 3, 1), "city": ValueCounts(200, 0)})
        ['age: 3 of 200 values unknown (1.5%), 1 missing']
    """
    lines = []
    for name, (values, unknown, missing) in counts.items():
        parts = []
        if unknown:
            parts.append(f"{unknown:,} of {values:,} values unknown ({unknown / values:.1%})")
        if missing:
            parts.append(f"{missing:,} missing")
        if parts:
            lines.append(f"{name}: {', '.join(parts)}")
    return lines
