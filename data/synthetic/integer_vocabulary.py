"""Vocabulary of integers that is filled while the rows of a training split are written."""

import numpy as np
import numpy.typing as npt

from msrec.data.features.columns import Ids
from msrec.data.features.shard_balance import spread
from msrec.data.features.vocabulary import UNKNOWN


class IntegerVocabulary:
    """Table rows of the integers [0, size), for a training split that is streamed.

    The row of each integer is fixed from the start. An integer that no training row has shown so
    far is unknown.

    Example:
        >>> vocabulary = IntegerVocabulary(size=4)
        >>> vocabulary.update(np.array([2, 0, 2]))
        >>> vocabulary.encode(np.array([2, 0, 3])).tolist(), vocabulary.rows
        ([2, 1, 0], 5)
    """

    def __init__(self, size: int) -> None:
        self.rows = size + 1
        self._row_of = np.empty(size, dtype=np.int32)
        self._row_of[spread(size)] = np.arange(1, self.rows, dtype=np.int32)
        self._is_known = np.zeros(size, dtype=np.bool_)

    def update(self, values: npt.NDArray[np.integer]) -> None:
        """Marks values of training rows as known."""
        self._is_known[values] = True

    def encode(self, values: npt.NDArray[np.integer]) -> Ids:
        """Returns the table rows of values, 0 for unknown ones."""
        return np.where(self._is_known[values], self._row_of[values], np.int32(UNKNOWN))

    def values(self) -> list[int | None]:
        """Returns the integer of each row except row 0, None if it is unknown."""
        values = np.full(self.rows - 1, -1)
        values[self._row_of[self._is_known] - 1] = np.flatnonzero(self._is_known)
        return [None if value < 0 else value for value in values.tolist()]

    def by_value(self, lookups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns lookups (rows,) in the order of the values, those of row 0 first."""
        return np.concatenate([lookups[:1], lookups[self._row_of]])
